"""The consumer: stays subscribed to the queue of batches, and drains in an orderly way.

    broker -> Subscription -> Hand -> Lane -> ingest, settle, ack

The client's callback only puts a delivery in hand, and the lanes do the rest. This file keeps the
subscription in the wanted state (consuming, paused, one at a time, drained), opens a new one after
a loss, and watches the pause, the database, and whether the broker still lists the consumer.

Where the queue is partitioned, `worker.consume.partitions` says which partitions to consume besides
the common queue. They share the subscription, the hand and the lanes, so that all bounds are those
of the worker.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import structlog

from schemas import amqp
from worker.broker.management import Management
from worker.broker.publisher import Publisher
from worker.broker.subscription import Subscription
from worker.consume.changes import Signal
from worker.consume.in_hand import Hand
from worker.consume.lanes import IngestGroup, Lane, Trial
from worker.consume.pauses import Conditions
from worker.consume.settle import Settler
from worker.domain.backoff import Backoff
from worker.errors import BrokerAway, DatabaseAway
from worker.settings import Settings
from worker.telemetry import metrics

_log = structlog.get_logger(__name__)

_GATE_INTERVAL: Final = 0.5
"""Seconds between checks of the pause and of the database, so that consuming stops within a second.
"""

_QUIET: Final = 0.2
"""Seconds in which a queue that has a message has sent it."""

Check = Callable[[], Awaitable[bool]]
State = Literal["connecting", "consuming", "paused", "draining", "stopped"]


class Consumer:
    """Consumes until it is drained.

    `trial` raises `DatabaseAway` unless the database takes writes. It is called while the database
    is unreachable, and after a failure, to find out whose fault it is. `gate_open` is called twice
    a second; by default it returns `settings.enabled`. `management` is asked whether the broker
    lists the consumer, if it is given.
    """

    def __init__(
        self,
        settings: Settings,
        ingest: IngestGroup,
        publisher: Publisher,
        *,
        trial: Trial,
        gate_open: Check | None = None,
        management: Management | None = None,
    ) -> None:
        self._settings = settings
        self._trial = trial
        self._gate_open = gate_open or self._enabled
        self._management = management

        self._conditions = Conditions(settings.hold_timeout, lambda: self._hand.held_since)
        self._settler = Settler(publisher)
        self._hand = Hand(
            settings,
            self._settler.counts,
            on_turn=self._conditions.tell,
            on_change=self._conditions.changed.tell,
        )
        self._database_backoff = self._backoff()
        self._lanes = [
            Lane(
                settings,
                ingest,
                trial,
                self._hand,
                self._settler,
                self._conditions,
                on_ingested=self._database_backoff.reset,
            )
            for _ in range(settings.lanes)
        ]
        self._two_groups = min(settings.prefetch, 2 * settings.group_max)
        self._subscription: Subscription | None = None
        self._partitions: frozenset[str] = frozenset()
        self._consumed: frozenset[str] = frozenset()
        self._next: str | None = None
        """The queue whose turn is next where the broker sends one message at a time."""
        self._quiet = 0
        """How many queues in a row had nothing to send when it was their turn."""
        self._arrivals_before = 0
        """How many deliveries had arrived when the broker was last asked to send any."""
        self._stopped = False

    # What others may see.

    @property
    def state(self) -> State:
        """What the consumer is doing. Only `consuming` means ready."""
        if self._stopped:
            return "stopped"
        if self._conditions.draining:
            return "draining"
        if self._conditions.paused:
            return "paused"
        return "consuming" if self.is_subscribed else "connecting"

    @property
    def why_paused(self) -> str | None:
        """The reason, as a sentence; None while nothing is paused."""
        return self._conditions.reason

    @property
    def is_subscribed(self) -> bool:
        """Whether the broker may send deliveries."""
        return self._subscription is not None and self._subscription.is_consuming

    @property
    def can_consume(self) -> bool:
        """Whether it consumes, or will in a moment, as nothing keeps it from that."""
        subscription = self._subscription
        is_up = subscription is not None and not subscription.is_lost
        return is_up and not (self._conditions.paused or self._conditions.draining)

    @property
    def partitions(self) -> frozenset[str]:
        """The partitions whose deliveries may arrive or be in hand."""
        return self._consumed | self._partitions

    @property
    def is_proved(self) -> bool:
        """Whether the broker itself has confirmed that it lists the consumer."""
        subscription = self._subscription
        return subscription is not None and subscription.is_consuming and subscription.is_proved

    @property
    def in_hand(self) -> int:
        """Deliveries that are not settled yet."""
        return len(self._hand)

    @property
    def unconfirmed(self) -> int:
        """Those of them whose copies the broker did not confirm in time."""
        return self._hand.unconfirmed

    @property
    def counts(self) -> Counter[str]:
        """The number of deliveries by how they ended (see `Settler`)."""
        return self._settler.counts

    @property
    def last_progress(self) -> float:
        """When a delivery was last settled (`time.monotonic`). The watchdog compares it with the
        time now.
        """
        return self._settler.last_progress

    @property
    def changed(self) -> Signal:
        """Signals every change of the values above. Tests and the health checks wait for it."""
        return self._conditions.changed

    def consume_partitions(self, partitions: frozenset[str], *, exist: bool) -> None:
        """Has it consume these partitions besides the common queue, and no others.

        What it does not consume any more is out of its hands before it leaves `partitions`. `exist`
        says whether there are any partitions, and copies have to find them.
        """
        self._settler.to_partitions = exist
        if partitions != self._partitions:
            self._partitions = partitions
            self._conditions.tell()

    # Its life.

    async def run(self) -> None:
        """Consumes until `drain` is called. It runs once.

        An unreachable broker or database never ends it. A bug ends it, and with it the process.
        That is intended: the broker then counts a return of the messages in hand.
        """
        conditions = self._conditions
        try:
            await self._look_at_gate()
            async with asyncio.TaskGroup() as tasks:
                watchers = [
                    tasks.create_task(watch())
                    for watch in (self._watch_gate, self._watch_database, self._watch_broker)
                ]
                workers = [tasks.create_task(self._stay_subscribed())]
                workers += [tasks.create_task(lane.run()) for lane in self._lanes]
                try:
                    await conditions.turned.until(lambda: conditions.draining)
                    _, late = await asyncio.wait(workers, timeout=self._settings.drain_timeout)
                    # Deliveries that turned out to be busy after the unstarted ones were returned.
                    await self._hand.give_back_unstarted()
                finally:
                    # If this task is cancelled instead, the client may swallow a task's
                    # cancellation. Then that task ends as if the worker drained.
                    conditions.drain()
                if late:
                    _log.warning("consumer.drain_timed_out", in_hand=self.in_hand)
                for task in (*watchers, *late):
                    task.cancel()
        finally:
            if self._subscription is not None:
                await self._subscription.close()
            self._stopped = True
            conditions.tell()

    async def drain(self) -> None:
        """Ends `run` in an orderly way within `drain_timeout`, plus the time to close the
        connection.

        It takes no more deliveries, returns those that no lane has started, lets the lanes commit
        and ack their groups, and closes the connection. It may be called more than once.
        """
        if not self._conditions.draining:
            _log.info("consumer.draining", in_hand=self.in_hand)
            self._conditions.drain()
        await self.changed.until(lambda: self._stopped)

    # Staying subscribed.

    async def _stay_subscribed(self) -> None:
        conditions = self._conditions
        backoff = self._backoff()
        trouble: str | None = None
        started = False
        while True:
            await conditions.turned.until(lambda: conditions.draining or not conditions.paused)
            if conditions.draining:
                return
            try:
                subscription = await self._subscribe()
            except BrokerAway as error:
                if trouble is None:
                    _log.warning("consumer.lost", reason=str(error))
                trouble = str(error)
                if not await self._recovers_from_failure():
                    await conditions.turned.until(
                        lambda: conditions.draining, timeout=backoff.next()
                    )
                continue
            backoff.reset()
            if started:
                metrics.RESUBSCRIBED.inc()
            _log.info("consumer.restored" if started else "consumer.started", after=trouble)
            started = True
            await self._attend(subscription)
            if not subscription.is_lost:
                return
            trouble = subscription.lost or "the channel was closed"
            _log.warning("consumer.lost", reason=trouble)
            await subscription.close()
            self._hand.drop_stale()
            if not await self._recovers_from_failure() and subscription.was_cancelled:
                # RabbitMQ 4 fails if a consumer subscribes while the queue is being deleted.
                await conditions.turned.until(lambda: conditions.draining, timeout=backoff.next())

    async def _subscribe(self) -> Subscription:
        self._subscription = None
        # A partition may be what ended the last one: it may have been deleted.
        self._partitions = self._consumed = frozenset()
        subscription = await Subscription.open(
            self._settings,
            amqp.ATTEMPTS_QUEUE,
            self._hand.arrived,
            self._conditions.tell,
            self._hand.room_for,
        )
        self._subscription = subscription
        # The first message in the queue may have ended the last subscription: let it come alone.
        self._hand.prefetch = 1
        try:
            await self._consume(subscription)
        except BrokerAway:
            await subscription.close()
            raise
        return subscription

    async def _recovers_from_failure(self) -> bool:
        """Returns whether an internal error of the broker ended the subscription. If so, it first
        waits a moment.

        The broker fails on the same message again and again until it gives that message up, so the
        delays must not grow: everything else waits for it.
        """
        if self._subscription is None or not self._subscription.broke_down:
            return False
        self._hand.be_careful()
        await self._drains_within(self._settings.pause_delay_min)
        return True

    async def _attend(self, subscription: Subscription) -> None:
        """Keeps the subscription in the wanted state until it is lost or the worker drains."""
        conditions, hand = self._conditions, self._hand

        def disturbed() -> bool:
            return subscription.is_lost or conditions.draining or conditions.paused

        def moves() -> bool:
            return self._partitions != self._consumed

        def turns() -> bool:
            return disturbed() or moves() or hand.prefetch != hand.granted

        while not subscription.is_lost:
            if self._consumed and hand.granted == 1:
                await self._pass_turn(turns)
            else:
                await conditions.turned.until(turns)
            await subscription.cancel()
            conditions.tell()
            if conditions.draining:
                await hand.give_back_unstarted()
                return
            was_paused = conditions.paused
            if was_paused:
                await self._sit_out(subscription)
            if hand.must_clear or moves():
                # Finish the others first. Then return the suspects, which come again one at a time.
                self._next = hand.suspect_queue or self._next
                if moves():
                    await hand.give_back_unstarted()
                await conditions.turned.until(lambda: disturbed() or hand.is_clear)
                if not disturbed():
                    await hand.give_back_unstarted()
            # A suspect may have arrived just before the deliveries stopped.
            if was_paused or hand.granted == 1:
                await conditions.turned.until(lambda: disturbed() or hand.has_room)
            if not disturbed():
                try:
                    await self._consume(subscription)
                except BrokerAway:
                    return

    async def _consume(self, subscription: Subscription) -> None:
        hand = self._hand
        self._consumed = self._partitions
        queues = [*sorted(self._consumed), amqp.ATTEMPTS_QUEUE]
        # The prefetch is divided, but a single busy queue must still keep a lane busy.
        share = max(self._settings.prefetch // len(queues), self._two_groups)
        hand.full = share * len(queues)
        if hand.prefetch > 1:
            hand.prefetch = hand.full  # it may have been that of another number of queues
        hand.granted = hand.prefetch
        if hand.granted == 1:
            # The first one again after the last one, and after one that is not there any more.
            at = queues.index(self._next) if self._next in queues else 0
            self._next = queues[(at + 1) % len(queues)]
            queues = [queues[at]]
        self._arrivals_before = hand.arrivals  # the first one may come with the broker's answer
        # The deliveries in hand count too, but the limit of a new consumer ignores them.
        await subscription.consume(max(1, hand.granted - len(hand)), queues)
        self._conditions.tell()

    async def _pass_turn(self, turns: Callable[[], bool]) -> None:
        """Waits until the queue that may send one message has done so, and that is dealt with, or
        until it has nothing to send.
        """
        hand, changed = self._hand, self._conditions.changed

        def sends() -> bool:
            return hand.arrivals > self._arrivals_before

        await changed.until(lambda: turns() or sends(), timeout=_QUIET)
        if sends():
            self._quiet = 0
            await changed.until(lambda: turns() or hand.is_idle)
        elif not turns():
            self._quiet += 1
            if self._quiet > len(self._consumed):
                self._quiet = 0
                hand.nothing_arrives()

    async def _sit_out(self, subscription: Subscription) -> None:
        """Keeps the deliveries in hand while paused, but no longer than the broker allows."""
        conditions = self._conditions

        def over() -> bool:
            return subscription.is_lost or conditions.draining or not conditions.paused

        await conditions.turned.until(
            lambda: over() or conditions.paused_for("gate"), timeout=conditions.hold_left
        )
        if not over():
            await self._hand.give_back_unstarted()
        await conditions.turned.until(over)

    # Watching.

    async def _watch_gate(self) -> None:
        while not await self._drains_within(_GATE_INTERVAL):
            await self._look_at_gate()

    async def _look_at_gate(self) -> None:
        try:
            is_open = await self._gate_open()
        except DatabaseAway as away:
            # Without this, a worker without deliveries would not notice, and would take new ones.
            self._conditions.pause("database", str(away))
            return
        if is_open:
            self._conditions.resume("gate")
        else:
            self._conditions.pause("gate", "the gate is closed")

    async def _watch_database(self) -> None:
        conditions = self._conditions
        while not conditions.draining:
            await conditions.turned.until(
                lambda: conditions.draining or conditions.paused_for("database")
            )
            if not await self._drains_within(self._database_backoff.next()):
                try:
                    await self._trial()
                except DatabaseAway as away:
                    conditions.pause("database", str(away))
                else:
                    conditions.resume("database")

    async def _watch_broker(self) -> None:
        while not await self._drains_within(self._settings.consumer_check_interval):
            if self._subscription is not None:
                try:
                    await self._subscription.check_consumer(self._management)
                except Exception:  # noqa: BLE001  # a check that fails proves nothing
                    _log.exception("consumer.check_failed")
                self.changed.tell()

    # Small things.

    async def _drains_within(self, seconds: float) -> bool:
        """Waits for `seconds`. Returns True as soon as the worker drains."""
        return await self._conditions.turned.until(
            lambda: self._conditions.draining, timeout=seconds
        )

    def _backoff(self) -> Backoff:
        return Backoff(self._settings.pause_delay_min, self._settings.pause_delay_max)

    async def _enabled(self) -> bool:
        return self._settings.enabled
