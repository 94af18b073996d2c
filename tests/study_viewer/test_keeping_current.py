"""The relay keeps the progress current, over a real broker: the test answers as a worker would."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from study_viewer import Outbox, Relay, RelaySettings
from study_viewer.schemas.amqp import (
    INGEST_EXCHANGE,
    PROGRESS_NUDGE_TYPE,
    PROGRESS_PAGE_TYPE,
    PROGRESS_QUEUE,
    PROGRESS_REFUSAL_TYPE,
    PROGRESS_REQUESTS_BINDING,
    RESULTS_EXCHANGE,
    progress_key,
    progress_queue,
    results_queue,
)
from study_viewer.schemas.model import WireModel
from study_viewer.schemas.progress import ProgressRefusal, ProgressRequest
from study_viewer.schemas.words import RefusalReason
from tests.study_viewer.progress_server import BEGIN, Server
from tests.study_viewer.support import QUICK, VIEWER, Broker
from tests.study_viewer.test_progress import DAY, answer

PATIENCE = 30.0


class Worker:
    """Answers requests from the server's progress, as long as it is told to."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.server = Server(users=3)
        self.asked: asyncio.Queue[ProgressRequest] = asyncio.Queue()
        self.lose_pages = 0
        """The number of pages that will not arrive."""
        self.refuses: set[str | None] = set()
        self.types: list[str | None] = []

    async def listen(self) -> None:
        channel = self.broker.channel
        queue = await channel.declare_queue(PROGRESS_QUEUE, durable=True)
        await queue.bind(INGEST_EXCHANGE, PROGRESS_REQUESTS_BINDING)
        await queue.consume(self._take, no_ack=True)

    async def tell(self, kind: str, told: WireModel) -> None:
        exchange = await self.broker.channel.get_exchange(RESULTS_EXCHANGE, ensure=False)
        message = aio_pika.Message(told.model_dump_json().encode(), type=kind)
        await exchange.publish(message, progress_key(VIEWER))

    async def _take(self, message: AbstractIncomingMessage) -> None:
        assert message.delivery_mode == aio_pika.DeliveryMode.NOT_PERSISTENT
        request = ProgressRequest.model_validate_json(message.body)
        if request.user_id in self.refuses:
            refusal = ProgressRefusal(
                user_id=request.user_id, reason=RefusalReason.USER_NOT_GRANTED, detail="No."
            )
            await self.tell(PROGRESS_REFUSAL_TYPE, refusal)
        else:
            for page in self.server.answer(request):
                if self.lose_pages:
                    self.lose_pages -= 1
                else:
                    await self.tell(PROGRESS_PAGE_TYPE, page)
        self.asked.put_nowait(request)


@pytest.fixture
async def worker(broker: Broker) -> AsyncIterator[Worker]:
    yield Worker(broker)


def relay(
    outbox: Outbox, broker: Broker, settings: RelaySettings = QUICK, users: tuple[int, ...] = ()
) -> Relay:
    return Relay(outbox, broker.url, VIEWER, settings, users=users)


def dates(outbox: Outbox, user: int = 1) -> list[float]:
    return [(each.due_at - BEGIN) / DAY for each in outbox.progress.all(user)]


async def test_it_asks_when_it_connects_and_continues_from_where_it_was(
    outbox: Outbox, broker: Broker, worker: Worker
) -> None:
    for number in range(1, 4):
        worker.server.change(1, {number}, number * DAY)
    await worker.listen()
    async with asyncio.timeout(PATIENCE):
        async with relay(outbox, broker) as running:
            await running.until_current()
            assert dates(outbox) == [1, 2, 3]
        assert (await worker.asked.get()).cursor is None
        worker.server.change(1, {2}, 9 * DAY)
        cursor = outbox.progress.cursor(1)
        async with relay(outbox, broker) as running:
            await running.until_current()
            assert dates(outbox) == [1, 9, 3]
            assert running.status.progress_problem is None
        while (await worker.asked.get()).cursor != cursor:
            pass  # the first relay's


async def test_a_nudge_makes_it_ask_and_an_old_one_does_not(
    outbox: Outbox, broker: Broker, worker: Worker
) -> None:
    worker.server.change(1, {1}, DAY)
    await worker.listen()
    async with asyncio.timeout(PATIENCE), relay(outbox, broker) as running:
        await running.until_current()
        while not worker.asked.empty():
            worker.asked.get_nowait()
        await worker.tell(PROGRESS_NUDGE_TYPE, worker.server.mark(1))
        mark = worker.server.change(1, {1}, 5 * DAY)
        await worker.tell(PROGRESS_NUDGE_TYPE, mark)
        await running.until(lambda: dates(outbox) == [5])
        assert worker.asked.qsize() <= 1
        # A user that it did not know yet.
        await worker.tell(PROGRESS_NUDGE_TYPE, worker.server.change(2, {7}, 3 * DAY))
        await running.until(lambda: dates(outbox, 2) == [3])


async def test_a_result_makes_it_ask(outbox: Outbox, broker: Broker, worker: Worker) -> None:
    await worker.listen()
    async with asyncio.timeout(PATIENCE), relay(outbox, broker) as running:
        await running.until_current()
        uuid = answer(outbox, 1)
        running.wake()
        worker.server.change(1, {1}, 4 * DAY)
        await broker.answer(worker.server.result(1, uuid, {1}))
        await running.until_settled(uuid)
        await running.until(lambda: dates(outbox) == [4])


async def test_lost_pages_are_asked_for_again(
    outbox: Outbox, broker: Broker, worker: Worker
) -> None:
    settings = RelaySettings(progress_patience=0.05, progress_patience_max=0.2)
    for number in range(1, 4):
        worker.server.change(1, {number}, number * DAY)
    worker.lose_pages = 4
    await worker.listen()
    async with asyncio.timeout(PATIENCE), relay(outbox, broker, settings) as running:
        await running.until_current()
        assert dates(outbox) == [1, 2, 3]


async def test_each_user_has_a_cursor_and_a_refusal_of_one_is_shown_once(
    outbox: Outbox, broker: Broker, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    for user in (1, 2):
        worker.server.change(user, {user}, user * DAY)
    worker.refuses = {"3"}
    await worker.listen()
    caplog.set_level(logging.WARNING)
    async with asyncio.timeout(PATIENCE), relay(outbox, broker, users=(1, 2, 3)) as running:
        await running.until_current()
        assert (dates(outbox, 1), dates(outbox, 2), dates(outbox, 3)) == ([1], [2], [])
        assert "no progress: No. Ask the operator" in (running.status.progress_problem or "")
        await running.until_current()
    assert sum("no progress" in record.message for record in caplog.records) == 1


async def test_without_a_server_of_progress_everything_else_goes_on(
    outbox: Outbox, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """An older server: nobody binds a queue for requests."""
    caplog.set_level(logging.WARNING)
    settings = RelaySettings(progress_patience=0.02, progress_patience_max=0.05)
    await broker.consume()
    async with asyncio.timeout(PATIENCE), relay(outbox, broker, settings) as running:
        await running.until(lambda: running.status.progress_problem)
        assert "nobody answers requests" in (running.status.progress_problem or "")
        uuid = answer(outbox, 1)
        running.wake()
        await broker.next()
        await broker.answer(Server(1).result(1, uuid, set()))
        await running.until_settled(uuid)
        assert running.status.problem is None
    assert sum("nobody answers" in record.message for record in caplog.records) == 1


async def test_a_viewer_that_was_not_upgraded_goes_on_as_before(
    broker: Broker, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Its login has the rights of before: no queue of progress, and no key for requests."""
    caplog.set_level(logging.WARNING)
    await broker.consume()
    settings = RelaySettings(declare_results_queue=False, progress_interval=0.05)
    with Outbox(tmp_path / "viewer.db") as outbox:
        async with broker.with_few_rights() as viewer:
            running = Relay(outbox, broker.login(viewer), viewer, settings)
            async with asyncio.timeout(PATIENCE), running:
                await running.until(lambda: running.status.progress_problem)
                assert "viewer upgrade" in (running.status.progress_problem or "")
                uuid = answer(outbox, 1)
                running.wake()
                await broker.next()
                await broker.answer(Server(1).result(1, uuid, set()), viewer)
                await running.until_settled(uuid)
                assert running.status.connected
                assert running.status.problem is None
    assert sum("viewer upgrade" in record.message for record in caplog.records) == 1


async def test_after_the_upgrade_a_refresh_gets_everything_at_once(
    outbox: Outbox, broker: Broker, worker: Worker
) -> None:
    await broker.channel.declare_queue(results_queue(VIEWER), durable=True)
    settings = RelaySettings(declare_results_queue=False)
    worker.server.change(1, {1}, 4 * DAY)
    await worker.listen()
    async with asyncio.timeout(PATIENCE), relay(outbox, broker, settings) as running:
        await running.until(lambda: running.status.progress_problem)
        queue = await broker.channel.declare_queue(progress_queue(VIEWER), durable=True)
        await queue.bind(RESULTS_EXCHANGE, progress_key(VIEWER))
        await running.until_current()
        assert dates(outbox) == [4]
        assert running.status.progress_problem is None


async def test_a_user_that_a_result_names_before_the_first_page_is_asked_about_once(
    outbox: Outbox, broker: Broker, worker: Worker
) -> None:
    """The first request names no user. Its page and the mark are about the same one."""
    settings = RelaySettings(progress_patience=0.05, progress_patience_max=0.2)
    uuid = answer(outbox, 1)
    async with asyncio.timeout(PATIENCE), relay(outbox, broker, settings) as running:
        await running.until(lambda: running.status.progress_problem)  # nobody answers yet
        worker.server.change(1, {1}, 4 * DAY)
        await broker.answer(worker.server.result(1, uuid, {1}))
        await running.until_settled(uuid)
        await worker.listen()
        await running.until_current()
        assert dates(outbox) == [4]
