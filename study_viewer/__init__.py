"""The outbox library for viewers: record offline, publish when possible, learn what became of it.

What is imported from here is all there is to use; `docs/viewers.md` shows how. Stands on
`schemas`, aio-pika, pydantic and the standard library alone.
"""

from study_viewer.errors import (
    BatchRefused,
    NoTransaction,
    OutboxError,
    OutboxTooNew,
    RelayRunning,
    RelayStopped,
    UuidReused,
)
from study_viewer.outbox import Entry, Outbox, State
from study_viewer.relay import Relay, RelayStatus
from study_viewer.settings import RelaySettings

__all__ = [
    "BatchRefused",
    "Entry",
    "NoTransaction",
    "Outbox",
    "OutboxError",
    "OutboxTooNew",
    "Relay",
    "RelayRunning",
    "RelaySettings",
    "RelayStatus",
    "RelayStopped",
    "State",
    "UuidReused",
]
