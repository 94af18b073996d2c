"""What the transaction decided about a delivery. The consumer settles the delivery accordingly.

`deferred` is not among these: the consumer decides it when a group fails. `Busy` is not a
disposition either: it means that there is no decision yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from schemas.words import RejectReason
from worker.domain.records import Change


@dataclass(frozen=True, slots=True)
class Ingested:
    """The batch is committed by this transaction."""

    received_at: datetime
    last_answered_at: datetime | None = None
    """The time of the last answer with a credible one; None if there is none."""
    replaced_times: Sequence[str] = ()
    """Why the times as sent of some attempts were replaced."""
    change: Change | None = None
    """What it changed."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The uuid was in the inbox with the same content, so nothing changed."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Will never be ingested as it is: kept as a dead letter, with this reason and sentence."""

    reason: RejectReason
    detail: str


@dataclass(frozen=True, slots=True)
class Busy:
    """Another transaction holds the principal. Nothing was done, and the batch must be handed in
    again.
    """


Disposition = Ingested | Duplicate | Rejected
