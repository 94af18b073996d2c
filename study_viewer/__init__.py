"""The outbox library for viewers: record offline, publish when possible, learn what became of it.

What is imported from here is all that an application uses; `docs/viewers.md` shows how. Needs
aio-pika, pydantic and the standard library, nothing else. `study_viewer.schemas` is the wire: in
the tree a link to `schemas/`, which is the one source, and in the wheel a copy of it.
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
from study_viewer.schemas.attempt_batch import Attempt, AttemptBatch
from study_viewer.schemas.ingest_result import IngestResult
from study_viewer.schemas.words import RejectReason, SkipReason, Status
from study_viewer.settings import RelaySettings

__all__ = [
    "Attempt",
    "AttemptBatch",
    "BatchRefused",
    "Entry",
    "IngestResult",
    "NoTransaction",
    "Outbox",
    "OutboxError",
    "OutboxTooNew",
    "RejectReason",
    "Relay",
    "RelayRunning",
    "RelaySettings",
    "RelayStatus",
    "RelayStopped",
    "SkipReason",
    "State",
    "Status",
    "UuidReused",
]
