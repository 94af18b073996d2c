"""The relay in trouble: it logs once, and publishes nothing that it can't delete."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from uuid import UUID, uuid4

import pytest
from aio_pika.abc import AbstractQueue
from aio_pika.exceptions import DeliveryError
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from structlog.testing import capture_logs

from schemas import amqp
from schemas.followups import EXPLANATION, REVIEW
from tests import factories as make
from tests.broker_fixtures import Broker, publish, until
from worker.broker.burst import Outgoing
from worker.broker.publisher import Publisher, Unroutable
from worker.domain.records import Message
from worker.errors import DatabaseAway, Unconfirmed
from worker.relay.relay import Relay
from worker.settings import Settings
from worker.store import outbox, versions
from worker.store.driver import write
from worker.store.engine import transaction
from worker.store.outbox import Waiting

_SETTINGS = Settings(
    database_url="postgresql://unused",  # type: ignore[arg-type]
    amqp_url="amqp://unused",  # type: ignore[arg-type]
    pause_delay_min=0.01,
    pause_delay_max=0.02,
    relay_poll_interval=0.01,
)


def _job(key: str = EXPLANATION.routing_key) -> Message:
    return Message(uuid4(), amqp.FOLLOWUPS_EXCHANGE, key, "t", {}, "{}")


SESSION = uuid4()


def _result(viewer: str) -> Message:
    headers = {amqp.CLIENT_SESSION_UUID_HEADER: str(SESSION)}
    return Message(uuid4(), amqp.RESULTS_EXCHANGE, amqp.result_key(viewer), "t", headers, "{}")


async def _recorded(engine: AsyncEngine, messages: Sequence[Message]) -> None:
    async with transaction(engine) as connection:
        await write(connection, outbox.recording(messages))


async def _left(engine: AsyncEngine) -> list[UUID]:
    return [row["message_id"] for row in await make.outbox(engine)]


async def _told(engine: AsyncEngine) -> list[list[UUID]]:
    rows = await make.rows(engine, "SELECT client_session_uuids FROM ingest_told")
    return [row["client_session_uuids"] for row in rows]


async def _take_all(queue: AbstractQueue, is_all: Callable[[set[str | None]], bool]) -> None:
    """Takes messages until their ids are all that are wanted."""
    taken: set[str | None] = set()
    while not is_all(taken):
        message = await queue.get(timeout=30, fail=False)
        if message is None:
            await asyncio.sleep(0.01)  # the broker tells nobody that a message has come in
            continue
        taken.add(message.message_id)
        await message.ack()


@pytest.mark.broker
async def test_a_database_that_is_read_only_lets_nothing_leave(
    broker: Broker, publisher: Publisher, engine: AsyncEngine
) -> None:
    # Or every try would publish again what it then can't delete.
    await _recorded(engine, [_job()])
    async with engine.begin() as connection:
        name = await connection.scalar(text("SELECT current_database()"))
        await connection.execute(
            text(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        )
    await engine.dispose()  # the setting is for new connections
    with pytest.raises(DatabaseAway):
        await Relay(engine, publisher, _SETTINGS).relay()
    await publish(publisher, amqp.FOLLOWUPS_EXCHANGE, EXPLANATION.routing_key, b"the first")
    found = await broker.take(amqp.followups_queue(EXPLANATION.routing_key))
    assert found.body == b"the first"


async def test_nothing_to_relay_does_not_mean_that_the_broker_is_back(engine: AsyncEngine) -> None:
    await _recorded(engine, [_result("ada")])
    nobody = _SETTINGS.model_copy(update={"amqp_url": SecretStr("amqp://127.0.0.1:1/")})
    async with Publisher(nobody) as publisher:
        relay = Relay(engine, publisher, _SETTINGS)

        async def trouble() -> str | None:
            return relay.trouble

        async def passing() -> bool:
            return not relay._wake.is_set()

        with capture_logs() as lines:
            running = asyncio.create_task(relay.run())
            await until(trouble, bool)
            await make.execute(engine, "DELETE FROM outbox")  # another relay took it
            relay.wake()
            await until(passing, bool)
            relay.stop()
            await running
    assert "127.0.0.1:1 can't be reached" in str(relay.trouble)
    events = [line["event"] for line in lines]
    assert [each for each in events if each.startswith("relay.")] == ["relay.paused"]


@pytest.mark.broker
async def test_confirmed_rows_are_deleted_and_an_unconfirmed_one_stays_with_all_after_it(
    broker: Broker, publisher: Publisher, engine: AsyncEngine
) -> None:
    taken = [_job(), _job(REVIEW.routing_key), _job(), _result("ada")]
    refused = [_job("nobody.is.bound"), _job("nobody.is.bound")]
    await _recorded(engine, [taken[0], refused[0], *taken[1:], refused[1]])
    results = await (await broker.channel()).declare_queue(amqp.results_queue("ada"), durable=True)
    await results.bind(amqp.RESULTS_EXCHANGE, amqp.result_key("ada"))

    relay = Relay(engine, publisher, _SETTINGS)
    assert await relay.relay() == 4
    assert await _left(engine) == [each.message_id for each in refused]
    # Each says which server had it, also where another session deletes the rows.
    async with transaction(engine) as connection:
        epoch = (await versions.draw(connection)).epoch
    told = await broker.take(amqp.results_queue("ada"))
    assert told.headers == {
        amqp.CLIENT_SESSION_UUID_HEADER: str(SESSION),
        amqp.EPOCH_HEADER: epoch,
    }
    # Told is who was told, although the first transaction was rolled back.
    assert await _told(engine) == [[SESSION]]
    with pytest.raises(Unroutable):
        await Relay(engine, publisher, _SETTINGS).relay()
    assert await _left(engine) == [each.message_id for each in refused]
    await broker.until_depth(amqp.followups_queue(EXPLANATION.routing_key), 2)
    await broker.until_depth(amqp.followups_queue(REVIEW.routing_key), 1)


@pytest.mark.broker
async def test_results_leave_past_any_number_of_jobs_that_do_not(
    publisher: Publisher, engine: AsyncEngine
) -> None:
    refused = [_job("nobody.is.bound") for _ in range(5)]
    await _recorded(engine, [*refused, _result("ada"), _result("bob"), _result("ada")])

    few = _SETTINGS.model_copy(update={"relay_batch": 2})
    relay = Relay(engine, publisher, few)
    assert [await relay.relay(), await relay.relay()] == [2, 1]
    assert await _left(engine) == [each.message_id for each in refused]


@pytest.mark.broker
async def test_jobs_that_are_refused_are_told_once_and_tried_again_while_results_go_on(
    broker: Broker, publisher: Publisher, engine: AsyncEngine
) -> None:
    await _recorded(engine, [_job("nobody.is.bound"), _job("nobody.is.bound")])
    relay = Relay(engine, publisher, _SETTINGS)
    with capture_logs() as lines:
        running = asyncio.create_task(relay.run())
        for n in range(10):
            await _recorded(engine, [_result("ada")])
            relay.wake()
            await until(lambda: _left(engine), lambda left: len(left) == 2)
            assert relay.trouble is not None
            assert relay.trouble.startswith("No queue takes 'nobody.is.bound'"), n
        channel = await broker.channel()
        queue = await channel.declare_queue("somebody", durable=True)
        await queue.bind(amqp.FOLLOWUPS_EXCHANGE, "nobody.is.bound")
        await until(lambda: _left(engine), lambda left: not left)
        relay.stop()
        await running
    events = [line["event"] for line in lines]
    assert [each for each in events if each != "relay.result_unroutable"] == [
        "relay.paused",
        "relay.resumed",
    ]


@pytest.mark.broker
async def test_at_the_bound_of_its_queue_a_kind_waits_while_others_and_results_go_on(
    broker: Broker, publisher: Publisher, engine: AsyncEngine
) -> None:
    full = amqp.followups_queue(EXPLANATION.routing_key)
    await broker.put_policy(
        full,
        pattern=f"^{full}$",
        definition={"max-length": 2, "overflow": "reject-publish"},
        apply_to="queues",
        priority=1,
    )
    filling = 0
    with pytest.raises(DeliveryError):
        while True:  # the broker notices the bound a little late
            await broker.publish(
                b"{}",
                exchange=amqp.FOLLOWUPS_EXCHANGE,
                routing_key=EXPLANATION.routing_key,
            )
            filling += 1
    await _recorded(engine, [_job() for _ in range(20)])
    relay = Relay(engine, publisher, _SETTINGS)
    running = asyncio.create_task(relay.run())
    await until(lambda: _left(engine), lambda left: len(left) > 0 and bool(relay.trouble))
    waiting = await _left(engine)

    await _recorded(engine, [_job(REVIEW.routing_key), _result("ada")])
    await until(lambda: _left(engine), lambda left: set(left) <= {*waiting})
    await broker.until_depth(amqp.followups_queue(REVIEW.routing_key), 1)
    async with transaction(engine) as connection:
        (kind,) = await outbox.kind_backlogs(connection)
        backlog = await outbox.backlog(connection)
    assert kind.kind == EXPLANATION.routing_key and kind.jobs <= len(waiting)
    assert backlog.oldest_age > 0 and backlog.oldest_result_age == 0

    channel = await broker.channel()
    queue = await channel.get_queue(full, ensure=False)
    await _take_all(queue, lambda taken: len(taken) == 20 + filling)
    await until(lambda: _left(engine), lambda left: not left)
    relay.stop()
    await running


@pytest.mark.broker
async def test_a_viewer_whose_queue_is_full_holds_up_nobody_else(
    broker: Broker, publisher: Publisher, engine: AsyncEngine
) -> None:
    channel = await broker.channel()
    full = await channel.declare_queue(
        amqp.results_queue("ada"),
        durable=True,
        arguments={"x-max-length": 1, "x-overflow": "reject-publish"},
    )
    await full.bind(amqp.RESULTS_EXCHANGE, amqp.result_key("ada"))
    open_queue = await channel.declare_queue(amqp.results_queue("bob"), durable=True)
    await open_queue.bind(amqp.RESULTS_EXCHANGE, amqp.result_key("bob"))
    with pytest.raises(DeliveryError):
        while True:  # the broker notices the bound a little late
            await broker.publish(
                b"{}", exchange=amqp.RESULTS_EXCHANGE, routing_key=amqp.result_key("ada")
            )

    few = _SETTINGS.model_copy(
        update={"relay_batch": 2, "pause_delay_min": 0.5, "pause_delay_max": 0.5}
    )
    refused = [_result("ada") for _ in range(5)]
    await _recorded(engine, refused)
    relay = Relay(engine, publisher, few)
    with capture_logs() as lines:
        running = asyncio.create_task(relay.run())
        for _ in range(5):
            await _recorded(engine, [_result("bob")])
            relay.wake()
            await until(
                lambda: _left(engine), lambda left: left == [each.message_id for each in refused]
            )
            assert relay.trouble is None
        await broker.until_depth(amqp.results_queue("bob"), 5)

        wanted = {str(each.message_id) for each in refused}
        await _take_all(full, lambda taken: taken >= wanted)
        await until(lambda: _left(engine), lambda left: not left)
        relay.stop()
        await running
    told = [line for line in lines if line["event"].startswith("relay.")]
    assert {line["event"] for line in told} == {"relay.results_held"}
    assert {line["routing_key"] for line in told} == {amqp.result_key("ada")}


@pytest.mark.broker
async def test_a_viewer_whose_queue_never_confirms_delays_one_round_and_not_each(
    broker: Broker, engine: AsyncEngine
) -> None:
    tried: list[list[str]] = []

    class NeverForAda(Publisher):
        """As if a queue of one viewer had lost the majority of its members."""

        async def publish_all(self, messages: Sequence[Outgoing]) -> list[Unconfirmed | None]:
            tried.append([each.routing_key for each in messages])
            answers = await super().publish_all(messages)
            return [
                Unconfirmed("A publish was not confirmed: TimeoutError.")
                if each.routing_key == amqp.result_key("ada")
                else answer
                for each, answer in zip(messages, answers, strict=True)
            ]

    ada, bob = amqp.result_key("ada"), amqp.result_key("bob")
    lasting = _SETTINGS.model_copy(update={"pause_delay_min": 60.0, "pause_delay_max": 60.0})
    stuck = _result("ada")
    async with NeverForAda(broker.settings) as publisher:
        relay = Relay(engine, publisher, lasting)
        for _ in range(3):
            await _recorded(engine, [*([] if tried else [stuck]), _result("bob")])
            assert await relay.relay() == 1
    assert tried == [[ada, bob], [bob], [bob]]
    assert await _left(engine) == [stuck.message_id]


async def test_jobs_of_a_kind_that_is_held_are_not_taken(engine: AsyncEngine) -> None:
    jobs = [_job(), _job(REVIEW.routing_key), _job(), _job("of.a.newer.worker")]
    await _recorded(engine, [*jobs, _result("ada")])
    async with transaction(engine) as connection:
        taken = await outbox.take(connection, results=9, jobs=9, held=[EXPLANATION.routing_key])
    assert [row.message.routing_key for row in taken] == [
        "result.ada",
        REVIEW.routing_key,
        "of.a.newer.worker",
    ]
    assert await _left(engine) == [jobs[0].message_id, jobs[2].message_id]


async def test_results_of_a_viewer_that_is_held_are_not_taken(engine: AsyncEngine) -> None:
    results = [_result("ada"), _result("ada"), _result("bob"), _result("ada"), _result("eve")]
    await _recorded(engine, results)
    async with transaction(engine) as connection:
        taken = await outbox.take(connection, results=2, jobs=9, held=[amqp.result_key("ada")])
    assert [row.message.routing_key for row in taken] == ["result.bob", "result.eve"]
    assert await _left(engine) == [results[n].message_id for n in (0, 1, 3)]


async def test_a_key_is_one_relays_and_its_rows_are_there_again_when_it_fails(
    engine: AsyncEngine,
) -> None:
    await _recorded(engine, [_result("ada"), _result("bob"), _result("ada")])

    async def taken(connection: AsyncConnection) -> list[tuple[int, str]]:
        return [
            (row.id, row.message.routing_key)
            for row in await outbox.take(connection, results=1, jobs=1)
        ]

    async with transaction(engine) as other:
        with suppress(_Killed):
            async with transaction(engine) as one:
                assert await taken(one) == [(1, "result.ada")]
                assert await taken(other) == []
                raise _Killed
        assert await taken(other) == [(1, "result.ada")]
        assert await taken(other) == [(2, "result.bob")]


class _Killed(Exception):
    pass


async def test_a_row_that_another_relay_has_just_deleted_is_not_taken(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _recorded(engine, [_result("ada"), _result("ada")])
    # Between its snapshot and its locks the statement waits for one that the test holds.
    slow = outbox._TAKE.text.replace(
        "WITH RECURSIVE",
        "WITH RECURSIVE wait AS MATERIALIZED (SELECT FROM pg_advisory_xact_lock(42)),",
        1,
    ).replace("WHERE pg_try", "WHERE (SELECT count(*) FROM wait) = 1 AND pg_try")

    async def second() -> list[Waiting]:
        async with transaction(engine) as connection:
            return await outbox.take(connection, results=10, jobs=0)

    async with engine.connect() as test:
        await test.execute(text("SELECT pg_advisory_lock(42)"))
        async with transaction(engine) as one:
            assert len(await outbox.take(one, results=10, jobs=0)) == 2
            monkeypatch.setattr(outbox, "_TAKE", text(slow))
            waiting = asyncio.create_task(second())
            await make.blocked(engine, 1)
        await test.execute(text("SELECT pg_advisory_unlock(42)"))
    assert await waiting == []
    assert await _left(engine) == []


_MEETS = {
    "a column's type": (
        "ALTER TABLE outbox ALTER COLUMN routing_key TYPE varchar(200)",
        "SELECT 1",
    ),
    "a table that is gone": (
        "ALTER TABLE outbox RENAME TO elsewhere",
        "ALTER TABLE elsewhere RENAME TO outbox",
    ),
    "a rule of somebody's": (
        "CREATE RULE never AS ON DELETE TO outbox DO INSTEAD NOTHING",
        "DROP RULE never ON outbox",
    ),
}


@pytest.mark.broker
@pytest.mark.parametrize("what", list(_MEETS))
async def test_whatever_the_database_says_the_relay_goes_on(
    what: str, broker: Broker, publisher: Publisher, engine: AsyncEngine
) -> None:
    begin, end = _MEETS[what]

    async def script(statements: str) -> None:
        async with engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            await driver.execute(statements)

    relay = Relay(engine, publisher, _SETTINGS)
    running = asyncio.create_task(relay.run())

    async def in_trouble() -> bool:
        return relay.trouble is not None or running.done()

    await _recorded(engine, [_result("a")])
    await until(lambda: make.count(engine, "outbox"), lambda count: count == 0)
    await script(begin)
    if end != "SELECT 1":
        await until(in_trouble, bool)
    await script(end)
    await _recorded(engine, [_result("a")])
    await until(lambda: make.count(engine, "outbox"), lambda count: count == 0)
    assert not running.done()
    relay.stop()
    await running
