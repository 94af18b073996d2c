"""Dead letters: what each says of itself, and which ones an operator means.

Looking takes nothing away: what was fetched goes back when the look is over. Knows headers, by
way of the step *intake*; may not know what is done with a letter.
"""

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from schemas import amqp
from schemas.attempt_batch import AttemptBatch, decode
from schemas.errors import Rejection
from schemas.words import RejectReason
from worker.broker.copies import Envelope, replayed
from worker.broker.dead_queue import DeadQueue
from worker.broker.subscription import Delivery
from worker.consume import intake
from worker.ingest.resolve import Incoming
from worker.settings import Settings

Progress = Callable[[int, int], None]
"""Told how many letters have been seen, of how many."""

_BY_THE_BROKER: Final = (
    "The broker returned it to workers as often as it may: it may kill the worker that takes it."
)
_NO_LIMIT: Final = 2**31


@dataclass(frozen=True, slots=True)
class Letter:
    """A message in the dead-letter queue, read."""

    delivery: Delivery
    envelope: Envelope
    reason: str
    detail: str
    died_at: datetime | None
    client_session_uuid: UUID | None

    @property
    def key(self) -> bytes:
        """Tells this letter from all others, also when it is fetched again (32 bytes)."""
        message_id = (self.delivery.properties.message_id or "").encode()
        return hashlib.sha256(message_id + b"\0" + self.delivery.body).digest()

    def batch(self) -> AttemptBatch | Rejection:
        """What the body holds, whatever the limits are now."""
        try:
            return decode(self.delivery.body, max_body_bytes=_NO_LIMIT, max_attempts=_NO_LIMIT)
        except Rejection as rejection:
            return rejection

    def replayed(self, settings: Settings) -> Incoming:
        """What today's code would read from it, were it replayed."""
        return intake.read(replayed(self.delivery, self.envelope), settings).incoming


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters are meant: those that fit everything that is given."""

    reasons: frozenset[str] = frozenset()
    viewers: frozenset[str] = frozenset()
    uuids: frozenset[UUID] = frozenset()
    older_than: timedelta | None = None
    newer_than: timedelta | None = None

    def fits(self, letter: Letter, now: datetime) -> bool:
        """Whether `letter` is meant; one that does not say when it died is of no age."""
        age = None if letter.died_at is None else now - letter.died_at
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.viewers or letter.envelope.viewer in self.viewers)
            and (not self.uuids or letter.client_session_uuid in self.uuids)
            and (self.older_than is None or (age is not None and age > self.older_than))
            and (self.newer_than is None or (age is not None and age < self.newer_than))
        )

    @property
    def is_everything(self) -> bool:
        return self == Wanted()


async def letters(
    queue: DeadQueue, settings: Settings, wanted: Wanted, progress: Progress
) -> AsyncIterator[Letter]:
    """Each letter that is meant, oldest first; all that were fetched stay in hand.

    Sees those that are there when it begins: one that comes back meanwhile is not seen twice.
    Raises as `DeadQueue` does.
    """
    total = await queue.count()
    now = datetime.now(UTC)
    for seen in range(total):
        progress(seen, total)
        delivery = await queue.next()
        if delivery is None:
            break
        letter = read(delivery, settings)
        if wanted.fits(letter, now):
            yield letter
    progress(total, total)


def read(delivery: Delivery, settings: Settings) -> Letter:
    """Reads one message of the dead-letter queue; never raises."""
    headers = delivery.headers
    death = _death(headers)
    if death is None:
        # Parked by a worker, whose headers can be believed as those of a retry can.
        taken = intake.read(delivery.as_if(amqp.RETURN_EXCHANGE, "", headers), settings)
        reason, detail = headers.get(amqp.REASON_HEADER), headers.get(amqp.DETAIL_HEADER)
        died_at = _time(headers.get(amqp.PARKED_AT_HEADER))
    else:
        # Parked by the broker, as it was: what it says of its sender is a viewer's word, unless
        # it had come by way of the return exchange.
        exchange, routing_key = str(death.get("exchange")), _first(death.get("routing-keys"))
        taken = intake.read(delivery.as_if(exchange, routing_key, headers), settings)
        reason, detail = RejectReason.DELIVERY_LIMIT, _BY_THE_BROKER
        died_at = _time(death.get("time"))
    return Letter(
        delivery,
        replace(taken.envelope, retries=0),
        str(reason or "unknown"),
        str(detail or ""),
        died_at,
        taken.incoming.client_session_uuid,
    )


def _death(headers: dict[str, Any]) -> dict[str, Any] | None:
    """The broker's note that it took the message off the workers' queue; None without one.

    Copies that workers park have no such note: they leave the broker's headers behind.
    """
    deaths = headers.get("x-death")
    for death in deaths if isinstance(deaths, list) else ():
        if isinstance(death, dict) and death.get("queue") == amqp.ATTEMPTS_QUEUE:
            return death
    return None


def _first(keys: object) -> str:
    return str(keys[0]) if isinstance(keys, list) and keys else ""


def _time(value: object) -> datetime | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
