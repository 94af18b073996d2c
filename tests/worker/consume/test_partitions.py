"""Workers share the partitions out among themselves, and nothing depends on how."""

import asyncio
import os
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from tests import factories as make
from tests.broker_fixtures import PATIENCE, Broker, until
from tests.factories import right
from tests.worker_process import running
from worker.broker import topology
from worker.broker.management import Management
from worker.broker.publisher import Publisher
from worker.broker.subscription import Subscription
from worker.consume import consumer as consuming
from worker.consume.consumer import Consumer
from worker.consume.partitions import Partitions
from worker.consume.presence import new_name
from worker.domain.dispositions import Busy, Disposition, Ingested
from worker.errors import TransientFault
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.ingest.trial import try_writing
from worker.store import leases
from worker.store.engine import transaction

pytestmark = pytest.mark.broker

SHARED_OUT_WITHIN = 10.0
"""Seconds; what the contract promises."""
VIEWERS = [f"viewer-{number}" for number in range(8)]

Group = Callable[[Sequence[Incoming]], Awaitable[list[Disposition | Busy]]]


@dataclass
class Worker:
    """A consumer with its share of the partitions, in the test's own process."""

    consumer: Consumer
    partitions: Partitions | None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def end(self) -> None:
        """As on SIGTERM."""
        await self.consumer.drain()
        if self.partitions is not None:
            self.partitions.stop()
        await asyncio.gather(*self.tasks)

    async def die(self) -> None:
        """As by kill -9, as far as the others see it: it renews no lease, and is disconnected."""
        for task in self.tasks:
            task.cancel()
        for task in self.tasks:
            with suppress(asyncio.CancelledError):
                await task

    @property
    def share(self) -> frozenset[str]:
        return self.consumer._consumed


Start = Callable[..., Awaitable[Worker]]


async def ingested(group: Sequence[Incoming]) -> list[Disposition | Busy]:
    return [Ingested(datetime.now(UTC)) for _ in group]


@pytest.fixture
async def start(
    broker: Broker, publisher: Publisher, management: Management, engine: AsyncEngine
) -> AsyncIterator[Start]:
    """Starts workers. An old one knows nothing of partitions."""
    workers: list[Worker] = []

    async def start(group: Group = ingested, *, is_old: bool = False, **changed: Any) -> Worker:
        settings = broker.settings.model_copy(update=changed)

        async def trial() -> None:
            await try_writing(engine)

        consumer = Consumer(settings, group, publisher, trial=trial)
        partitions = (
            None if is_old else Partitions(engine, management, consumer, settings, new_name())
        )
        worker = Worker(consumer, partitions)
        workers.append(worker)
        worker.tasks.append(asyncio.create_task(consumer.run()))
        if partitions is not None:
            worker.tasks.append(asyncio.create_task(partitions.run()))
        assert await consumer.changed.until(lambda: consumer.state == "consuming", PATIENCE)
        return worker

    yield start
    for worker in workers:
        if not all(task.done() for task in worker.tasks):
            await worker.end()


async def partition(management: Management, broker: Broker, number: int) -> list[str]:
    settings = broker.settings.model_copy(update={"partitions": number})
    await topology.apply(management, settings)
    return [amqp.partition_queue(each) for each in range(1, number + 1)]


def is_shared_out(workers: Collection[Worker], partitions: Collection[str]) -> bool:
    taken = Counter(each for worker in workers for each in worker.share)
    numbers = [len(worker.share) for worker in workers]
    return taken == dict.fromkeys(partitions, 1) and max(numbers) - min(numbers) <= 1


async def shared_out(workers: Collection[Worker], partitions: Collection[str]) -> None:
    async def look() -> list[list[str]]:
        return [sorted(worker.share) for worker in workers]

    await until(look, lambda _: is_shared_out(workers, partitions), SHARED_OUT_WITHIN)


def body_of(uuid: UUID, question: str = "q-1") -> str:
    return make.batch(right(question), uuid=uuid).model_dump_json()


# Sharing out


async def test_workers_that_come_and_go_share_the_partitions_evenly(
    broker: Broker, management: Management, start: Start
) -> None:
    partitions = await partition(management, broker, 6)
    one = await start()
    await shared_out([one], partitions)
    two, three = await start(), await start()
    await shared_out([one, two, three], partitions)
    assert [len(each.share) for each in (one, two, three)] == [2, 2, 2]
    kept = two.share
    await three.end()
    await shared_out([one, two], partitions)
    assert kept <= two.share
    await one.die()
    await shared_out([two], partitions)


async def test_a_worker_that_cannot_consume_leaves_its_partitions_to_others(
    broker: Broker, management: Management, start: Start
) -> None:
    partitions = await partition(management, broker, 4)
    one, two = await start(), await start()
    await shared_out([one, two], partitions)
    one.consumer._conditions.pause("publishing", "for the test")
    await shared_out([two], partitions)
    one.consumer._conditions.resume("publishing")
    await shared_out([one, two], partitions)


async def test_without_partitions_nobody_has_a_lease_and_afterwards_neither(
    broker: Broker, management: Management, engine: AsyncEngine, start: Start
) -> None:
    worker = await start()
    assert await make.count(engine, "ingest_leases") == 0
    partitions = await partition(management, broker, 2)
    await shared_out([worker], partitions)
    assert await make.count(engine, "ingest_leases") == 3
    await topology.apply(management, broker.settings)
    for queue in partitions:
        await broker.delete_queue(queue)
    await until(lambda: make.count(engine, "ingest_leases"), (0).__eq__)
    await broker.publish(body_of(uuid4()))
    await until(lambda: _settled(worker), (1).__eq__)
    assert worker.share == frozenset()


async def _settled(worker: Worker) -> int:
    return worker.consumer.counts["ingested"]


async def test_a_worker_that_may_not_write_leases_consumes_everything(
    broker: Broker, management: Management, engine: AsyncEngine, start: Start
) -> None:
    """Twice is better than not at all."""
    await make.execute(engine, "ALTER TABLE ingest_leases RENAME TO elsewhere")
    partitions = await partition(management, broker, 3)
    one, two = await start(), await start()
    await until(lambda: _shares(one, two), lambda found: found == [set(partitions)] * 2)


async def _shares(*workers: Worker) -> list[set[str]]:
    return [set(worker.share) for worker in workers]


# Consuming


async def test_a_viewers_batches_are_taken_in_their_order_while_the_shares_stay(
    broker: Broker, management: Management, start: Start
) -> None:
    partitions = await partition(management, broker, 6)
    order: dict[str, list[int]] = defaultdict(list)

    async def note(group: Sequence[Incoming]) -> list[Disposition | Busy]:
        await asyncio.sleep(0.002)  # so that workers overtake each other, where they can
        for incoming in group:
            assert incoming.client_session_uuid is not None
            order[incoming.viewer or ""].append(incoming.client_session_uuid.int)
        return await ingested(group)

    workers = [await start(note, group_max=3) for _ in range(3)]
    await shared_out(workers, partitions)
    for number in range(1, 201):
        viewer = VIEWERS[number % len(VIEWERS)]
        await broker.publish(body_of(UUID(int=number)), routing_key=amqp.attempts_key(viewer))

    async def taken() -> int:
        return sum(map(len, order.values()))

    await until(taken, (200).__eq__)
    assert all(numbers == sorted(numbers) for numbers in order.values())


async def test_a_batch_that_is_tried_again_comes_back_to_the_worker_of_its_viewer(
    broker: Broker, management: Management, start: Start
) -> None:
    partitions = await partition(management, broker, 4)
    tried: dict[str, list[int]] = defaultdict(list)

    def failing(number: int) -> Group:
        async def fail_once(group: Sequence[Incoming]) -> list[Disposition | Busy]:
            for incoming in group:
                tried[incoming.viewer or ""].append(number)
            if any(len(tried[incoming.viewer or ""]) == 1 for incoming in group):
                raise TransientFault("Once.")
            return await ingested(group)

        return fail_once

    workers = [await start(failing(number), group_max=1) for number in range(2)]
    await shared_out(workers, partitions)
    for viewer in VIEWERS:
        await broker.publish(body_of(uuid4()), routing_key=amqp.attempts_key(viewer))

    async def retried() -> list[int]:
        return [len(tried[viewer]) for viewer in VIEWERS]

    await until(retried, lambda found: found == [2] * len(VIEWERS))
    assert all(first == second for first, second in tried.values())
    assert {number for numbers in tried.values() for number in numbers} == {0, 1}


async def test_the_prefetch_is_divided_among_the_queues_down_to_two_groups_for_each(
    broker: Broker, management: Management, start: Start
) -> None:
    partitions = await partition(management, broker, 4)
    go = asyncio.Event()

    async def wait(group: Sequence[Incoming]) -> list[Disposition | Busy]:
        await go.wait()
        return await ingested(group)

    worker = await start(wait, prefetch=20, group_max=2)
    await shared_out([worker], partitions)
    await until(partial(_granted, worker), (20).__eq__)
    for number in range(120):
        viewer = f"viewer-{number}"
        await broker.publish(body_of(uuid4()), routing_key=amqp.attempts_key(viewer))

    async def in_hand() -> int:
        return worker.consumer.in_hand

    await until(in_hand, (16).__eq__)  # four of each partition, and nothing waits in the common one
    go.set()
    await until(partial(_settled, worker), (120).__eq__)
    await worker.end()
    small = await start(wait, prefetch=4, group_max=3)
    await shared_out([small], partitions)
    await until(partial(_granted, small), (20).__eq__)


async def test_the_prefetch_follows_the_number_of_queues(
    broker: Broker, management: Management, start: Start
) -> None:
    worker = await start()
    await broker.publish(body_of(uuid4()))
    await until(partial(_granted, worker), (200).__eq__)
    for number, prefetch in ((4, 500), (8, 900)):
        await topology.apply(management, broker.settings.model_copy(update={"partitions": number}))
        await until(partial(_granted, worker), prefetch.__eq__)


async def _granted(worker: Worker) -> int:
    return worker.consumer._hand.granted


@pytest.mark.parametrize("moment", ["before", "with the answer", "while cancelling"])
async def test_a_suspect_is_processed_alone_whatever_waits_in_other_partitions(
    moment: str,
    broker: Broker,
    management: Management,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    partitions = await partition(management, broker, 4)
    suspect = UUID(int=7)
    await broker.publish(body_of(suspect), routing_key=amqp.attempts_key(VIEWERS[0]))
    [where] = [queue for queue in partitions if await broker.depth(queue)]
    source = await (await broker.channel()).get_queue(where, ensure=False)
    workers: list[Worker] = []
    beside: list[int] = []
    is_waiting = False

    async def take() -> Any:
        return await until(partial(source.get, fail=False), lambda it: it is not None)

    async def look(group: Sequence[Incoming]) -> list[Disposition | Busy]:
        if any(incoming.client_session_uuid == suspect for incoming in group):
            await asyncio.sleep(0.6)  # what could arrive meanwhile would
            beside.append(workers[0].consumer.in_hand)
        return await ingested(group)

    async def publish_others() -> None:
        for number in range(80):
            viewer = f"viewer-{number}"
            await broker.publish(body_of(uuid4()), routing_key=amqp.attempts_key(viewer))

    for _ in range(2):  # as if workers had died of it
        await (await take()).reject(requeue=True)
    message = await take()
    consume, cancel = Subscription.consume, Subscription.cancel

    async def consume_until_it_arrives(
        self: Subscription, prefetch: int, queues: Collection[str] = ()
    ) -> None:
        hand = workers[0].consumer._hand
        before = hand.arrivals
        await consume(self, prefetch, queues)
        if where in queues and hand.granted == 1 and not beside:
            await workers[0].consumer.changed.until(lambda: hand.arrivals > before, PATIENCE)

    async def cancel_after_it_arrived(self: Subscription) -> None:
        nonlocal is_waiting
        hand = workers[0].consumer._hand
        if where in self._tags and not is_waiting:
            assert (hand.granted, len(hand)) == (1, 0)
            is_waiting = True
            await message.reject(requeue=True)
            assert await workers[0].consumer.changed.until(lambda: len(hand) == 1, PATIENCE)
            await publish_others()
        await cancel(self)

    if moment != "while cancelling":
        await message.reject(requeue=True)
        await publish_others()
    workers.append(await start(look))
    if moment == "with the answer":
        monkeypatch.setattr(Subscription, "consume", consume_until_it_arrives)
    elif moment == "while cancelling":
        monkeypatch.setattr(Subscription, "cancel", cancel_after_it_arrived)
    await until(lambda: _settled(workers[0]), (81).__eq__)
    assert beside == [1]
    await until(partial(_granted, workers[0]), (500).__eq__)  # 100 for each queue


async def test_after_an_error_of_the_broker_each_queue_gets_its_turn(
    broker: Broker, management: Management, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consuming, "_QUIET", 0.05)
    partitions = await partition(management, broker, 3)
    most = 0

    async def look(group: Sequence[Incoming]) -> list[Disposition | Busy]:
        nonlocal most
        most = max(most, worker.consumer.in_hand)
        return await ingested(group)

    worker = await start(look)
    worker.consumer._hand.be_careful()
    worker.consumer._hand.prefetch = 1
    await shared_out([worker], partitions)
    for number in range(60):
        viewer = f"viewer-{number}"
        await broker.publish(body_of(uuid4()), routing_key=amqp.attempts_key(viewer))
    await until(lambda: _settled(worker), (60).__eq__)
    assert most == 1


# Old and new workers, and another number of partitions under load


async def test_old_and_new_workers_lose_and_double_nothing_while_the_number_changes(
    broker: Broker, management: Management, engine: AsyncEngine, start: Start
) -> None:
    [question] = await make.publish(engine)
    await topology.apply(management, broker.settings)
    published: list[UUID] = []
    stop = asyncio.Event()

    def ingest() -> Ingest:
        settings = broker.settings
        return Ingest(engine, settings.policy(), turns=settings.turns())

    async def viewers() -> None:
        while not stop.is_set():
            viewer = VIEWERS[len(published) % len(VIEWERS)]
            uuid = uuid4()
            body = body_of(uuid, question.pub_id)
            await broker.publish(body, routing_key=amqp.attempts_key(viewer))
            published.append(uuid)

    publishing = asyncio.create_task(viewers())
    old = await start(ingest(), is_old=True)
    new = [await start(ingest(), group_max=10), await start(ingest(), group_max=10)]
    for number in (4, 2, 1):
        partitions = await partition(management, broker, number)
        before = len(published)
        if number > 1:
            await until(partial(_used, new, partitions), bool)
        await until(partial(_more, published, before), bool)
    stop.set()
    await publishing

    await until(lambda: make.count(engine, "ingest_inbox"), len(published).__eq__)
    assert await make.count(engine, "study_question_attempts") == len(published)
    [progress] = (await make.progress(engine)).values()
    assert progress["attempts_count"] == len(published)
    assert old.consumer.counts["ingested"]
    assert all(worker.consumer.counts["ingested"] for worker in new)
    assert await make.count(engine, "ingest_dead_letters") == 0


async def _used(workers: Collection[Worker], partitions: Collection[str]) -> bool:
    return set(partitions) <= {each for worker in workers for each in worker.share}


async def _more(published: list[UUID], than: int) -> bool:
    return len(published) > than + 50


# Taking over


@pytest.mark.parametrize("time_", range(int(os.environ.get("TEST_TAKE_OVERS", "1"))))
async def test_a_killed_worker_with_the_busiest_partition_is_replaced_within_ten_seconds(
    time_: int, broker: Broker, management: Management, engine: AsyncEngine, database_url: str
) -> None:
    settings = broker.settings.model_copy(
        update={"database_url": database_url, "partitions": 4, "consumer_check_interval": 5.0}
    )
    partitions = await partition(management, broker, 4)
    [question] = await make.publish(engine)
    stop = asyncio.Event()
    key = amqp.attempts_key(VIEWERS[0])

    async def viewer() -> None:
        while not stop.is_set():
            await broker.publish(body_of(uuid4(), question.pub_id), routing_key=key)

    async def commits() -> int:
        return await make.count(engine, "ingest_inbox")

    async def holders() -> dict[str, str]:
        async with transaction(engine) as connection:
            found = await leases.live(connection)
        return {lease.queue: lease.worker for lease in found if lease.queue in partitions}

    async with running(settings) as one, running(settings) as two:
        await until(holders, lambda found: len(set(found.values())) == 2 and len(found) == 4)
        await broker.publish(body_of(uuid4(), question.pub_id), routing_key=key)
        await until(commits, (1).__eq__)
        busiest = await _busiest(management, partitions)
        owner = int((await holders())[busiest].split(":")[1])
        publishing = asyncio.create_task(viewer())
        await until(commits, lambda count: count > 20)
        victim = one if one.process.pid == owner else two
        victim.process.kill()
        await victim.process.wait()
        at_death, died_at = await commits(), time.monotonic()
        await until(commits, lambda count: count > at_death, 10)
        took = time.monotonic() - died_at
        stop.set()
        await publishing
        print(f"taken over after {took:.1f} s")


async def _busiest(management: Management, partitions: Collection[str]) -> str:
    """The partition through which something went."""

    async def look() -> list[str]:
        return [
            queue["name"]
            for queue in await management.queues(topology.QUEUES)
            if queue["name"] in partitions
            and (queue.get("message_stats") or {}).get("publish", 0) > 0
        ]

    [busiest] = await until(look, bool)
    return str(busiest)
