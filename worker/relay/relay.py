"""The step *relay*: publishes committed outbox rows, and deletes those that the broker confirmed.

Any number of relays may run at once. A relay holds a routing key (for results: a viewer) for one
transaction, and publishes its rows in order. If a relay dies, its locks are released and its rows
are still there: they are published again, with the same message ids.
"""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from worker.broker.burst import Outgoing
from worker.broker.publisher import Publisher, Refused, Unroutable, outgoing
from worker.domain.backoff import Backoff
from worker.domain.records import Message
from worker.errors import IngestError, Unconfirmed
from worker.settings import Settings
from worker.store import moments, outbox, versions
from worker.store.engine import reason_of, transaction
from worker.store.moments import Told
from worker.store.outbox import Waiting
from worker.telemetry import metrics

_MEASURE_INTERVAL: Final = 3.0
"""Seconds between two measurements of what waits in the outbox, for the metrics."""

_log = structlog.get_logger(__name__)


class _Held(NamedTuple):
    """A kind of jobs, or a viewer's results, left alone until a time on the monotonic clock."""

    until: float
    backoff: Backoff
    is_job: bool


class _ResultRefused(Refused):
    """A viewer's queue takes no result now, which says nothing about the broker."""


class Relay:
    """Relays until it is stopped."""

    def __init__(self, engine: AsyncEngine, publisher: Publisher, settings: Settings) -> None:
        self._engine = engine
        self._publisher = publisher
        self._settings = settings
        self._wake = asyncio.Event()
        self._stopping = False
        self._measured_at = float("-inf")
        self._held: dict[str, _Held] = {}
        """What the broker did not take, by routing key."""
        self.trouble: str | None = None
        """Why nothing can be published now. None if all is well."""

    def wake(self) -> None:
        """Says that rows were committed, so that they are published at once."""
        self._wake.set()

    def stop(self) -> None:
        """Ends `run` after the rows that it is publishing."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Relays rows as they come. If anything prevents it, it waits with growing delays."""
        backoff = self._new_backoff()
        broker_away = False
        while not self._stopping:
            self._wake.clear()
            try:
                await self._measure()
                relayed = await self.relay()
            except Exception as error:  # noqa: BLE001  # a worker continues, whatever happens to its relay
                self._note(error)
                broker_away = isinstance(error, Unconfirmed)
                await self._wait(backoff.next())
                continue
            # If there was nothing to relay, the database works, but the broker is still unproved.
            is_over = relayed or not broker_away
            if self.trouble is not None and is_over and not self._holds_jobs:
                self.trouble = None
                backoff.reset()
                _log.info("relay.resumed")
            if not relayed:
                await self._wait(self._settings.relay_poll_interval)

    async def relay(self) -> int:
        """Publishes and deletes one batch of rows. Returns how many of them the broker confirmed.

        If the broker refuses jobs of a kind, or results of a viewer, these are left alone for a
        growing time. Others continue.
        Raises `Unconfirmed` if the broker confirmed none of the rows and did not just refuse
        results, `DatabaseAway` and `TransientFault`.
        """
        rows: list[Waiting] = []
        confirmed: list[int] = []
        most, now = self._settings.relay_batch, time.monotonic()
        held = [key for key, each in self._held.items() if now < each.until]
        try:
            async with transaction(self._engine) as connection:
                rows = await outbox.take(connection, results=most, jobs=most, held=held)
                epoch = await versions.epoch(connection) if rows else None
                confirmed, failure = await self._publish(rows, epoch)
                if failure is not None:
                    raise failure  # and the rows that were taken are there again
                await moments.tell(connection, _told(rows, confirmed))
        except Unconfirmed as failure:
            if confirmed:
                async with transaction(self._engine) as connection:
                    await outbox.delete(connection, confirmed)
                    await moments.tell(connection, _told(rows, confirmed))
            elif not isinstance(failure, _ResultRefused):
                raise
        else:
            # What was tried again was confirmed, or another relay has published it.
            self._held = {key: each for key, each in self._held.items() if key in held}
        return len(confirmed)

    @property
    def _holds_jobs(self) -> bool:
        return any(each.is_job for each in self._held.values())

    def _hold(self, message: Message, failure: Unconfirmed) -> None:
        key, is_job = message.routing_key, message.is_job
        if is_job:
            self._note(failure)
        elif key not in self._held:
            _log.warning("relay.results_held", routing_key=key, problem=str(failure))
        backoff = self._held[key].backoff if key in self._held else self._new_backoff()
        self._held[key] = _Held(time.monotonic() + backoff.next(), backoff, is_job)

    def _new_backoff(self) -> Backoff:
        return Backoff(self._settings.pause_delay_min, self._settings.pause_delay_max)

    def _note(self, error: Exception) -> None:
        foreseen = isinstance(error, IngestError)
        problem = str(error) if foreseen else f"The outbox can't be read: {reason_of(error)}."
        if self.trouble != problem:
            _log.warning("relay.paused", problem=problem, exc_info=None if foreseen else error)
        self.trouble = problem

    async def _measure(self) -> None:
        """Measures from time to time what waits, even if nothing can be published."""
        now = time.monotonic()
        if now - self._measured_at < _MEASURE_INTERVAL:
            return
        self._measured_at = now
        async with transaction(self._engine) as connection:
            waiting = await outbox.backlog(connection)
        metrics.OUTBOX_ROWS.set(waiting.messages)
        metrics.OUTBOX_AGE.set(waiting.oldest_age)

    async def _publish(
        self, rows: Sequence[Waiting], epoch: str | None
    ) -> tuple[list[int], Unconfirmed | None]:
        stamp = {amqp.EPOCH_HEADER: epoch} if epoch else {}
        messages = [_outgoing(row.message, stamp) for row in rows]
        answers = await self._publisher.publish_all(messages)
        fates = [_excused(row.message, answer) for row, answer in zip(rows, answers, strict=True)]
        metrics.RELAYED.labels("confirmed").inc(fates.count(None))
        metrics.RELAYED.labels("unconfirmed").inc(len(fates) - fates.count(None))
        confirmed: list[int] = []
        stuck: dict[str, tuple[Message, Unconfirmed]] = {}
        for row, fate in zip(rows, fates, strict=True):
            # Messages after an unconfirmed one are published again after it: twice, but in order.
            if fate is not None:
                stuck.setdefault(row.message.routing_key, (row.message, fate))
            elif row.message.routing_key not in stuck:
                confirmed.append(row.id)
        for message, fate in stuck.values():
            # If the broker confirms others, or says no, it is not away.
            if confirmed or isinstance(fate, Refused):
                self._hold(message, fate)
        # Any other failure says more than a refused result.
        failures = sorted(
            (fate for _, fate in stuck.values()), key=lambda fate: isinstance(fate, _ResultRefused)
        )
        return confirmed, failures[0] if failures else None

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)


def _told(rows: Sequence[Waiting], confirmed: Collection[int]) -> list[Told]:
    """The results among the confirmed rows."""
    gone = {*confirmed}
    return [
        Told(row.created_at, uuid)
        for row in rows
        if row.id in gone
        and not row.message.is_job
        and (uuid := row.message.headers.get(amqp.CLIENT_SESSION_UUID_HEADER)) is not None
    ]


def _outgoing(message: Message, stamp: Mapping[str, str]) -> Outgoing:
    return outgoing(
        message.exchange,
        message.routing_key,
        message.body.encode(),
        message_id=str(message.message_id),
        type=message.type,
        # Only now, because the row may be older than the server that has it.
        headers={**message.headers, **stamp},
    )


def _excused(message: Message, fate: Unconfirmed | None) -> Unconfirmed | None:
    """The failure to publish a message, if it is one: a viewer without a queue waits for no
    result.
    """
    if isinstance(fate, Unroutable) and not message.is_job:
        _log.info("relay.result_unroutable", routing_key=message.routing_key)
        return None
    if isinstance(fate, Refused) and not message.is_job:
        return _ResultRefused(str(fate))
    return fate
