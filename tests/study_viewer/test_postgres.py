"""The outbox in the application's own PostgreSQL: its transaction, its Alembic, and any number of
relays.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column, Connection, Integer, MetaData, Table, func, make_url, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from study_viewer import BatchRefused, NoTransaction, State, UuidReused
from study_viewer.postgres import PostgresOutbox, PostgresRelay, outbox_table
from study_viewer.schemas.attempt_batch import Attempt, AttemptBatch
from study_viewer.schemas.words import Status
from tests.broker_fixtures import until
from tests.study_viewer.support import QUICK, VIEWER, Broker, make_batch, make_result

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
        assert await OUTBOX.prune(connection, now - timedelta(days=1)) == 0
        assert await OUTBOX.prune(connection, now + timedelta(days=1)) == 1


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


async def test_an_ingest_wins_over_a_rejection_and_erased_answers_go(app: AsyncEngine) -> None:
    (uuid,) = await recorded(app, make_batch())
    rejected = make_result(uuid, Status.REJECTED, reason="nothing_resolved", detail="x")
    ingested = make_result(uuid)
    erased = make_result(uuid, Status.ALREADY_INGESTED, erased_at=datetime.now(UTC))
    async with app.begin() as connection:
        for result in (rejected, ingested, rejected):
            assert await OUTBOX.settle(connection, result)
        entry = await OUTBOX.get(connection, uuid)
        assert entry is not None and entry.state is State.SETTLED and not entry.rejected
        await OUTBOX.settle(connection, erased)
        entry = await OUTBOX.get(connection, uuid)
        assert entry is not None and entry.erased
        assert not await OUTBOX.settle(connection, make_result(uuid4()))


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
