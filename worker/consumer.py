"""The consumer: deliveries in, groups to the ingest transaction, each settled by its disposition.

    broker -> _arrived -> buffer -> _lane -> _take -> _work -> ingest (commits) -> _settle -> ack

The client's callback only puts a delivery into the buffer (which prefetch bounds). A few lanes,
tasks of ours that no closing channel can cancel, take what has already arrived as one group.
Beside them `_stay_subscribed` keeps the subscription in the state that is wanted, and three
watchers tell it of the gate, the database and a broker that has forgotten us.

Knows deliveries and dispositions; may not know SQL, nor how a copy is published.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal

import structlog

from schemas import amqp
from schemas.words import RejectReason
from worker.backoff import Backoff
from worker.broker.connection import describe
from worker.broker.management import Management
from worker.broker.publisher import Publisher
from worker.broker.subscription import Delivery, Subscription
from worker.domain.dispositions import Disposition, Duplicate, Ingested, Rejected
from worker.errors import BrokerAway, DatabaseAway, IngestError, Unconfirmed
from worker.intake import Taken, read
from worker.pauses import Cause, Pauses
from worker.resolve import Incoming
from worker.settings import Settings
from worker.settle import Deferred, Settler
from worker.signals import Signal

_log = structlog.get_logger(__name__)

_GATE_INTERVAL: Final = 1.0
"""Seconds between looks at the gate."""

IngestGroup = Callable[[Sequence[Incoming]], Awaitable[list[Disposition]]]
Check = Callable[[], Awaitable[bool]]
State = Literal["connecting", "consuming", "paused", "draining", "stopped"]


class Consumer:
    """Consumes until it is drained.

    `ingest` is `worker.ingest.Ingest`, or anything of its shape; `database_ready` is asked while
    the database is away; `gate_open` every second (default: `settings.enabled`); `management`,
    where there is one, is asked whether the broker lists our consumer.

    `changed` tells of every change of what can be seen here: lanes, tests and health wait on it.
    """

    def __init__(
        self,
        settings: Settings,
        ingest: IngestGroup,
        publisher: Publisher,
        *,
        database_ready: Check,
        gate_open: Check | None = None,
        management: Management | None = None,
    ) -> None:
        self._settings = settings
        self._ingest = ingest
        self._database_ready = database_ready
        self._gate_open = gate_open or self._enabled
        self._management = management

        self.changed = Signal()
        self._turned = Signal()
        self._buffer: deque[Delivery] = deque()
        self._in_work = 0
        self._subscription: Subscription | None = None
        self._settler = Settler(publisher)
        self._pauses = Pauses(settings.hold_timeout, self._tell)
        self._database_backoff = self._backoff()
        self._unpublished = 0
        self._draining = False
        self._stopped = False

    # What can be seen from outside.

    @property
    def state(self) -> State:
        """What the consumer is doing; `consuming` alone is ready."""
        if self._stopped:
            return "stopped"
        if self._draining:
            return "draining"
        if self._pauses:
            return "paused"
        return "consuming" if self.is_subscribed else "connecting"

    @property
    def is_subscribed(self) -> bool:
        """Whether the broker may send deliveries."""
        return self._subscription is not None and self._subscription.is_consuming

    @property
    def in_hand(self) -> int:
        """Deliveries that are not settled yet."""
        return len(self._buffer) + self._in_work

    @property
    def counts(self) -> Counter[str]:
        """How many deliveries came to which end (see `Settler`)."""
        return self._settler.counts

    @property
    def last_progress(self) -> float:
        """When a delivery was last settled (`time.monotonic`): in hand and long ago is stuck."""
        return self._settler.last_progress

    # Its life.

    async def run(self) -> None:
        """Consumes until `drain` is called; to be run once.

        Never ends because the broker or the database is away. A fault of our own ends it, and
        with it, by intent, the process: the broker counts that against what was in hand.
        """
        try:
            await self._look_at_gate()
            async with asyncio.TaskGroup() as tasks:
                watchers = [
                    tasks.create_task(watch())
                    for watch in (self._watch_gate, self._watch_database, self._watch_broker)
                ]
                workers = [tasks.create_task(self._stay_subscribed())]
                workers += [tasks.create_task(self._lane()) for _ in range(self._settings.lanes)]
                await self._turned.until(lambda: self._draining)
                _, late = await asyncio.wait(workers, timeout=self._settings.drain_timeout)
                if late:
                    _log.warning("consumer.drain_timed_out", in_hand=self.in_hand)
                for task in (*watchers, *late):
                    task.cancel()
        finally:
            if self._subscription is not None:
                await self._subscription.close()
            self._stopped = True
            self._tell()

    async def drain(self) -> None:
        """Ends `run` in good order, within `drain_timeout` (and what closing takes).

        No more deliveries are asked for, the unstarted ones are given back, the groups in work
        committed and acked; then the connection closes. May be called more than once.
        """
        if not self._draining:
            self._draining = True
            _log.info("consumer.draining", in_hand=self.in_hand)
            self._tell()
        await self.changed.until(lambda: self._stopped)

    # Staying subscribed.

    async def _stay_subscribed(self) -> None:
        backoff = self._backoff()
        trouble: str | None = None
        started = False
        while True:
            await self._turned.until(lambda: self._draining or not self._pauses)
            if self._draining:
                return
            try:
                subscription = await self._subscribe()
            except BrokerAway as error:
                if trouble is None:
                    _log.warning("consumer.lost", reason=str(error))
                trouble = str(error)
                await self._turned.until(lambda: self._draining, timeout=backoff.next())
                continue
            backoff.reset()
            _log.info("consumer.restored" if started else "consumer.started", after=trouble)
            started = True
            await self._attend(subscription)
            if not subscription.is_lost:
                return
            trouble = subscription.lost or "the channel was closed"
            _log.warning("consumer.lost", reason=trouble)
            await subscription.close()
            self._drop_stale()

    async def _subscribe(self) -> Subscription:
        subscription = await Subscription.open(
            self._settings, amqp.ATTEMPTS_QUEUE, self._arrived, self._tell
        )
        self._subscription = subscription
        try:
            await subscription.consume()
        except BrokerAway:
            await subscription.close()
            raise
        self._tell()
        return subscription

    async def _attend(self, subscription: Subscription) -> None:
        """Pauses and resumes the subscription until it is lost, or until we drain."""
        while not subscription.is_lost:
            await self._turned.until(
                lambda: subscription.is_lost or self._draining or bool(self._pauses)
            )
            await subscription.cancel()
            self._tell()
            if self._draining:
                await self._give_back_unstarted()
                return
            await self._sit_out(subscription)
            if not (subscription.is_lost or self._draining):
                try:
                    await subscription.consume()
                except BrokerAway:
                    return
                self._tell()

    async def _sit_out(self, subscription: Subscription) -> None:
        """Holds what is in hand while paused, but not for longer than the broker would bear."""

        def over() -> bool:
            return subscription.is_lost or self._draining or not self._pauses

        await self._turned.until(
            lambda: over() or "gate" in self._pauses, timeout=self._pauses.hold_left
        )
        if not over():
            await self._give_back_unstarted()
        await self._turned.until(over)

    # Watching.

    async def _watch_gate(self) -> None:
        while not self._draining:
            await self._turned.until(lambda: self._draining, timeout=_GATE_INTERVAL)
            await self._look_at_gate()

    async def _look_at_gate(self) -> None:
        try:
            is_open = await self._gate_open()
        except DatabaseAway:
            return  # it stays as it was
        if is_open:
            self._pauses.end("gate")
        else:
            self._pauses.begin("gate", "the gate is closed")

    async def _watch_database(self) -> None:
        while not self._draining:
            await self._turned.until(lambda: self._draining or "database" in self._pauses)
            await self._turned.until(lambda: self._draining, self._database_backoff.next())
            if not self._draining and await self._database_ready():
                self._pauses.end("database")

    async def _watch_broker(self) -> None:
        while not self._draining:
            await self._turned.until(
                lambda: self._draining, timeout=self._settings.consumer_check_interval
            )
            if self._subscription is not None:
                await self._subscription.check(self._management)
                self.changed.tell()

    # From a delivery to its disposition.

    def _arrived(self, delivery: Delivery) -> None:
        self._buffer.append(delivery)
        self.changed.tell()

    async def _lane(self) -> None:
        while True:
            await self.changed.until(
                lambda: self._draining or (bool(self._buffer) and not self._pauses)
            )
            if self._draining:
                return
            group = self._take()
            self._in_work += len(group)
            try:
                await self._work(await self._read(group))
            finally:
                self._in_work -= len(group)
                self._tell()

    def _take(self) -> list[Delivery]:
        """What has already arrived, up to `group_max`, in order; what may kill us, alone."""
        self._drop_stale()
        group: list[Delivery] = []
        while self._buffer and len(group) < self._settings.group_max:
            alone = self._buffer[0].delivery_count >= self._settings.alone_after
            if alone and group:
                break
            group.append(self._buffer.popleft())
            if alone:
                break
        return group

    async def _read(self, group: list[Delivery]) -> list[Taken]:
        taken = []
        for delivery in group:
            taken.append(read(delivery, self._settings))
            await asyncio.sleep(0)  # large bodies must not keep heartbeats waiting
        return taken

    async def _work(self, group: list[Taken]) -> None:
        """Sees the group through to the end, whatever comes between."""
        while group := [taken for taken in group if self._is_live(taken)]:
            try:
                dispositions = await self._ingest([taken.incoming for taken in group])
            except DatabaseAway as away:
                self._pauses.begin("database", str(away))
                if not await self._passes("database"):
                    await self._give_back([taken.delivery for taken in group])
                    return
            except Exception as fault:  # noqa: BLE001  # a bad batch costs only itself
                await self._failed(group, fault)
                return
            else:
                self._database_backoff.reset()
                await self._settle(group, dispositions)
                return

    async def _passes(self, cause: Cause) -> bool:
        """Waits while `cause` lasts; False when what is in hand has to be given back first."""
        await self._turned.until(
            lambda: self._draining or cause not in self._pauses, timeout=self._pauses.hold_left
        )
        return cause not in self._pauses

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
            # What was foreseen needs no traceback.
            exc_info=None if isinstance(fault, IngestError) else fault,
        )
        if retries < len(delays):
            await self._settle(group, [Deferred(delays[retries])])
        elif not taken.is_exhausted:
            await self._work([taken.exhausted(retries + 1)])
        else:  # not even that can be told
            detail = "The batch failed too often, and its viewer could not be told."
            await self._settle(group, [Rejected(RejectReason.RETRIES_EXHAUSTED, detail)])

    # Settling.

    async def _settle(
        self, group: list[Taken], dispositions: Sequence[Disposition | Deferred]
    ) -> None:
        copied = []
        for taken, disposition in zip(group, dispositions, strict=True):
            if isinstance(disposition, Ingested | Duplicate):
                await self._settler.settle(taken, disposition, len(group))
            else:
                copied.append(self._settle_by_copy(taken, disposition, len(group)))
        await asyncio.gather(*copied)

    async def _settle_by_copy(
        self, taken: Taken, disposition: Disposition | Deferred, group_size: int
    ) -> None:
        """Tries until the copy is confirmed; the original stays in hand as long."""
        backoff = self._backoff()
        is_counted = False
        try:
            while self._is_live(taken):
                try:
                    await self._settler.settle(taken, disposition, group_size)
                    return
                except Unconfirmed as trouble:
                    self._unpublished += not is_counted
                    is_counted = True
                    self._pauses.begin("publishing", str(trouble))
                wait = min(backoff.next(), self._pauses.hold_left)
                await self._turned.until(lambda: self._draining, timeout=wait)
                if self._draining or not self._pauses.hold_left:
                    await self._give_back([taken.delivery])
                    return
        finally:
            self._unpublished -= is_counted
            if not self._unpublished:
                self._pauses.end("publishing")

    async def _give_back_unstarted(self) -> None:
        unstarted = [*self._buffer]
        self._buffer.clear()
        await self._give_back(unstarted)

    async def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            given_back = await delivery.give_back()
            self.counts["given_back" if given_back else "stale"] += 1
        self._tell()

    def _drop_stale(self) -> None:
        """Forgets what the broker has taken back: it comes again."""
        live = deque(delivery for delivery in self._buffer if delivery.is_live)
        if stale := len(self._buffer) - len(live):
            self.counts["stale"] += stale
            self._buffer = live
            self._tell()

    def _is_live(self, taken: Taken) -> bool:
        if not taken.delivery.is_live:
            self._settler.stale(taken)
            return False
        return True

    # Small things.

    def _tell(self) -> None:
        self._turned.tell()
        self.changed.tell()

    def _backoff(self) -> Backoff:
        return Backoff(self._settings.pause_delay_min, self._settings.pause_delay_max)

    async def _enabled(self) -> bool:
        return self._settings.enabled
