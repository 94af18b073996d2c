"""The consumer on a real broker: every way in which a delivery can be settled, seen in the queues.

A script (`Script`) replaces the transaction, because these tests are about what the consumer does
with each disposition. The real transaction has its own tests.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from aio_pika import Message
from aiormq.exceptions import ChannelAccessRefused
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from schemas.errors import Rejection
from schemas.words import RejectReason
from tests.broker_fixtures import PATIENCE, VIEWER, Broker, until
from worker.broker import field_table, topology
from worker.broker.management import Management
from worker.broker.publisher import Publisher
from worker.consume.consumer import Check, Consumer
from worker.consume.in_hand import Hand
from worker.domain.dispositions import Busy, Disposition, Duplicate, Ingested, Rejected
from worker.errors import BrokerAway, DatabaseAway, TransientFault
from worker.health import Watch
from worker.ingest.resolve import Incoming
from worker.settings import Settings

pytestmark = pytest.mark.broker

UUIDS = [UUID(int=n) for n in range(1, 400)]


def body_of(uuid: UUID) -> str:
    attempt = {"question_pub_id": "q-1", "selected_choice": 1}
    return json.dumps({"client_session_uuid": str(uuid), "attempts": [attempt]})


def ingested(incoming: Incoming) -> Disposition:
    """What the real transaction makes of a good batch, and of a rejection that it is given."""
    if isinstance(incoming.content, Rejection):
        return Rejected(incoming.content.reason, incoming.content.detail)
    return Ingested(datetime.now(UTC))


class Script:
    """Stands for the transaction: remembers the groups, and does with each what it is told."""

    def __init__(self) -> None:
        self.groups: list[list[Incoming]] = []
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        self.away = False
        self.decide: Callable[[Incoming], Disposition | Busy] = ingested

    async def __call__(self, group: Sequence[Incoming]) -> list[Disposition | Busy]:
        self.groups.append([*group])
        self.began.set()
        await self.go.wait()
        if self.away:
            raise DatabaseAway("The database is away.")
        return [self.decide(incoming) for incoming in group]

    async def trial(self) -> None:
        if self.away:
            raise DatabaseAway("The database is away.")

    @property
    def sizes(self) -> list[int]:
        return [len(group) for group in self.groups]


@pytest.fixture
def script() -> Script:
    return Script()


Start = Callable[..., Awaitable[Consumer]]


@pytest.fixture
async def start(broker: Broker, publisher: Publisher, script: Script) -> AsyncIterator[Start]:
    """Starts consumers, with settings changed; each is drained in the end."""
    running: list[tuple[Consumer, asyncio.Task[None]]] = []

    async def start(
        *,
        gate_open: Check | None = None,
        management: Any = None,
        wait: bool = True,
        **changed: Any,
    ) -> Consumer:
        consumer = Consumer(
            broker.settings.model_copy(update=changed),
            script,
            publisher,
            trial=script.trial,
            gate_open=gate_open,
            management=management,
        )
        running.append((consumer, asyncio.create_task(consumer.run())))
        if wait:
            await reach(consumer, lambda: consumer.state == "consuming")
        return consumer

    yield start
    script.go.set()
    for consumer, task in running:
        await consumer.drain()
        await task


async def reach(consumer: Consumer, condition: Callable[[], bool]) -> None:
    seen = f"{consumer.state}, {consumer.in_hand} in hand, {dict(consumer.counts)}"
    if not await consumer.changed.until(condition, PATIENCE):
        pytest.fail(f"not reached from: {seen}; at: {consumer.state}, {dict(consumer.counts)}")


async def settled(consumer: Consumer, **counts: int) -> None:
    """Waits until the consumer has counted so many."""
    await reach(
        consumer, lambda: all(consumer.counts[word] >= number for word, number in counts.items())
    )
    assert {word: consumer.counts[word] for word in counts} == counts


async def in_hand(
    count: int, broker: Broker, start: Start, script: Script, *, group_max: int
) -> Consumer:
    """A consumer of one lane with so many batches: the first in work until `script.go`."""
    script.go.clear()
    consumer = await start(lanes=1, group_max=group_max)
    for uuid in UUIDS[:count]:
        await broker.publish(body_of(uuid))
    await reach(consumer, lambda: consumer.in_hand == count)
    return consumer


@asynccontextmanager
async def logged(*events: str) -> AsyncIterator[list[dict[str, Any]]]:
    """The log lines of these events; read them after the block."""
    found: list[dict[str, Any]] = []
    with capture_logs() as lines:
        yield found
    found += [dict(line) for line in lines if line["event"] in events]


# Dispositions


async def test_ingested_and_duplicate_are_acked(
    broker: Broker, start: Start, script: Script
) -> None:
    script.decide = lambda incoming: (
        Duplicate() if incoming.client_session_uuid == UUIDS[1] else ingested(incoming)
    )
    async with logged("delivery.settled") as lines:
        consumer = await start()
        await broker.publish(body_of(UUIDS[0]))
        await settled(consumer, ingested=1)
        await broker.publish(body_of(UUIDS[1]))
        await settled(consumer, duplicate=1)

    assert consumer.in_hand == 0
    await consumer.drain()  # what was not acked would come back to the queue
    assert await broker.depth(amqp.ATTEMPTS_QUEUE) == 0
    assert await broker.depth(amqp.DEAD_QUEUE) == 0
    assert {key: lines[0][key] for key in lines[0] if key != "log_level"} == {
        "event": "delivery.settled",
        "client_session_uuid": str(UUIDS[0]),
        "viewer": VIEWER,
        "disposition": "ingested",
        "reason": None,
        "retries": 0,
        "redelivered": False,
        "delivery_count": 0,
        "group_size": 1,
        "version": "1.0",
        "times_replaced": 0,
    }
    assert [line["disposition"] for line in lines] == ["ingested", "duplicate"]


async def test_rejected_is_acked_once_it_is_decided_and_needs_no_broker(
    broker: Broker, start: Start, script: Script, management: Management
) -> None:
    # Where a letter goes is the transaction's affair: here nothing of the broker's is left for it.
    for queue in (amqp.DEAD_QUEUE, *map(topology.retry_queue, broker.settings.retry_delays)):
        await broker.delete_queue(queue)
    script.decide = lambda _: Rejected(RejectReason.UUID_REUSED, "Another batch has this uuid.")
    consumer = await start()
    # The broker takes the property user_id only from that very login.
    viewer = management.user
    await broker.publish(
        body_of(UUIDS[0]),
        routing_key=amqp.attempts_key(viewer),
        headers={"client-session-uuid": str(UUIDS[0]), "tries": 3, "study-reason": "forged"},
        user_id=viewer,
        type=amqp.ATTEMPT_BATCH_TYPE,
        content_type="application/json",
        app_id="phone",
        expiration=60,
    )
    await settled(consumer, rejected=1)

    [[incoming]] = script.groups
    assert incoming.original is not None
    assert incoming.original.message.body == body_of(UUIDS[0]).encode()
    assert incoming.original.routing_key == amqp.attempts_key(viewer)
    kept = field_table.values_in(incoming.original.message.field_table())
    assert kept.pop("message_id")
    assert kept.pop("headers") == {
        "client-session-uuid": str(UUIDS[0]),
        "tries": 3,
        "study-reason": "forged",
    }
    assert kept == {
        "content_type": "application/json",
        "delivery_mode": 2,
        "expiration": "60000",
        "type": amqp.ATTEMPT_BATCH_TYPE,
        "user_id": viewer,
        "app_id": "phone",
        "priority": 0,
    }
    await consumer.drain()
    assert await broker.depth(amqp.ATTEMPTS_QUEUE) == 0


async def test_undecodable_is_told_through_the_transaction(
    broker: Broker, start: Start, script: Script
) -> None:
    consumer = await start()
    await broker.publish("{", headers={amqp.CLIENT_SESSION_UUID_HEADER: str(UUIDS[0])})
    await settled(consumer, rejected=1)

    [[incoming]] = script.groups
    assert isinstance(incoming.content, Rejection)
    assert incoming.content.reason is RejectReason.MALFORMED
    assert (incoming.viewer, incoming.client_session_uuid) == (VIEWER, UUIDS[0])


async def test_deferred_goes_round_the_ladder_and_keeps_its_identity(
    broker: Broker, start: Start, script: Script
) -> None:
    def fail_twice(incoming: Incoming) -> Disposition:
        if len(script.groups) <= 2:
            raise TransientFault("The transaction failed with SQLSTATE 40P01.")
        return ingested(incoming)

    script.decide = fail_twice
    consumer = await start()
    async with logged("delivery.settled") as lines:
        await broker.publish(body_of(UUIDS[0]), headers={"traceparent": f"00-{1:032x}-{2:016x}-01"})
        await settled(consumer, deferred=2, ingested=1)

    assert [line["retries"] for line in lines] == [0, 1, 2]
    assert len({incoming for [incoming] in script.groups}) == 1  # the same in every respect
    assert script.groups[0][0].viewer == VIEWER
    assert script.groups[0][0].traceparent == f"00-{1:032x}-{2:016x}-01"
    for delay in broker.settings.retry_delays:
        assert await broker.depth(topology.retry_queue(delay)) == 0


async def test_a_copy_carries_the_body_and_headers_of_ours_and_nothing_else(
    broker: Broker, start: Start, script: Script, management: Management
) -> None:
    def fail(incoming: Incoming) -> Disposition:
        raise TransientFault("The transaction failed with SQLSTATE 40P01.")

    script.decide = fail
    viewer = management.user
    await start(retry_delays=(60.0,), wait=False)
    settings = broker.settings.model_copy(update={"retry_delays": (60.0,)})
    await topology.apply(management, settings)
    await broker.publish(
        body_of(UUIDS[0]),
        routing_key=amqp.attempts_key(viewer),
        headers={"traceparent": f"00-{1:032x}-{2:016x}-01", "x-odd": 1, "CC": [], "mine": "x"},
        user_id=viewer,
        type=f"{amqp.ATTEMPT_BATCH_TYPE}.7",
        reply_to="somewhere",
        correlation_id="c",
        app_id="phone",
        priority=3,
    )
    copy = await broker.take(topology.retry_queue(60.0))

    assert copy.body == body_of(UUIDS[0]).encode()
    assert copy.headers == {
        amqp.VIEWER_HEADER: viewer,
        amqp.ROUTING_KEY_HEADER: amqp.attempts_key(viewer),
        amqp.RETRIES_HEADER: 1,
        amqp.TRACEPARENT_HEADER: f"00-{1:032x}-{2:016x}-01",
        amqp.REASON_HEADER: "malformed",
        amqp.DETAIL_HEADER: "The message has a CC or BCC header: publish each batch once, under one"
        " key.",
    }
    names = (
        *("content_type", "content_encoding", "correlation_id", "reply_to", "expiration"),
        *("user_id", "app_id", "timestamp", "type", "delivery_mode"),
    )
    assert [copy.properties[name] or None for name in names] == [
        *[None] * 8,
        f"{amqp.ATTEMPT_BATCH_TYPE}.7",
        2,
    ]


async def test_what_was_refused_stays_refused_while_it_is_tried_again(
    broker: Broker, start: Start, script: Script
) -> None:
    # Its copy has lost the header for which it was refused.
    def fail_once(incoming: Incoming) -> Disposition:
        if len(script.groups) == 1:
            raise TransientFault("The transaction failed with SQLSTATE 40P01.")
        return ingested(incoming)

    script.decide = fail_once
    consumer = await start()
    await broker.publish(body_of(UUIDS[0]), headers={"CC": []})
    await settled(consumer, deferred=1, rejected=1)

    [[first], [second]] = script.groups
    assert isinstance(first.content, Rejection)
    assert isinstance(second.content, Rejection)
    assert (first.content.reason, first.content.detail) == (
        second.content.reason,
        second.content.detail,
    )


async def test_a_copy_that_the_broker_never_takes_is_tried_bare_and_pauses_nobody(
    broker: Broker, start: Start, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[dict[str, Any]] = []
    send = Publisher.send

    async def refuse(
        publisher: Publisher, exchange: str, routing_key: str, message: Message
    ) -> None:
        if json.loads(message.body)["client_session_uuid"] == str(UUIDS[0]):
            refused.append(dict(message.headers))
            # What a broker does to a message that is longer than it allows.
            message = Message(message.body, message_id=message.message_id, user_id="somebody")
        await send(publisher, exchange, routing_key, message)

    def never(incoming: Incoming) -> Disposition:
        if isinstance(incoming.content, AttemptBatch):
            raise TransientFault("The transaction failed with SQLSTATE 40P01.")
        return ingested(incoming)

    monkeypatch.setattr(Publisher, "send", refuse)
    script.decide = never
    async with logged("consumer.paused") as paused:
        consumer = await start()
        traced = {"traceparent": f"00-{1:032x}-{2:016x}-01"}
        for uuid in UUIDS[:3]:
            await broker.publish(body_of(uuid), headers=traced)
        await settled(consumer, rejected=3, deferred=4)

    assert paused == []
    assert [amqp.TRACEPARENT_HEADER in headers for headers in refused] == [True, False]
    assert consumer.counts["given_back"] == 0
    told = {group[0].client_session_uuid: group[0].content for group in script.groups}
    assert "takes no copy" in told[UUIDS[0]].detail  # type: ignore[union-attr]
    assert "failed 3 times" in told[UUIDS[1]].detail  # type: ignore[union-attr]


async def test_retries_exhausted_is_told(broker: Broker, start: Start, script: Script) -> None:
    def never(incoming: Incoming) -> Disposition:
        if isinstance(incoming.content, AttemptBatch):
            raise TransientFault("The transaction failed with SQLSTATE 40P01.")
        return ingested(incoming)

    script.decide = never
    consumer = await start()
    await broker.publish(body_of(UUIDS[0]))
    await settled(consumer, deferred=2, rejected=1)

    told = script.groups[-1][0]
    assert isinstance(told.content, Rejection)
    assert told.content.reason is RejectReason.RETRIES_EXHAUSTED
    assert (told.viewer, told.client_session_uuid) == (VIEWER, UUIDS[0])
    assert told.original is not None
    assert told.original.message.body == body_of(UUIDS[0]).encode()
    assert told.original.routing_key == amqp.attempts_key(VIEWER)


async def test_a_batch_that_can_not_even_be_kept_goes_to_the_brokers_limit(
    bare_broker: Broker, management: Management, script: Script
) -> None:
    settings = bare_broker.settings.model_copy(update={"delivery_limit": 5})
    await topology.apply(management, settings)

    def never(incoming: Incoming) -> Disposition:
        if incoming.client_session_uuid == UUIDS[0]:
            raise ValueError("a fault of ours")
        return ingested(incoming)

    script.decide = never
    async with Publisher(settings) as publisher, logged("delivery.failed"):
        consumer = Consumer(settings, script, publisher, trial=script.trial)
        running = asyncio.create_task(consumer.run())
        await bare_broker.publish(body_of(UUIDS[0]))
        await bare_broker.publish(body_of(UUIDS[1]))
        parked = await bare_broker.take(amqp.DEAD_QUEUE)
        await settled(consumer, deferred=2, ingested=1, rejected=0)
        await consumer.drain()
        await running
    assert parked.body == body_of(UUIDS[0]).encode()
    assert parked.headers["x-death"][0]["reason"] == "delivery_limit"


# Groups


async def test_deliveries_that_have_arrived_form_one_group_up_to_the_maximum(
    broker: Broker, start: Start, script: Script
) -> None:
    consumer = await in_hand(8, broker, start, script, group_max=5)
    script.go.set()
    await settled(consumer, ingested=8)

    assert script.sizes == [1, 5, 2]  # the first was not kept waiting for company


async def test_a_busy_batch_comes_first_in_the_next_group_until_it_has_waited_enough(
    broker: Broker, start: Start, script: Script
) -> None:
    busy = UUIDS[1]

    def decide(incoming: Incoming) -> Disposition | Busy:
        is_busy = incoming.client_session_uuid == busy and incoming.can_come_again
        return Busy() if is_busy else ingested(incoming)

    def passed_over() -> float:
        return REGISTRY.get_sample_value("study_ingest_batches_busy_total") or 0

    script.decide, before = decide, passed_over()
    consumer = await in_hand(12, broker, start, script, group_max=3)
    script.go.set()
    await settled(consumer, ingested=12)

    groups = [[UUIDS.index(each.client_session_uuid) for each in g] for g in script.groups]  # type: ignore[arg-type]
    assert groups == [[0], [1, 2, 3], [1, 4, 5], [1, 6, 7], [1, 8, 9], [10, 11]]
    assert passed_over() - before == 3
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 0)
    assert consumer.in_hand == 0


async def test_draining_gives_back_what_is_found_busy_meanwhile(
    broker: Broker, start: Start, script: Script
) -> None:
    script.decide = lambda _: Busy()
    script.go.clear()
    consumer = await start()
    await broker.publish(body_of(UUIDS[0]))
    await script.began.wait()
    drained = asyncio.create_task(consumer.drain())
    await reach(consumer, lambda: consumer.state == "draining" and not consumer.is_subscribed)
    script.go.set()
    await drained

    assert consumer.counts == {"given_back": 1}
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 1)


async def test_one_bad_batch_costs_only_itself(
    broker: Broker, start: Start, script: Script
) -> None:
    def fail_one(incoming: Incoming) -> Disposition:
        is_batch = isinstance(incoming.content, AttemptBatch)
        if is_batch and incoming.client_session_uuid == UUIDS[2]:
            raise ValueError("a constraint of ours")
        return ingested(incoming)

    script.decide = fail_one
    script.go.clear()
    consumer = await start(lanes=1)
    for uuid in UUIDS[:5]:
        await broker.publish(body_of(uuid))
    await reach(consumer, lambda: consumer.in_hand == 5)
    script.go.set()
    await settled(consumer, ingested=4, deferred=2, rejected=1)

    assert script.sizes[:6] == [1, 4, 1, 1, 1, 1]
    assert script.groups[-1][0].client_session_uuid == UUIDS[2]


async def return_often(broker: Broker, uuid: UUID, times: int) -> None:
    """Publishes a batch and returns it, as a worker that dies does."""
    await broker.publish(body_of(uuid))
    queue = await (await broker.channel()).get_queue(amqp.ATTEMPTS_QUEUE, ensure=False)
    for _ in range(times):
        message = await until(lambda: queue.get(fail=False), lambda it: it is not None)
        await message.reject(requeue=True)
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 1)


async def test_a_batch_delivered_often_runs_with_nothing_else_in_hand(
    broker: Broker, start: Start, script: Script
) -> None:
    await return_often(broker, UUIDS[0], 3)
    for uuid in UUIDS[1:4]:
        await broker.publish(body_of(uuid))
    async with logged("delivery.settled") as lines:
        consumer = await start(lanes=2, alone_after=3)
        await settled(consumer, ingested=4)

    first = lines[0]
    assert first["client_session_uuid"] == str(UUIDS[0])
    assert (first["delivery_count"], first["group_size"]) == (3, 1)
    assert {line["delivery_count"] for line in lines[1:]} == {0}


async def test_a_suspect_among_others_waits_for_them_and_is_delivered_again_alone(
    broker: Broker, start: Start, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.consume.consumer._GATE_INTERVAL", 0.05)
    gate = asyncio.Event()
    gate.set()

    async def gate_open() -> bool:
        return gate.is_set()

    script.go.clear()
    consumer = await start(lanes=1, alone_after=3, gate_open=gate_open)
    await broker.publish(body_of(UUIDS[1]))
    await script.began.wait()
    await reach(consumer, lambda: consumer.is_subscribed)
    gate.clear()  # while this worker is busy, others die of the next
    await reach(consumer, lambda: consumer.state == "paused" and not consumer.is_subscribed)
    await return_often(broker, UUIDS[0], 3)
    await broker.publish(body_of(UUIDS[2]))
    gate.set()
    await reach(consumer, lambda: consumer.in_hand == 3)
    async with logged("delivery.settled") as lines:
        script.go.set()
        await settled(consumer, ingested=3)

    settled_in_order = [UUID(line["client_session_uuid"]) for line in lines]
    assert settled_in_order == [UUIDS[1], UUIDS[2], UUIDS[0]]
    assert script.sizes == [1, 1, 1]
    assert consumer.counts["given_back"] == 1


async def live_and_die(settings: Settings, poisons: set[UUID]) -> dict[UUID, int]:
    """Runs a worker until a poison kills it, or nothing comes.

    Returns what it settled, and how often that had been returned before.
    """

    async def ingest(group: Sequence[Incoming]) -> list[Disposition | Busy]:
        if poisons & {incoming.client_session_uuid for incoming in group}:
            # It takes a moment to die: time for neighbors to arrive, where they do.
            await consumer.changed.until(lambda: consumer.in_hand == 16, timeout=0.05)
            life.cancel()
            raise asyncio.CancelledError  # nothing is settled
        return [ingested(incoming) for incoming in group]

    async def trial() -> None:
        pass

    async with Publisher(settings) as publisher:
        consumer = Consumer(settings, ingest, publisher, trial=trial)
        life = asyncio.create_task(consumer.run())
        async with logged("delivery.settled") as lines:
            await consumer.changed.until(lambda: consumer.state == "stopped", timeout=0.5)
            life.cancel()
            await asyncio.wait([life])
    return {UUID(line["client_session_uuid"]): line["delivery_count"] for line in lines}


async def test_batches_that_kill_workers_are_parked_and_take_nobody_along(
    bare_broker: Broker, management: Management
) -> None:
    broker = bare_broker
    settings = broker.settings.model_copy(update={"delivery_limit": 8, "group_max": 1, "lanes": 1})
    await topology.apply(management, settings)
    poisons = {UUIDS[3], UUIDS[4]}
    others = {*UUIDS[:3], *UUIDS[5:20]}
    for uuid in UUIDS[:20]:
        await broker.publish(body_of(uuid))
    done: dict[UUID, int] = {}
    for _ in range(40):
        done |= await live_and_die(settings, poisons)
        if done.keys() == others and await broker.depth(amqp.DEAD_QUEUE) == 2:
            break

    assert done.keys() == others
    assert max(done.values()) <= settings.alone_after + 1
    parked = [await broker.take(amqp.DEAD_QUEUE) for _ in poisons]
    assert {UUID(json.loads(each.body)["client_session_uuid"]) for each in parked} == poisons
    assert await broker.depth(amqp.DEAD_QUEUE) == 0


# Pauses


async def test_a_database_that_is_away_pauses_and_nothing_is_counted(
    broker: Broker, start: Start, script: Script
) -> None:
    script.go.clear()
    consumer = await start(lanes=1, group_max=2)
    async with logged("consumer.paused") as paused:
        for uuid in UUIDS[:4]:
            await broker.publish(body_of(uuid))
        await reach(consumer, lambda: consumer.in_hand == 4)
        script.away = True
        script.go.set()
        await reach(consumer, lambda: consumer.state == "paused" and not consumer.is_subscribed)
        await broker.publish(body_of(UUIDS[4]))
        await broker.until_depth(amqp.ATTEMPTS_QUEUE, 1)
        assert consumer.in_hand == 4
    async with logged("consumer.resumed", "delivery.settled") as lines:
        script.away = False
        await settled(consumer, ingested=5)
        await reach(consumer, lambda: consumer.state == "consuming")

    assert len(paused) == 1
    assert lines.pop(0)["event"] == "consumer.resumed"
    assert consumer.counts["given_back"] == 0
    assert {(line["redelivered"], line["delivery_count"]) for line in lines} == {(False, 0)}


async def test_deliveries_held_too_long_are_returned_once(
    broker: Broker, start: Start, script: Script
) -> None:
    script.away = True
    consumer = await start(lanes=1, group_max=1, hold_timeout=0.3)
    await broker.publish(body_of(UUIDS[0]))
    await script.began.wait()
    await reach(consumer, lambda: consumer.state == "paused")
    await settled(consumer, given_back=1)
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 1)
    assert consumer.state == "paused"
    assert consumer.in_hand == 0
    script.away = False
    await settled(consumer, ingested=1)

    assert consumer.counts["given_back"] == 1


async def test_pauses_without_number_never_fill_the_hands_beyond_the_prefetch(
    broker: Broker, start: Start, script: Script
) -> None:
    """The trial succeeds each time, and the next group fails: a disk that is full, for one."""
    most, failures = 0, 0

    def decide(incoming: Incoming) -> Disposition:
        nonlocal most, failures
        most = max(most, consumer.in_hand)
        if failures < 24:
            failures += 1
            raise DatabaseAway("The database is away.")
        return ingested(incoming)

    script.decide = decide
    for uuid in UUIDS[:40]:
        await broker.publish(body_of(uuid))
    consumer = await start(prefetch=8, group_max=2, lanes=1, retry_delays=(0.1,) * 9)
    await settled(consumer, ingested=40)

    assert failures == 24
    assert most <= 8


async def test_a_closed_gate_hands_everything_unstarted_back(
    broker: Broker, start: Start, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.consume.consumer._GATE_INTERVAL", 0.05)
    gate = asyncio.Event()

    async def gate_open() -> bool:
        return gate.is_set()

    for uuid in UUIDS[:3]:
        await broker.publish(body_of(uuid))
    consumer = await start(gate_open=gate_open, wait=False, lanes=1, group_max=1)
    await reach(consumer, lambda: consumer.state == "paused")
    assert await broker.consumers() == 0

    script.go.clear()
    gate.set()
    await reach(consumer, lambda: consumer.in_hand == 3)
    gate.clear()
    await settled(consumer, given_back=2)
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 2)
    script.go.set()
    await settled(consumer, ingested=1)  # what was begun is finished
    gate.set()
    await settled(consumer, ingested=3)


async def test_disabled_by_the_settings_leaves_every_message(
    broker: Broker, start: Start, script: Script
) -> None:
    await broker.publish(body_of(UUIDS[0]))
    consumer = await start(enabled=False, wait=False)
    await reach(consumer, lambda: consumer.state == "paused")
    await consumer.drain()

    assert script.groups == []
    assert await broker.depth(amqp.ATTEMPTS_QUEUE) == 1


# Copies that the broker does not confirm


def failing(*uuids: UUID) -> Callable[[Incoming], Disposition]:
    """Each of these batches fails at its first try."""
    left = {*uuids}

    def decide(incoming: Incoming) -> Disposition:
        if incoming.client_session_uuid in left:
            left.remove(incoming.client_session_uuid)
            raise TransientFault("The transaction failed with SQLSTATE 40P01.")
        return ingested(incoming)

    return decide


@pytest.fixture
async def heal(broker: Broker, management: Management) -> Callable[[], Awaitable[object]]:
    """The queue in which batches wait for their first retry is missing until this is called."""
    await broker.delete_queue(topology.retry_queue(broker.settings.retry_delays[0]))
    return lambda: topology.apply(management, broker.settings)


async def test_others_pass_a_batch_whose_copy_is_not_confirmed(
    broker: Broker, start: Start, script: Script, heal: Callable[[], Awaitable[object]]
) -> None:
    script.decide = failing(UUIDS[0])
    async with logged("copy.unconfirmed", "consumer.paused") as lines:
        consumer = await start()
        for uuid in UUIDS[:5]:
            await broker.publish(body_of(uuid))
        await settled(consumer, ingested=4)
        await reach(consumer, lambda: consumer.unconfirmed == 1)
        assert (consumer.in_hand, consumer.state) == (1, "consuming")
        impatient = broker.settings.model_copy(update={"stuck_timeout": 1e-9})
        assert Watch(consumer, impatient).live().ok  # it waits for the broker and is not stuck
        assert consumer.counts["deferred"] == 0  # nothing is acked before its copy is confirmed
        await heal()
        await settled(consumer, deferred=1, ingested=5)

    assert (consumer.in_hand, consumer.unconfirmed) == (0, 0)
    assert consumer.counts["given_back"] == 0
    assert [(line["event"], line["client_session_uuid"]) for line in lines] == [
        ("copy.unconfirmed", str(UUIDS[0]))
    ]


async def test_consuming_pauses_while_many_copies_are_not_confirmed(
    broker: Broker, start: Start, script: Script, heal: Callable[[], Awaitable[object]]
) -> None:
    script.decide = failing(*UUIDS[:2])
    consumer = await start(prefetch=8)
    for uuid in UUIDS[:2]:
        await broker.publish(body_of(uuid))
    await reach(consumer, lambda: consumer.state == "paused" and not consumer.is_subscribed)
    await broker.publish(body_of(UUIDS[2]))
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 1)
    assert (consumer.in_hand, consumer.unconfirmed) == (2, 2)
    assert "run `study-ingest topology`" in (consumer.why_paused or "")
    await heal()
    await settled(consumer, deferred=2, ingested=3)
    await reach(consumer, lambda: consumer.state == "consuming")

    assert consumer.counts["given_back"] == 0


async def test_many_bytes_that_are_not_confirmed_pause_as_well(
    broker: Broker,
    start: Start,
    script: Script,
    heal: Callable[[], Awaitable[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.consume.in_hand.BYTES_IN_HAND", 400_000)
    script.decide = failing(*UUIDS[:2])
    consumer = await start()
    for uuid in UUIDS[:2]:
        await broker.publish(body_of(uuid) + " " * 60_000)
    await reach(consumer, lambda: consumer.state == "paused")
    assert consumer.unconfirmed == 2
    await heal()
    await settled(consumer, deferred=2, ingested=2)


@pytest.mark.parametrize("how", ["a suspect", "large bodies"])
async def test_others_pass_it_also_where_they_arrive_one_at_a_time(
    how: str,
    broker: Broker,
    start: Start,
    script: Script,
    heal: Callable[[], Awaitable[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if how == "a suspect":
        await return_often(broker, UUIDS[0], 3)
    else:
        monkeypatch.setattr(Hand, "_is_large", lambda *_: True)
        await broker.publish(body_of(UUIDS[0]))
    script.decide = failing(UUIDS[0])
    for uuid in UUIDS[1:5]:
        await broker.publish(body_of(uuid))
    consumer = await start(alone_after=3)
    await settled(consumer, ingested=4)
    assert (consumer.in_hand, consumer.unconfirmed) == (1, 1)
    await heal()
    await settled(consumer, deferred=1, ingested=5)

    assert consumer.counts["given_back"] == 0


async def test_a_batch_whose_copy_is_not_confirmed_is_returned_in_time(
    broker: Broker, start: Start, script: Script, heal: Callable[[], Awaitable[object]]
) -> None:
    script.decide = failing(UUIDS[0])
    consumer = await start(hold_timeout=0.3)
    await broker.publish(body_of(UUIDS[0]))
    await settled(consumer, given_back=1, ingested=1)

    assert (consumer.in_hand, consumer.unconfirmed) == (0, 0)


async def test_draining_returns_what_is_not_confirmed(
    broker: Broker, start: Start, script: Script, heal: Callable[[], Awaitable[object]]
) -> None:
    script.decide = failing(*UUIDS[:2])
    consumer = await start()
    for uuid in UUIDS[:2]:
        await broker.publish(body_of(uuid))
    await reach(consumer, lambda: consumer.unconfirmed == 2)
    async with logged("consumer.drain_timed_out") as late:
        await consumer.drain()

    assert late == []
    assert consumer.counts == {"given_back": 2}
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 2)


# Losses


async def test_a_stale_ack_is_no_fault_and_the_message_comes_again(
    broker: Broker, start: Start, script: Script
) -> None:
    script.go.clear()
    consumer = await start(lanes=1)
    await broker.publish(body_of(UUIDS[0]))
    await script.began.wait()
    await broker.publish(body_of(UUIDS[1]))
    await reach(consumer, lambda: consumer.in_hand == 2)
    async with logged("consumer.restored") as restored:
        await broker.cut("consumer")
        await reach(consumer, lambda: not consumer.is_subscribed)
        await reach(consumer, lambda: consumer.state == "consuming")
    script.decide = lambda incoming: (
        Duplicate() if incoming.client_session_uuid == UUIDS[0] else ingested(incoming)
    )
    first, script.decide = script.decide, ingested
    script.go.set()
    await reach(consumer, lambda: consumer.counts["stale"] == 2)
    script.decide = first
    await reach(consumer, lambda: consumer.counts.total() == 4)

    assert len(restored) == 1
    assert script.sizes[0] == 1
    seen = [incoming.client_session_uuid for group in script.groups for incoming in group]
    assert seen.count(UUIDS[0]) == 2  # the second time as a duplicate
    assert seen.count(UUIDS[1]) == 1  # the buffered one was dropped before any work
    await consumer.drain()
    assert await broker.depth(amqp.ATTEMPTS_QUEUE) == 0


async def test_a_queue_deleted_and_made_again_is_consumed_again(
    broker: Broker, start: Start, script: Script, management: Management
) -> None:
    async with logged("consumer.lost") as lost:
        consumer = await start()
        await broker.delete_queue(amqp.ATTEMPTS_QUEUE)
        await reach(consumer, lambda: consumer.state == "connecting")
        await topology.apply(management, broker.settings)
        await reach(consumer, lambda: consumer.state == "consuming")
        await broker.publish(body_of(UUIDS[0]))
        await settled(consumer, ingested=1)

    assert [line["reason"] for line in lost] == ["the broker cancelled the consumer"]


async def test_a_consumer_that_the_broker_forgot_is_restored(
    broker: Broker, start: Start, script: Script, management: Management
) -> None:
    consumer = await start(management=management)
    subscription = consumer._subscription
    assert subscription is not None
    assert subscription.tag is not None
    another = await start()  # so that the count of consumers tells nothing
    await reach(consumer, lambda: subscription.tag in subscription._listed)
    async with logged("consumer.lost") as lost:
        # Behind its back: the client is not told, as when a broker forgets.
        await subscription._channel.basic_cancel(subscription.tag)
        await reach(consumer, lambda: not consumer.is_subscribed)
        await reach(consumer, lambda: consumer.state == "consuming")
    await another.drain()
    await broker.publish(body_of(UUIDS[0]))
    await settled(consumer, ingested=1)

    assert [line["reason"] for line in lost] == ["the broker does not list our consumer"]


class _Silent:
    """A management API that does not know, each time in another way."""

    def __init__(self) -> None:
        self.asked = 0

    async def consumer_tags(self, queue: str) -> set[str] | None:
        self.asked += 1
        if self.asked % 2:
            raise BrokerAway("The API is busy.")
        return None


@pytest.mark.parametrize("answer", ["none", "silence", "refusal"])
@pytest.mark.parametrize("has_api", [True, False])
async def test_a_broker_that_does_not_know_has_not_forgotten(
    answer: str, has_api: bool, broker: Broker, start: Start, script: Script
) -> None:
    api = _Silent()
    consumer = await start(management=api if has_api else None)
    subscription = consumer._subscription
    assert subscription is not None
    script.go.clear()
    await broker.publish(body_of(UUIDS[0]))
    await reach(consumer, lambda: consumer.in_hand == 1)
    counted = 0

    async def count(queue: str) -> int:
        # What a leader under load says while it knows the consumer well.
        nonlocal counted
        counted += 1
        consumer.changed.tell()
        if answer == "silence":
            raise TimeoutError
        if answer == "refusal":
            raise ChannelAccessRefused(403, "ACCESS_REFUSED")
        return 0

    subscription._count_consumers = count  # type: ignore[method-assign]
    async with logged("consumer.lost") as lost:
        await reach(consumer, lambda: counted > 4)
        assert consumer.is_proved
        script.go.set()
        await settled(consumer, ingested=1)
    assert lost == []
    assert consumer.counts["given_back"] == consumer.counts["stale"] == 0


async def test_odd_properties_do_not_cost_the_connection(
    broker: Broker, start: Start, script: Script
) -> None:
    consumer = await start()
    async with logged("consumer.lost") as lost:
        await broker.publish_raw(body_of(UUIDS[0]), flags=1 << 6, raw=(2**60).to_bytes(8))
        await broker.publish_raw(body_of(UUIDS[1]), flags=1 << 5, raw=b"\x04\xff\xfe\xfd\xfc")
        nested = b""
        for _ in range(1500):
            table = b"\x01k" + b"F" + len(nested).to_bytes(4) + nested
            nested = table
        raw = len(nested).to_bytes(4) + nested
        await broker.publish_raw(body_of(UUIDS[2]), flags=1 << 13, raw=raw)
        await broker.publish(body_of(UUIDS[3]))
        await reach(consumer, lambda: consumer.counts.total() == 4)

    assert lost == []
    assert consumer.counts == {"ingested": 2, "rejected": 2}
    contents = [incoming.content for group in script.groups for incoming in group]
    reasons = [content.reason for content in contents if isinstance(content, Rejection)]
    assert sorted(reasons) == ["malformed", "unsupported_version"]


# Draining


async def test_draining_finishes_what_was_begun_and_gives_back_the_rest(
    broker: Broker, start: Start, script: Script
) -> None:
    consumer = await in_hand(3, broker, start, script, group_max=1)
    drained = asyncio.create_task(consumer.drain())
    await settled(consumer, given_back=2)
    assert str(consumer.state) == "draining"
    script.go.set()
    await drained

    assert consumer.state == "stopped"
    assert consumer.counts == {"given_back": 2, "ingested": 1}
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 2)
    await broker.until_consumers(0)


async def test_draining_ends_in_time_whatever_hangs(
    broker: Broker, start: Start, script: Script
) -> None:
    script.go.clear()
    consumer = await start(drain_timeout=0.2)
    await broker.publish(body_of(UUIDS[0]))
    await script.began.wait()
    async with logged("consumer.drain_timed_out") as late:
        await consumer.drain()

    assert len(late) == 1
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 1)


async def test_draining_while_paused_gives_everything_back(
    broker: Broker, start: Start, script: Script
) -> None:
    script.away = True
    consumer = await start(lanes=1, group_max=1)
    for uuid in UUIDS[:2]:
        await broker.publish(body_of(uuid))
    await reach(consumer, lambda: consumer.state == "paused" and not consumer.is_subscribed)
    await consumer.drain()

    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 2)


async def test_many_messages_arrive_once_each(broker: Broker, start: Start, script: Script) -> None:
    consumer = await start(prefetch=50, group_max=20)
    uuids = [uuid4() for _ in range(300)]
    await asyncio.gather(*(broker.publish(body_of(uuid)) for uuid in uuids))
    await settled(consumer, ingested=300)

    seen = [incoming.client_session_uuid for group in script.groups for incoming in group]
    assert sorted(map(str, seen)) == sorted(map(str, uuids))
    assert max(script.sizes) <= 20
