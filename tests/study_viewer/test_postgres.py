"""The outbox in the application's own PostgreSQL: its transaction, its Alembic, and any number of
relays.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from aio_pika.abc import AbstractIncomingMessage
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column, Connection, Integer, MetaData, Table, func, make_url, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from study_viewer import BatchRefused, NoTransaction, State, UuidReused
from study_viewer.postgres import PostgresOutbox, PostgresRelay, outbox_table
from study_viewer.schemas.amqp import (
    CHECK_TYPE,
    CHECKED_TYPE,
    INGEST_EXCHANGE,
    PROGRESS_QUEUE,
    PROGRESS_REQUESTS_BINDING,
)
from study_viewer.schemas.attempt_batch import Attempt, AttemptBatch
from study_viewer.schemas.checks import Check, Checked
from study_viewer.schemas.words import Status
from tests.broker_fixtures import until
from tests.study_viewer.support import QUICK, VIEWER, Broker, make_batch, make_result

QUICK = replace(QUICK, check_patience=0.2, resend_rate=1_000.0)

APP = MetaData()
MINE = Table("my_sessions", APP, Column("id", Integer, primary_key=True))
OUTBOX = PostgresOutbox(outbox_table(APP))


@pytest.fixture
async def app(empty_database_url: str) -> AsyncIterator[AsyncEngine]:
    """The application's engine, on a database that its own Alembic has migrated."""
    url = make_url(empty_database_url).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url)

    def migrate(connection: Connection) -> None:
        context = MigrationContext.configure(connection)
        changes = produce_migrations(context, APP)
        assert changes.upgrade_ops is not None
        operations = Operations(context)
        stack: list[Any] = [changes.upgrade_ops]
        while stack:
            each = stack.pop(0)
            if hasattr(each, "ops"):
                stack[:0] = each.ops
            else:
                operations.invoke(each)
        again = produce_migrations(context, APP).upgrade_ops
        assert again is not None and again.is_empty(), "its next revision would be empty"

    async with engine.begin() as connection:
        await connection.run_sync(migrate)
    yield engine
    await engine.dispose()


async def recorded(app: AsyncEngine, *batches: AttemptBatch) -> list[UUID]:
    async with AsyncSession(app) as session, session.begin():
        for batch in batches:
            assert await OUTBOX.record(session, batch)
    return [batch.client_session_uuid for batch in batches]


async def states(app: AsyncEngine) -> Counter[str]:
    async with app.connect() as connection:
        rows = await connection.execute(
            select(OUTBOX.table.c.state, func.count()).group_by(OUTBOX.table.c.state)
        )
        return Counter({row[0]: row[1] for row in rows})


async def settled_at(app: AsyncEngine, at: datetime, *uuids: UUID) -> None:
    """Settles them as the first server would have done then."""
    table = OUTBOX.table
    async with app.begin() as connection:
        for uuid in uuids:
            await OUTBOX.settle(connection, make_result(uuid, received_at=at), "one")
        ours = table.c.client_session_uuid.in_(uuids)
        await connection.execute(table.update().where(ours).values(settled_at=at))


async def unchecked(connection: AsyncConnection) -> list[UUID]:
    columns = OUTBOX.table.c
    found = select(columns.client_session_uuid).where(columns.unchecked).order_by(columns.seq)
    return [*await connection.scalars(found)]


@asynccontextmanager
async def relaying(
    app: AsyncEngine, broker: Broker, count: int = 1
) -> AsyncIterator[list[PostgresRelay]]:
    relays = [PostgresRelay(app, OUTBOX, broker.url, VIEWER, QUICK) for _ in range(count)]
    tasks = [asyncio.create_task(relay.run()) for relay in relays]
    try:
        yield relays
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


# ------------------------------------------------------------------------------------- recording


@pytest.mark.parametrize("commits", [True, False])
async def test_a_batch_shares_the_fate_of_the_applications_own_rows(
    app: AsyncEngine, commits: bool
) -> None:
    async with AsyncSession(app) as session:
        await session.execute(MINE.insert().values(id=1))
        assert await OUTBOX.record(session, make_batch(), user_id=42)
        await (session.commit() if commits else session.rollback())
    async with app.connect() as connection:
        mine = await connection.scalar(select(func.count()).select_from(MINE))
    assert mine == (await states(app)).total() == int(commits)


async def test_a_synchronous_session_records_in_the_same_way(app: AsyncEngine) -> None:
    batch = make_batch()

    def work(connection: Connection) -> tuple[bool, bool, bool]:
        with Session(connection) as session:
            first = OUTBOX.record(session, batch)
            again = OUTBOX.record(session, batch)
            with pytest.raises(UuidReused):
                OUTBOX.record(session, make_batch(batch.client_session_uuid, choice=2))
            session.flush()
            return first, again, OUTBOX.record(connection, batch)

    async with app.begin() as connection:
        assert await connection.run_sync(work) == (True, False, False)
    assert await states(app) == {"pending": 1}


async def test_what_no_worker_would_take_is_refused(app: AsyncEngine) -> None:
    silent = AttemptBatch(client_session_uuid=uuid4(), attempts=(Attempt(question_pub_id="q"),))
    async with AsyncSession(app) as session:
        with pytest.raises(BatchRefused):
            await OUTBOX.record(session, silent)
        with pytest.raises(ValueError, match="traceparent"):
            await OUTBOX.record(session, make_batch(), traceparent="00-1-2-3")
    async with app.connect() as plain:
        autocommit = await plain.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(NoTransaction):
            await OUTBOX.record(autocommit, make_batch())
    assert await states(app) == {}


async def test_two_requests_with_one_session_record_it_once(app: AsyncEngine) -> None:
    batch = make_batch()

    async def request() -> bool:
        async with AsyncSession(app) as session, session.begin():
            return await OUTBOX.record(session, batch)

    assert sorted(await asyncio.gather(*(request() for _ in range(8)))) == [False] * 7 + [True]


# -------------------------------------------------------------------------------------- relaying


@pytest.mark.broker
async def test_a_batch_is_published_and_settled_by_its_result(
    app: AsyncEngine, broker: Broker
) -> None:
    await broker.consume()
    batch = make_batch()
    async with AsyncSession(app) as session, session.begin():
        await OUTBOX.record(session, batch, user_id=42)
    async with relaying(app, broker):
        message = await broker.next()
        assert message.headers["study-principal"] == "42"
        assert AttemptBatch.model_validate_json(message.body) == batch
        await broker.answer(make_result(batch.client_session_uuid))
        await until(lambda: states(app), {"settled": 1}.__eq__)
    async with app.connect() as connection:
        entry = await OUTBOX.get(connection, batch.client_session_uuid)
        assert entry is not None and entry.result is not None and entry.batch == batch
        assert await OUTBOX.get(connection, uuid4()) is None
    async with app.begin() as connection:
        now = datetime.now(UTC)
        assert await OUTBOX.prune(connection, now + timedelta(days=1)) == 0
        forgetful = PostgresOutbox(OUTBOX.table, resend_window=timedelta())
        assert await forgetful.prune(connection, now - timedelta(days=1)) == 0
        assert await forgetful.prune(connection, now + timedelta(days=1)) == 1


@pytest.mark.broker
async def test_any_number_of_relays_publish_each_batch_once(
    app: AsyncEngine, broker: Broker
) -> None:
    await broker.consume()
    uuids = await recorded(app, *(make_batch() for _ in range(300)))
    async with relaying(app, broker, 4):
        await until(lambda: states(app), {"confirmed": 300}.__eq__)
        for uuid in uuids:
            await broker.answer(make_result(uuid))
        await until(lambda: states(app), {"settled": 300}.__eq__)
    arrived = Counter(
        json.loads(broker.arrived.get_nowait().body)["client_session_uuid"]
        for _ in range(broker.arrived.qsize())
    )
    assert arrived == Counter(map(str, uuids))


@pytest.mark.broker
async def test_what_a_relay_held_when_it_died_is_published_by_another(
    app: AsyncEngine, broker: Broker
) -> None:
    (uuid,) = await recorded(app, make_batch())
    await broker.consume()
    connection = await app.connect()  # a relay that has published, and has not committed
    transaction = await connection.begin()
    assert len(await OUTBOX.claim(connection, 900, 900)) == 1
    async with relaying(app, broker):
        other = await recorded(app, make_batch())
        assert await broker.next_uuid() == other[0], "the other relay does not wait for it"
        await transaction.rollback()
        await connection.close()
        assert await broker.next_uuid() == uuid
        await until(lambda: states(app), {"confirmed": 2}.__eq__)


@pytest.mark.broker
async def test_a_batch_without_a_result_is_published_again_after_a_while(
    app: AsyncEngine, broker: Broker
) -> None:
    (uuid,) = await recorded(app, make_batch())
    await broker.consume()
    async with relaying(app, broker):
        await broker.next()
        await until(lambda: states(app), {"confirmed": 1}.__eq__)
        async with app.begin() as connection:
            await connection.execute(
                OUTBOX.table.update().values(confirmed_at=datetime.now(UTC) - timedelta(hours=1))
            )
        assert await broker.next_uuid() == uuid


@pytest.mark.broker
async def test_a_refusal_is_shown_and_the_batch_stays(app: AsyncEngine, broker: Broker) -> None:
    await recorded(app, make_batch())
    await broker.attempts.unbind("study.ingest", "attempts.v1.#")
    async with relaying(app, broker) as (relay,):

        async def problem() -> str | None:
            return relay.status.problem

        assert "no queue takes messages" in await until(problem, bool)
        assert await states(app) == {"pending": 1}
        await broker.attempts.bind("study.ingest", "attempts.v1.#")
        await until(lambda: states(app), {"confirmed": 1}.__eq__)


async def test_an_ingest_wins_over_less_and_erased_answers_go(app: AsyncEngine) -> None:
    (uuid,) = await recorded(app, make_batch())
    rejected = make_result(uuid, Status.REJECTED, reason="nothing_resolved", detail="x")
    ingested = make_result(uuid)
    erased = make_result(uuid, Status.ALREADY_INGESTED, erased_at=datetime.now(UTC))
    async with app.begin() as connection:
        for result in (rejected, ingested, rejected):
            assert await OUTBOX.settle(connection, result)
        entry = await OUTBOX.get(connection, uuid)
        assert entry is not None and entry.state is State.SETTLED and not entry.rejected
        pruned = make_result(uuid, Status.ALREADY_INGESTED, pruned=True)
        assert await OUTBOX.settle(connection, pruned)
        assert (kept := await OUTBOX.get(connection, uuid)) is not None
        assert kept.result == ingested
        await OUTBOX.settle(connection, erased)
        entry = await OUTBOX.get(connection, uuid)
        assert entry is not None and entry.erased
        assert not await OUTBOX.settle(connection, make_result(uuid4()))
    (again,) = await recorded(app, make_batch())
    async with app.begin() as connection:
        for result in (rejected, pruned):
            await OUTBOX.settle(
                connection, result.model_copy(update={"client_session_uuid": again})
            )
        entry = await OUTBOX.get(connection, again)
        assert entry is not None and entry.result is not None and entry.result.pruned


async def test_what_another_server_may_have_lost_is_unchecked_until_it_has_said_so(
    app: AsyncEngine,
) -> None:
    settings = replace(QUICK, check_patience=0.0, resend_rate=1e6)
    old, lost, kept, gone = await recorded(app, *(make_batch() for _ in range(4)))
    two_days = timedelta(days=2)
    long_ago = datetime.now(UTC) - two_days
    await settled_at(app, long_ago, old)
    async with app.begin() as connection:
        for uuid in (lost, kept):
            assert await OUTBOX.settle(connection, make_result(uuid), "one")
        await OUTBOX.settle(connection, make_result(gone, erased_at=datetime.now(UTC)), "one")
    async with app.begin() as connection:
        assert await OUTBOX.claim_check(connection, settings) == ([], 0.0)
        assert not await OUTBOX.saw(connection, "one")
        assert await OUTBOX.saw(connection, "two")
    async with app.begin() as connection:
        asked, _ = await OUTBOX.claim_check(connection, settings)
        assert asked == [lost, kept]
        former = Checked(epoch="one", has=(lost, kept), missing=())
        assert await OUTBOX.take_checked(connection, former, settings) is None
        answer = Checked(epoch="two", has=(kept,), missing=(lost, old, gone, uuid4()))
        assert await OUTBOX.take_checked(connection, answer, settings) is None
    for again in (1, 0):
        async with app.begin() as connection:
            assert await OUTBOX.take_checked(connection, answer, settings) == again
    assert await states(app) == {"settled": 3, "pending": 1}
    async with app.begin() as connection:
        entry = await OUTBOX.get(connection, lost)
        assert entry is not None and entry.state is State.PENDING and entry.result is None
        # A recall goes by the server's clock, whatever the age and the epoch.
        assert await OUTBOX.doubt(connection, datetime(2020, 1, 1, tzinfo=UTC)) == 2
        assert await OUTBOX.doubt(connection, datetime.now(UTC) + two_days) == 0
    async with app.begin() as connection:
        asked, _ = await OUTBOX.claim_check(connection, settings)
        assert asked == [old, kept]
        # A result of this server needs no check, and nothing pruned comes back.
        await OUTBOX.settle(connection, make_result(old, received_at=long_ago), "two")
        assert await OUTBOX.prune(connection, datetime.now(UTC)) == 1
        asked, _ = await OUTBOX.claim_check(connection, settings)
        assert asked == [kept]


async def test_a_result_that_waited_for_the_relays_does_not_move_the_window(
    app: AsyncEngine,
) -> None:
    # No relay ran for a week, and the queue has kept a result of the former server.
    before, older, waited = await recorded(app, *(make_batch() for _ in range(3)))
    now = datetime.now(UTC)
    await settled_at(app, now - timedelta(days=7.5), before)
    await settled_at(app, now - timedelta(days=8.5), older)
    async with app.begin() as connection:
        result = make_result(waited, received_at=now - timedelta(days=7))
        await OUTBOX.settle(connection, result, "one")
        assert await OUTBOX.prune(connection, now - timedelta(days=1)) == 1
        await OUTBOX.saw(connection, "two")
        assert await unchecked(connection) == [before, waited]


async def test_pruning_keeps_what_is_unchecked_until_the_server_has_said_that_it_has_it(
    app: AsyncEngine,
) -> None:
    old, erased, new = await recorded(app, *(make_batch() for _ in range(3)))
    now = datetime.now(UTC)
    then, two_days_ago = now - timedelta(days=3), now - timedelta(days=2)
    await settled_at(app, then, old, erased)
    await settled_at(app, now, new)
    async with app.begin() as connection:
        assert await OUTBOX.doubt(connection, now - timedelta(days=4)) == 3
        assert await OUTBOX.prune(connection, two_days_ago) == 0
        # Nobody will ever ask about what was erased.
        gone = make_result(erased, received_at=then, erased_at=now)
        await OUTBOX.settle(connection, gone, None)
        assert await OUTBOX.prune(connection, two_days_ago) == 1
        answer = Checked(epoch="one", has=(old, new), missing=())
        assert await OUTBOX.take_checked(connection, answer, QUICK) == 0
        assert await OUTBOX.prune(connection, two_days_ago) == 1
        assert await OUTBOX.get(connection, old) is None


@pytest.mark.parametrize("message", ["an answer", "a recall"])
async def test_relays_that_get_a_message_while_the_epoch_changes_wait_for_each_other(
    app: AsyncEngine, message: str
) -> None:
    uuids = await recorded(app, make_batch(), make_batch())
    now = datetime.now(UTC)
    await settled_at(app, now, *uuids)
    async with app.begin() as connection:
        assert await OUTBOX.doubt(connection, now) == 2

    async def take() -> int | None:
        async with app.begin() as connection:
            if message == "a recall":
                return await OUTBOX.doubt(connection, now)
            answer = Checked(epoch="one", has=(), missing=tuple(uuids))
            return await OUTBOX.take_checked(connection, answer, QUICK)

    async def waits_for_a_lock() -> bool:
        async with app.connect() as connection:
            waiting = """
                SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'
            """
            return bool(await connection.scalar(text(waiting)))

    async with app.begin() as connection:
        # The other relay is in the middle of `saw`, which begins with the row of the server.
        await connection.execute(select(APP.tables["study_outbox_server"]).with_for_update())
        taking = asyncio.create_task(take())
        await until(waits_for_a_lock, True.__eq__)
        assert await OUTBOX.saw(connection, "two")
    # The answer is late by now: it is of the epoch before.
    assert await taking == (2 if message == "a recall" else None)
    async with app.connect() as connection:
        assert await unchecked(connection) == uuids


async def test_one_relay_asks_at_a_time_and_ever_more_slowly(app: AsyncEngine) -> None:
    settings = replace(QUICK, check_patience=100.0, check_patience_max=150.0, resend_rate=0.01)
    (uuid,) = await recorded(app, make_batch())
    server = APP.tables["study_outbox_server"]
    async with app.begin() as connection:
        await OUTBOX.settle(connection, make_result(uuid), "one")
        await OUTBOX.saw(connection, "two")

    async def claim() -> list[UUID]:
        async with app.begin() as connection:
            return (await OUTBOX.claim_check(connection, settings))[0]

    async def wait() -> float:
        async with app.connect() as connection:
            at: datetime = (await connection.execute(select(server.c.ask_at))).scalar_one()
            return (at - datetime.now(UTC)).total_seconds()

    claims = await asyncio.gather(*(claim() for _ in range(5)))
    assert sorted(map(len, claims)) == [0, 0, 0, 0, 1]
    assert 50 < await wait() <= 100
    async with app.begin() as connection:
        await connection.execute(server.update().values(ask_at=datetime.now(UTC)))
    assert await claim() == [uuid]
    assert 100 < await wait() <= 150
    async with app.begin() as connection:
        answer = Checked(epoch="two", has=(), missing=(uuid,))
        assert await OUTBOX.take_checked(connection, answer, settings) == 1
    assert 50 < await wait() <= 100  # one batch at this rate


@pytest.mark.broker
async def test_relays_find_out_what_is_missing_and_publish_it_once(
    app: AsyncEngine, broker: Broker
) -> None:
    queue = await broker.channel.declare_queue(PROGRESS_QUEUE, durable=True)
    await queue.bind(INGEST_EXCHANGE, PROGRESS_REQUESTS_BINDING)
    uuids = await recorded(app, *(make_batch() for _ in range(250)))
    async with app.begin() as connection:
        for uuid in uuids:
            await OUTBOX.settle(connection, make_result(uuid), "one")
    lost = {*uuids[::10]}

    async def answer(message: AbstractIncomingMessage) -> None:
        assert message.type == CHECK_TYPE
        asked = Check.model_validate_json(message.body).client_session_uuids
        told = Checked(
            epoch="two",
            has=tuple(uuid for uuid in asked if uuid not in lost),
            missing=tuple(uuid for uuid in asked if uuid in lost),
        )
        await broker.answer(told, kind=CHECKED_TYPE)

    await queue.consume(answer, no_ack=True)
    await broker.consume()
    (new,) = await recorded(app, make_batch())
    async with relaying(app, broker, 3) as relays:
        assert await broker.next_uuid() == new
        await broker.answer(make_result(new), epoch="two")
        again = [await broker.next_uuid() for _ in lost]
        assert {*again} == lost
        for uuid in again:
            await broker.answer(make_result(uuid), epoch="two")
        await until(lambda: states(app), {"settled": 251}.__eq__)
        assert sum(relay.status.resent for relay in relays) == len(lost)
    assert broker.arrived.empty()


@pytest.mark.broker
async def test_the_page_works_as_it_stands(
    empty_database_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(empty_database_url).set(drivername="postgresql+asyncpg")
    monkeypatch.setenv("APP_DATABASE_URL", url.render_as_string(hide_password=False))
    monkeypatch.setenv("APP_AMQP_URL", broker.url)
    page = (Path(__file__).parents[2] / "docs" / "server-outbox.md").read_text()
    there: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(block, there)
    async with there["engine"].begin() as connection:
        await connection.run_sync(there["Base"].metadata.create_all)
    await broker.consume()
    stop = asyncio.Event()
    relaying = asyncio.create_task(there["relay"](stop))
    await there["finish_session"](42, [Attempt(question_pub_id="q-1", selected_choice=2)])
    message = await broker.next()
    assert message.routing_key == "attempts.v1.quiz-app"
    assert message.headers["study-principal"] == "42"
    stop.set()
    await relaying
    await there["engine"].dispose()
