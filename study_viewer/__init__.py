"""The library for viewers: record offline, publish when possible, get results, know what is due.

An application imports everything that it needs from here; `docs/viewers.md` shows how. The library
needs aio-pika, pydantic and the standard library. `study_viewer.schemas` is the wire: in the source
tree it is a link to `schemas/`, and in the wheel it is a copy.
"""

from study_viewer.clock import local_now
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
from study_viewer.progress import Due, Progress
from study_viewer.relay import Relay, RelayStatus
from study_viewer.schemas.attempt_batch import Attempt, AttemptBatch
from study_viewer.schemas.ingest_result import IngestResult
from study_viewer.schemas.words import RejectReason, SkipReason, Status, TimeWas
from study_viewer.settings import RelaySettings

__version__ = "0.2.0"

__all__ = [
    "Attempt",
    "AttemptBatch",
    "BatchRefused",
    "Due",
    "Entry",
    "IngestResult",
    "NoTransaction",
    "Outbox",
    "OutboxError",
    "OutboxTooNew",
    "Progress",
    "RejectReason",
    "Relay",
    "RelayRunning",
    "RelaySettings",
    "RelayStatus",
    "RelayStopped",
    "SkipReason",
    "State",
    "Status",
    "TimeWas",
    "UuidReused",
    "local_now",
]
