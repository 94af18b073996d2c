"""The relay after a loss, over a real broker: the test answers as a worker would."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from study_viewer import Outbox, Relay, RelaySettings, State
from study_viewer.checking import NOBODY_CHECKS
from study_viewer.schemas.amqp import (
    CHECK_TYPE,
    CHECKED_TYPE,
    INGEST_EXCHANGE,
    PROGRESS_PAGE_TYPE,
    PROGRESS_QUEUE,
    PROGRESS_REFUSAL_TYPE,
    PROGRESS_REQUEST_TYPE,
    PROGRESS_REQUESTS_BINDING,
    RECALL_TYPE,
    RESULTS_EXCHANGE,
    progress_key,
)
from study_viewer.schemas.checks import MAX_CHECKED, Check, Checked, Recall
from study_viewer.schemas.progress import ProgressPage, ProgressRefusal
from study_viewer.schemas.words import Next, RefusalReason
from tests.study_viewer.proxy import PATIENCE
from tests.study_viewer.support import QUICK, VIEWER, Broker, make_batch, make_result, record

ALL = 1_000
QUICK = replace(QUICK, keep_progress=False, check_patience=0.05, resend_rate=10_000.0)


@pytest.fixture
async def asked(broker: Broker) -> AsyncIterator[asyncio.Queue[AbstractIncomingMessage]]:
    """The requests that arrive for workers."""
    arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    queue = await broker.channel.declare_queue(PROGRESS_QUEUE, durable=True)
    await queue.bind(INGEST_EXCHANGE, PROGRESS_REQUESTS_BINDING)
    await queue.consume(arrived.put, no_ack=True)
    yield arrived


async def next_of(
    asked: asyncio.Queue[AbstractIncomingMessage], kind: str
) -> AbstractIncomingMessage:
    async with asyncio.timeout(PATIENCE):
        while (message := await asked.get()).type != kind:
            pass
    return message


async def next_check(asked: asyncio.Queue[AbstractIncomingMessage]) -> AbstractIncomingMessage:
    return await next_of(asked, CHECK_TYPE)


async def progress_is_consumed(asked: asyncio.Queue[AbstractIncomingMessage]) -> None:
    """Waits until the viewer has its queue of progress, because only then it asks for progress."""
    await next_of(asked, PROGRESS_REQUEST_TYPE)


def uuids_in(message: AbstractIncomingMessage) -> list[UUID]:
    return [*Check.model_validate_json(message.body).client_session_uuids]


@asynccontextmanager
async def relaying(
    outbox: Outbox, broker: Broker, settings: RelaySettings = QUICK
) -> AsyncIterator[Relay]:
    async with asyncio.timeout(2 * PATIENCE), Relay(outbox, broker.url, VIEWER, settings) as relay:
        yield relay


async def say(broker: Broker, epoch: str, *, has: list[UUID], missing: list[UUID]) -> None:
    answer = Checked(epoch=epoch, has=tuple(has), missing=tuple(missing))
    await broker.answer(answer, kind=CHECKED_TYPE)


def settled(outbox: Outbox, count: int, epoch: str | None = "one") -> list[UUID]:
    uuids = record(outbox, *(make_batch() for _ in range(count)))
    for uuid in uuids:
        outbox.settle(make_result(uuid), epoch)
    return uuids


async def test_another_epoch_on_a_result_makes_it_ask_and_publish_what_is_missing(
    outbox: Outbox, broker: Broker, asked: asyncio.Queue[AbstractIncomingMessage]
) -> None:
    before = settled(outbox, MAX_CHECKED + 2)
    missing = {before[3], before[MAX_CHECKED + 1]}
    await broker.consume()
    (new,) = record(outbox, make_batch())
    async with relaying(outbox, broker) as relay:
        assert await broker.next_uuid() == new
        await broker.answer(make_result(new), epoch="two")
        told: list[UUID] = []
        while len(told) < len(before):
            check = await next_check(asked)
            assert check.delivery_mode == aio_pika.DeliveryMode.NOT_PERSISTENT
            some = [uuid for uuid in uuids_in(check) if uuid not in told]
            told += some
            await say(
                broker,
                "two",
                has=[uuid for uuid in some if uuid not in missing],
                missing=[uuid for uuid in some if uuid in missing],
            )
        assert told == before
        again = [await broker.next_uuid(), await broker.next_uuid()]
        assert {*again} == missing
        for uuid in again:
            await broker.answer(make_result(uuid), epoch="two")
            await relay.until_settled(uuid)
        assert relay.status.resent == 2 and relay.status.check_problem is None
        assert outbox.unchecked(ALL) == [] and broker.arrived.empty()


async def test_a_check_without_an_answer_is_repeated_until_there_is_one(
    outbox: Outbox, broker: Broker, asked: asyncio.Queue[AbstractIncomingMessage]
) -> None:
    (uuid,) = settled(outbox, 1)
    outbox.saw("two")
    async with relaying(outbox, broker) as relay:
        ids = {(await next_check(asked)).message_id for _ in range(4)}
        assert len(ids) == 4
        await say(broker, "two", has=[uuid], missing=[])
        await relay.until(lambda: outbox.unchecked(ALL) == [])
    # What is unchecked survives the program.
    outbox.saw("three")
    async with relaying(outbox, broker):
        assert uuids_in(await next_check(asked)) == [uuid]


async def test_an_older_worker_refuses_and_neither_batches_nor_progress_mind(
    outbox: Outbox, broker: Broker, asked: asyncio.Queue[AbstractIncomingMessage]
) -> None:
    (uuid,) = settled(outbox, 1)
    outbox.saw("two")
    await broker.consume()
    exchange = await broker.channel.get_exchange(RESULTS_EXCHANGE, ensure=False)
    async with relaying(outbox, broker, replace(QUICK, keep_progress=True)) as relay:
        await progress_is_consumed(asked)
        check = await next_check(asked)
        refusal = ProgressRefusal(reason=RefusalReason.UNSUPPORTED_VERSION, detail="What is that?")
        message = aio_pika.Message(
            refusal.model_dump_json().encode(),
            type=PROGRESS_REFUSAL_TYPE,
            correlation_id=check.message_id,
        )
        await exchange.publish(message, progress_key(VIEWER))
        await relay.until(lambda: relay.status.check_problem == NOBODY_CHECKS)
        assert relay.status.progress_problem is None
        (new,) = record(outbox, make_batch())
        relay.wake()
        assert await broker.next_uuid() == new
        # It asks again later, when there may be a newer one.
        assert uuids_in(await next_check(asked)) == [uuid]
        await say(broker, "two", has=[uuid], missing=[])
        await relay.until(lambda: outbox.unchecked(ALL) == [])
        assert relay.status.check_problem is None


async def test_a_page_of_progress_tells_of_another_epoch(
    outbox: Outbox, broker: Broker, asked: asyncio.Queue[AbstractIncomingMessage]
) -> None:
    (uuid,) = settled(outbox, 1)
    exchange = await broker.channel.get_exchange(RESULTS_EXCHANGE, ensure=False)
    page = ProgressPage(
        user_id="1", cursor="c", epoch="two", version=1, decay=0.1542, next=Next.NOTHING
    )
    async with relaying(outbox, broker, replace(QUICK, keep_progress=True)):
        await progress_is_consumed(asked)
        message = aio_pika.Message(page.model_dump_json().encode(), type=PROGRESS_PAGE_TYPE)
        await exchange.publish(message, progress_key(VIEWER))
        assert uuids_in(await next_check(asked)) == [uuid]


async def test_a_recall_makes_it_ask_for_what_the_server_answered_since(
    outbox: Outbox, broker: Broker, asked: asyncio.Queue[AbstractIncomingMessage]
) -> None:
    old, new = record(outbox, make_batch(), make_batch())
    outbox.settle(make_result(old, received_at=datetime(2026, 3, 1, tzinfo=UTC)), "one")
    outbox.settle(make_result(new, received_at=datetime(2026, 3, 3, tzinfo=UTC)), "one")
    recall = Recall(since=datetime(2026, 3, 2, tzinfo=UTC))
    await broker.consume()
    async with relaying(outbox, broker) as relay:
        await relay.until(lambda: relay.status.connected)
        await broker.answer(recall, kind=RECALL_TYPE, epoch="one")
        assert uuids_in(await next_check(asked)) == [new]
        await say(broker, "one", has=[], missing=[new])
        assert await broker.next_uuid() == new
        assert relay.status.unreadable_results == 0
        entry = outbox.get(old)
        assert entry is not None and entry.state is State.SETTLED


async def test_a_login_that_may_not_ask_goes_on_with_everything_else(
    outbox: Outbox, broker: Broker
) -> None:
    settled(outbox, 1)
    outbox.saw("two")
    await broker.consume()
    topics = {"exchange": INGEST_EXCHANGE, "read": "^$"}
    async with broker.with_few_rights() as viewer:
        key = {"write": f"^attempts\\.v1\\.{viewer}$"}
        path = f"topic-permissions/{broker.vhost}/{viewer}"
        (await broker.management.put(path, json=topics | key)).raise_for_status()
        relay = Relay(outbox, broker.login(viewer), viewer, QUICK)
        async with asyncio.timeout(2 * PATIENCE), relay:
            await relay.until(lambda: relay.status.check_problem)
            uuids = record(outbox, make_batch(), make_batch())
            relay.wake()
            for uuid in uuids:
                assert await broker.next_uuid() == uuid
                await broker.answer(make_result(uuid), viewer)
                await relay.until_settled(uuid)
            assert relay.status.problem is None
