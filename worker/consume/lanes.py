"""A lane takes groups of deliveries through the ingest transaction and settles them.

    hand.take -> read -> ingest (commits) -> ack
                          +-- fails alone, or is for a newer worker -> copy -> ack

Lanes are tasks of the worker, so a channel that closes can't cancel them in the middle of a
transaction. A group is an optimization: if it fails, its deliveries run again one by one. Copies
are made beside the groups, because a broker in an alarm confirms none, and the others go on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import structlog

from worker.broker.connection import describe
from worker.broker.publisher import Unacceptable
from worker.broker.subscription import Delivery
from worker.consume.in_hand import Hand
from worker.consume.intake import Taken, read
from worker.consume.pauses import Conditions
from worker.consume.settle import Deferred, Postponed, Settler
from worker.domain.backoff import Backoff
from worker.domain.dispositions import Busy, Disposition
from worker.errors import DatabaseAway, IngestError, PrincipalInUse, Unconfirmed
from worker.ingest.resolve import Incoming
from worker.settings import Settings
from worker.telemetry import metrics, traces

_log = structlog.get_logger(__name__)

_LARGE_BODY_BYTES: Final = 32_768
"""From this size on, a group of bodies is not decoded in one go, because heartbeats would wait."""

IngestGroup = Callable[[Sequence[Incoming]], Awaitable[list[Disposition | Busy]]]
"""`worker.ingest.transaction.Ingest`, or another function of this type."""

Trial = Callable[[], Awaitable[None]]
"""`worker.ingest.trial.try_writing`: raises `DatabaseAway` unless the database takes writes."""


class Lane:
    """One lane. All lanes of a worker share the hand, the settler and the conditions.

    `on_ingested` is called after each group that the transaction has decided.
    """

    def __init__(
        self,
        settings: Settings,
        ingest: IngestGroup,
        trial: Trial,
        hand: Hand,
        settler: Settler,
        conditions: Conditions,
        on_ingested: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._ingest = ingest
        self._trial = trial
        self._hand = hand
        self._settler = settler
        self._conditions = conditions
        self._on_ingested = on_ingested
        self._copies = asyncio.TaskGroup()

    async def run(self) -> None:
        """Takes one group after another until the worker drains. It runs once."""
        async with self._copies:
            await self._take_groups()

    async def _take_groups(self) -> None:
        conditions, hand = self._conditions, self._hand
        while True:
            await conditions.changed.until(
                lambda: conditions.draining or (hand.has_work and not conditions.paused)
            )
            if conditions.draining:
                return
            group = hand.take()
            busy: list[Delivery] = []
            try:
                with metrics.stage("read"):
                    read_group = await self._read(group)
                with _traced(read_group) as traced:
                    busy = await self._deal_with(traced)
            finally:
                hand.done(group, busy)
                conditions.tell()

    async def _read(self, group: list[Delivery]) -> list[Taken]:
        taken = []
        for delivery in group:
            taken.append(read(delivery, self._settings))
            if len(delivery.body) > _LARGE_BODY_BYTES:
                await asyncio.sleep(0)
        return taken

    async def _deal_with(self, group: list[Taken]) -> list[Delivery]:
        newer = [taken for taken in group if taken.is_for_newer_worker]
        for taken in newer:
            self._wait_in_broker(taken, Postponed())
        return await self._work([taken for taken in group if not taken.is_for_newer_worker])

    async def _work(self, group: list[Taken]) -> list[Delivery]:
        """Processes the group until every delivery is settled, returned, stale or busy.

        Returns the busy ones. A group of one is never busy, because it waits for its principal.
        """
        lost_before = False
        while group := [taken for taken in group if self._is_live(taken)]:
            if not await self._conditions.passes("database"):
                await self._give_back([taken.delivery for taken in group])
                return []
            try:
                metrics.GROUP_SIZE.observe(len(group))
                with metrics.stage("ingest"):
                    dispositions = await self._ingest([taken.incoming for taken in group])
            except PrincipalInUse as fault:
                # Another worker or command works on these users, so no batch is at fault. Where a
                # COMMIT that hangs still holds their locks, the database is away.
                metrics.FAILED.labels(type(fault).__name__).inc()
                if not await self._is_away():
                    later = Deferred(self._settings.retry_delays[0], is_counted=False)
                    for taken in group:
                        self._wait_in_broker(taken, later)
                    return []
            except Exception as fault:  # noqa: BLE001  # a bad batch costs only itself
                metrics.FAILED.labels(type(fault).__name__).inc()
                # A session can end for reasons of its own, but hardly twice for the same batches.
                if isinstance(fault, DatabaseAway) and not lost_before:
                    lost_before = True
                    self._conditions.pause("database", str(fault))
                elif len(group) > 1 or not await self._is_away():
                    await self._failed(group, fault)
                    return []
            else:
                self._on_ingested()
                decided, busy = _told_apart(group, dispositions)
                metrics.BUSY.inc(len(busy))
                with metrics.stage("settle"):
                    await self._settler.ack(decided, len(group))
                return busy
        return []

    async def _is_away(self) -> bool:
        """Whether a failure is the database's fault: then nothing else can be written either."""
        try:
            await self._trial()
        except DatabaseAway as away:
            self._conditions.pause("database", str(away))
            return True
        return False

    async def _failed(self, group: list[Taken], fault: Exception) -> None:
        if len(group) > 1:
            _log.warning("group.split", group_size=len(group), error=type(fault).__name__)
            for taken in group:
                await self._work([taken])
            return
        [taken] = group
        delays = self._settings.retry_delays
        retries = taken.envelope.retries
        _log.warning(
            "delivery.failed",
            client_session_uuid=str(taken.incoming.client_session_uuid),
            retries=retries,
            error=describe(fault),
            # A known error needs no traceback.
            exc_info=None if isinstance(fault, IngestError) else fault,
        )
        if taken.is_exhausted:  # not even that can be written down
            await self._settler.reject(taken)
        elif retries < len(delays):
            self._wait_in_broker(taken, Deferred(delays[retries]))
        else:
            tries = f"The batch failed {retries + 1} times in ways that might have passed"
            await self._work([taken.exhausted(tries)])

    def _wait_in_broker(self, taken: Taken, disposition: Deferred | Postponed) -> None:
        """Settles by a copy, which the broker keeps for later, and does not wait for that."""
        self._hand.copying(taken.delivery)
        self._copies.create_task(self._copy(taken, disposition))

    async def _copy(self, taken: Taken, disposition: Deferred | Postponed) -> None:
        try:
            if len(taken.delivery.body) < taken.delivery.size:
                # Of so large a body there is only the beginning here: the broker has it whole.
                await self._settler.reject(taken)
            else:
                await self._copy_until_confirmed(taken, disposition)
        except Unacceptable:
            # The broker will never take a copy, so this was the last try.
            await self._work([taken.exhausted("The broker takes no copy of the batch for later")])
        finally:
            self._hand.copied(taken.delivery)
            if not self._hand.waits_too_much:
                self._conditions.resume("publishing")
            self._conditions.tell()

    async def _copy_until_confirmed(self, taken: Taken, disposition: Deferred | Postponed) -> None:
        """Tries until the copy is confirmed; the original stays in hand as long.

        Raises `Unacceptable` when it never will be.
        """
        conditions = self._conditions
        backoff = Backoff(self._settings.pause_delay_min, self._settings.pause_delay_max)
        while self._is_live(taken):
            try:
                await self._settler.settle_by_copy(taken, disposition, 1)
                return
            except Unacceptable:
                raise
            except Unconfirmed as trouble:
                self._not_confirmed(taken, trouble)
            wait = min(backoff.next(), conditions.hold_left)
            await conditions.turned.until(lambda: conditions.draining, timeout=wait)
            if conditions.draining or not conditions.hold_left:
                await self._give_back([taken.delivery])
                return

    def _not_confirmed(self, taken: Taken, trouble: Unconfirmed) -> None:
        """Lets the others pass, unless too many wait already."""
        if self._hand.set_aside(taken.delivery):
            _log.warning(
                "copy.unconfirmed",
                client_session_uuid=str(taken.incoming.client_session_uuid),
                reason=str(trouble),
            )
        if self._hand.waits_too_much:
            self._conditions.pause("publishing", str(trouble))

    async def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        if self._conditions.draining:
            # While the subscription is still open, they would come again at once.
            self._hand.put_back(deliveries)
        else:
            await self._hand.give_back(deliveries)

    def _is_live(self, taken: Taken) -> bool:
        if not taken.delivery.is_live:
            self._settler.stale(taken)
            return False
        return True


@contextmanager
def _traced(group: list[Taken]) -> Iterator[list[Taken]]:
    """Gives each delivery a span of its own, which is the parent of what the delivery causes."""
    parents = [(taken.incoming.client_session_uuid, taken.incoming.traceparent) for taken in group]
    with traces.delivered(parents) as spans:
        if spans is None:
            yield group
        else:
            yield [
                taken._replace(incoming=replace(taken.incoming, traceparent=span))
                for taken, span in zip(group, spans, strict=True)
            ]


def _told_apart(
    group: Sequence[Taken], dispositions: Sequence[Disposition | Busy]
) -> tuple[list[tuple[Taken, Disposition]], list[Delivery]]:
    """Divides the group into what was decided and what was busy."""
    decided, busy = [], []
    for taken, disposition in zip(group, dispositions, strict=True):
        if isinstance(disposition, Busy):
            busy.append(taken.delivery)
        else:
            decided.append((taken, disposition))
    return decided, busy
