"""The outbox library for viewers: record offline, publish when possible, learn what became of it.

What is imported from here is all there is to use; `docs/viewers.md` shows how. Stands on
`schemas`, aio-pika, pydantic and the standard library alone.
"""

from viewer.errors import (
    BatchRefused,
    NoTransaction,
    OutboxError,
    OutboxTooNew,
    RelayRunning,
    RelayStopped,
    UuidReused,
)
from viewer.outbox import Entry, Outbox, State
from viewer.relay import Relay, RelayStatus
from viewer.settings import RelaySettings

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
