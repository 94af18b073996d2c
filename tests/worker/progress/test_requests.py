"""Requests, answers and nudges, on a real broker with a whole worker and real logins."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.progress import ProgressMark, ProgressPage, ProgressRefusal
from schemas.words import RefusalReason
from tests import factories as make
from tests.broker_fixtures import PATIENCE, Broker, until
from tests.factories import Published, at, right, wrong
from tests.whole_worker import Login, Viewers, working
from tests.worker.progress.device import Device
from worker.errors import ViewerError
from worker.operate import viewers as identities
from worker.settings import Settings
from worker.store.audit import By

BY = By("tests", "")
USER = 42
pytestmark = pytest.mark.broker


class Phone:
    """A viewer on a connection of its own, that keeps what it is told."""

    def __init__(self, login: Login, channel: AbstractChannel) -> None:
        self.login = login
        self.device = Device()
        self._channel = channel
        self.told: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()

    @classmethod
    @asynccontextmanager
    async def of(cls, login: Login) -> AsyncIterator["Phone"]:
        async with await aio_pika.connect(login.url) as connection:
            phone = cls(login, await connection.channel(on_return_raises=True))
            queue = await phone._channel.get_queue(amqp.progress_queue(login.name), ensure=False)
            await queue.consume(phone.told.put, no_ack=True)
            yield phone

    async def send(self, key: str, body: str, **properties: Any) -> None:
        message = aio_pika.Message(
            body.encode(),
            **{"message_id": uuid4().hex, "user_id": self.login.name} | properties,
        )
        exchange = await self._channel.get_exchange(amqp.INGEST_EXCHANGE, ensure=False)
        await exchange.publish(message, key)

    async def ask(self, request: Any, **properties: Any) -> None:
        body = request if isinstance(request, str) else json.dumps(request)
        given = {"type": amqp.PROGRESS_REQUEST_TYPE} | properties
        await self.send(amqp.progress_request_key(self.login.name), body, **given)

    async def answer(self, *attempts: Any) -> None:
        body = make.batch(*attempts).model_dump_json()
        await self.send(amqp.attempts_key(self.login.name), body)

    async def next(self) -> AbstractIncomingMessage:
        return await asyncio.wait_for(self.told.get(), PATIENCE)

    async def refresh(self, user_id: int = USER) -> None:
        """Asks until it has everything."""
        self.device.asks.add(str(user_id))
        while self.device.asks:
            await self.ask(self.device.request(str(user_id)))
            then = "page"
            while then == "page":
                message = await self.next()
                if message.type == amqp.PROGRESS_PAGE_TYPE and self.device.page(message.body):
                    then = json.loads(message.body)["next"]

    def holds(self, user_id: int = USER) -> dict[int, tuple[int, int, int]]:
        return {
            int(each): (found["correct"], found["wrong"], found["version"])
            for each, found in self.device.of(str(user_id)).questions.items()
        }


async def stored(engine: AsyncEngine, user_id: int = USER) -> dict[int, tuple[int, int, int]]:
    rows = await make.rows(
        engine, "SELECT * FROM study_question_progress WHERE user_id = :user", user=user_id
    )
    return {
        row["study_question_id"]: (row["correct_count"], row["wrong_count"], row["version"])
        for row in rows
    }


@pytest.fixture
async def questions(engine: AsyncEngine) -> list[Published]:
    return await make.publish(engine, 3, user_id=USER)


async def test_one_device_answers_and_the_other_is_nudged_asks_and_holds_the_same(
    viewers: Viewers, settings: Settings, engine: AsyncEngine, questions: list[Published]
) -> None:
    one, other = await viewers.add(USER), await viewers.add(USER)
    async with working(settings, engine), Phone.of(one) as mine, Phone.of(other) as theirs:
        await theirs.refresh()
        assert theirs.holds() == {}
        for day in range(3):
            await mine.answer(right(questions[0], at(day)), wrong(questions[1], at(day)))
            nudge = await theirs.next()
            assert nudge.type == amqp.PROGRESS_NUDGE_TYPE
            assert nudge.delivery_mode == 1
            mark = ProgressMark.model_validate_json(nudge.body)
            theirs.device.mark(json.loads(nudge.body))
            assert theirs.device.asks == {str(USER)}
            await theirs.refresh()
            assert theirs.holds() == await stored(engine)
            assert theirs.device.of(str(USER)).version == mark.version
        assert mine.told.empty()  # who sent the batch learns it from the result


async def test_a_page_answers_its_request_and_lives_a_minute_at_most(
    viewers: Viewers, settings: Settings, engine: AsyncEngine
) -> None:
    login = await viewers.add(USER)
    async with working(settings, engine), Phone.of(login) as phone:
        await phone.ask({"cursor": None}, message_id="mine")
        page = await phone.next()
    assert page.correlation_id == "mine"
    assert page.delivery_mode == 1
    assert page.expiration is not None
    told = ProgressPage.model_validate_json(page.body)
    assert (told.user_id, told.starts_over, told.next) == (str(USER), "first", "nothing")


BAD = {
    "not JSON": ("{", RefusalReason.MALFORMED),
    "not an object": ("[]", RefusalReason.MALFORMED),
    "no cursor": ("{}", RefusalReason.MALFORMED),
    "a cursor that is no text": ('{"cursor": 7}', RefusalReason.MALFORMED),
    "a cursor that is too long": (json.dumps({"cursor": "x" * 129}), RefusalReason.MALFORMED),
    "a user that is no number": ('{"cursor": null, "user_id": "me"}', RefusalReason.MALFORMED),
    "a user beyond 64 bits": (
        json.dumps({"cursor": None, "user_id": "9" * 19}),
        RefusalReason.MALFORMED,
    ),
    "too large": (json.dumps({"cursor": None, "more": "x" * 5_000}), RefusalReason.MALFORMED),
    "another's user": ('{"cursor": null, "user_id": "43"}', RefusalReason.USER_NOT_GRANTED),
    "no user, and several": ('{"cursor": null}', RefusalReason.USER_AMBIGUOUS),
}


async def test_each_bad_request_gets_one_clear_answer_and_the_next_is_answered(
    viewers: Viewers, settings: Settings, engine: AsyncEngine
) -> None:
    login = await viewers.add(USER, 44)
    async with working(settings, engine), Phone.of(login) as phone:
        for body, reason in BAD.values():
            await phone.ask(body)
            refused = await phone.next()
            assert refused.type == amqp.PROGRESS_REFUSAL_TYPE
            told = ProgressRefusal.model_validate_json(refused.body)
            assert told.reason == reason, body
            assert told.detail.endswith(".")
        await phone.ask({"cursor": None}, type="study.progress_request.v2")
        told = ProgressRefusal.model_validate_json((await phone.next()).body)
        assert told.reason == RefusalReason.UNSUPPORTED_VERSION
        # All at once: none takes the place of another.
        for body, _ in BAD.values():
            await phone.ask(body)
        assert len([await phone.next() for _ in BAD]) == len(BAD)
        await phone.refresh()
        assert phone.told.empty()


async def test_a_viewer_without_a_grant_reads_nobody(
    viewers: Viewers, settings: Settings, engine: AsyncEngine, questions: list[Published]
) -> None:
    granted, nobody = await viewers.add(USER), await viewers.add()
    open_house = settings.model_copy(update={"require_user_id": False})
    async with working(open_house, engine), Phone.of(granted) as one, Phone.of(nobody) as other:
        await one.answer(right(questions[0]))
        await until(lambda: stored(engine), bool)
        for request in ({"cursor": None}, {"cursor": None, "user_id": str(USER)}):
            await other.ask(request)
            told = ProgressRefusal.model_validate_json((await other.next()).body)
            assert told.reason == RefusalReason.USER_NOT_GRANTED
        # A grant that is taken back.
        await one.refresh()
        await identities.withdraw(engine, granted.name, [USER], BY)
        await one.ask({"cursor": one.device.of(str(USER)).cursor, "user_id": str(USER)})
        told = ProgressRefusal.model_validate_json((await one.next()).body)
        assert (told.reason, told.user_id) == (RefusalReason.USER_NOT_GRANTED, str(USER))


@pytest.mark.parametrize(
    ("cursor", "why"),
    [
        ("nonsense", "unknown_cursor"),
        ("0123456789ab.42.1", "another_epoch"),
        ("{epoch}.42.9007199254740991", "ahead"),
        ("{epoch}.43.1", "unknown_cursor"),
    ],
)
async def test_a_cursor_that_is_of_no_use_starts_over(
    viewers: Viewers,
    settings: Settings,
    engine: AsyncEngine,
    questions: list[Published],
    cursor: str,
    why: str,
) -> None:
    login = await viewers.add(USER)
    async with working(settings, engine), Phone.of(login) as phone:
        await phone.answer(right(questions[0]))
        await until(lambda: stored(engine), bool)
        await phone.refresh()
        held = phone.device.of(str(USER))
        held.cursor = cursor.replace("{epoch}", str(held.epoch))
        held.questions["999"] = {"correct": 9, "wrong": 9, "version": 9}
        await phone.ask({"cursor": held.cursor})
        page = await phone.next()
        assert json.loads(page.body)["starts_over"] == why
        assert phone.device.page(page.body)
        assert phone.holds() == await stored(engine)


async def test_a_login_asks_for_itself_only(
    viewers: Viewers, settings: Settings, engine: AsyncEngine
) -> None:
    mine, other = await viewers.add(USER), await viewers.add(43)
    async with working(settings, engine):
        async with Phone.of(mine) as phone:
            with pytest.raises(aio_pika.exceptions.AMQPError):
                await phone.send(amqp.progress_request_key(other.name), '{"cursor": null}')
        async with Phone.of(mine) as phone:
            queue = await phone._channel.get_queue(amqp.progress_queue(other.name), ensure=False)
            with pytest.raises(aio_pika.exceptions.AMQPError):
                await queue.get(fail=False)


async def test_a_request_of_an_unknown_sender_is_dropped(
    broker: Broker, settings: Settings, engine: AsyncEngine, viewers: Viewers
) -> None:
    login = await viewers.add(USER)
    async with working(settings, engine), Phone.of(login) as phone:
        await broker.publish(
            '{"cursor": null}', routing_key=amqp.progress_request_key(login.name)
        )  # without user_id
        await phone.refresh()
        assert phone.told.empty()


async def test_a_flood_by_one_viewer_keeps_no_other_waiting(
    viewers: Viewers, settings: Settings, engine: AsyncEngine, questions: list[Published]
) -> None:
    loud, quiet = await viewers.add(USER), await viewers.add(USER)
    async with working(settings, engine), Phone.of(loud) as flood, Phone.of(quiet) as phone:
        await asyncio.gather(
            *(flood.ask({"cursor": None, "user_id": str(USER)}) for _ in range(1_000))
        )
        await phone.answer(right(questions[0]))
        await until(lambda: stored(engine), bool)
        await phone.refresh()
        assert phone.holds() == await stored(engine)
        # The others took each other's place, and what came is from before.
        assert flood.told.qsize() < 500

        async def caught_up() -> dict[int, tuple[int, int, int]]:
            await flood.refresh()
            return flood.holds()

        await until(caught_up, (await stored(engine)).__eq__)


async def test_requests_outlast_the_connection(
    broker: Broker, viewers: Viewers, settings: Settings, engine: AsyncEngine
) -> None:
    login = await viewers.add(USER)
    async with working(settings, engine), Phone.of(login) as phone:
        await phone.refresh()
        await broker.cut("progress")
        await phone.refresh()


async def test_what_nobody_takes_is_bounded(
    broker: Broker, viewers: Viewers, settings: Settings
) -> None:
    login = await viewers.add(USER)
    for _ in range(205):
        await broker.publish(
            "{}", exchange=amqp.RESULTS_EXCHANGE, routing_key=amqp.progress_key(login.name)
        )
    await broker.until_depth(amqp.progress_queue(login.name), 200)


async def test_upgrade_gives_an_older_viewer_everything_and_keeps_its_password(
    viewers: Viewers, broker: Broker, settings: Settings, engine: AsyncEngine
) -> None:
    login = await viewers.add(USER)
    accounts, name = viewers.accounts, login.name
    # As the version before left it.
    await accounts.delete_queues(amqp.progress_queue(name))
    await accounts.permit_topics(
        name, amqp.INGEST_EXCHANGE, write=f"^attempts\\.v1\\.{name}$", read="^$"
    )
    await accounts.permit(
        name, configure="^$", write="^study\\.ingest$", read=f"^study\\.results\\.{name}$"
    )
    connected = await aio_pika.connect(login.url)
    async with connected:
        assert await identities.upgrade(accounts, engine, [name], BY) == [name]
        assert name in await identities.upgrade(accounts, engine, None, BY)
        assert not connected.is_closed
        async with working(settings, engine), Phone.of(login) as phone:
            await phone.refresh()
    with pytest.raises(ViewerError):
        await identities.upgrade(accounts, engine, [name, "nobody"], BY)


async def test_progress_goes_to_a_viewer_that_has_no_queue_for_it_and_nothing_breaks(
    viewers: Viewers, settings: Settings, engine: AsyncEngine, questions: list[Published]
) -> None:
    older, newer = await viewers.add(USER), await viewers.add(USER)
    async with working(settings, engine), Phone.of(newer) as phone:
        await phone.refresh()
        await make.execute(engine, "UPDATE viewer_grants SET asked_at = now()")
        await viewers.accounts.delete_queues(amqp.progress_queue(older.name))
        await phone.answer(right(questions[0]))  # which nudges the other
        await until(lambda: stored(engine), bool)
        await phone.refresh()
        assert phone.holds() == await stored(engine)
