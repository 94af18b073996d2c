"""What becomes of a delivery once the transaction has spoken; the consumer settles by it.

`deferred` is not here: it is what the consumer makes of a group that failed. Nor is `Busy` a
disposition: it says that there is none yet.
"""

from dataclasses import dataclass
from datetime import datetime

from schemas.words import RejectReason


@dataclass(frozen=True, slots=True)
class Ingested:
    """Committed by this transaction."""

    received_at: datetime


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Its uuid was in the inbox with the same content; nothing changed."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Will never be ingested as it is: to be parked with this reason and sentence."""

    reason: RejectReason
    detail: str


@dataclass(frozen=True, slots=True)
class Busy:
    """Another transaction had its principal: nothing was done, and it is to be handed in again."""


Disposition = Ingested | Duplicate | Rejected
