"""A standby takes over that has not everything: viewers find out, and bring back what is missing.

Primary and standby are servers of the test's own.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from devtools.postgres import Postgres, standby_of
from study_viewer import Attempt, AttemptBatch, Outbox, Relay, RelaySettings, State
from study_viewer.postgres import PostgresOutbox, PostgresRelay, outbox_table
from tests import factories as make
from tests.broker_fixtures import PATIENCE, Broker, until
from tests.factories import Published
from tests.faults.test_database_servers import settings_for
from tests.whole_worker import working
from worker.broker.management import Management
from worker.operate.doctor import database as doctor
from worker.operate.repair import verify
from worker.settings import Settings
from worker.store import schema
from worker.store.engine import make_engine

pytestmark = pytest.mark.broker

LONG = 4 * PATIENCE
BATCHES = 40
"""Of each viewer, before the standby is cut off, and again after it."""
QUICK = RelaySettings(
    retry_delay_min=0.02, retry_delay_max=0.1, poll_interval=0.02, check_patience=0.5
)
"""With checks repeated soon, and batches published again at the usual rate."""
METADATA = MetaData()
OUTBOX = PostgresOutbox(outbox_table(METADATA))


@pytest.fixture
def primary() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off", "full_page_writes": "off"}) as server:
        yield server


@dataclass
class Scene:
    """Two servers, a worker that knows both, and three viewers: two phones, and an application."""

    settings: Settings
    primary: Postgres
    standby: Postgres
    engine: AsyncEngine
    """The worker's, on whichever of them can be written to."""
    questions: dict[str, Published]
    phones: dict[str, Outbox]
    relays: dict[str, Relay | PostgresRelay]
    app: AsyncEngine

    async def record(self, count: int) -> list[UUID]:
        """So many sessions on each viewer."""
        recorded = []
        for viewer, question in self.questions.items():
            for _ in range(count):
                attempt = Attempt(question_pub_id=question.pub_id, selected_choice=1)
                batch = AttemptBatch(client_session_uuid=uuid4(), attempts=(attempt,))
                recorded.append(batch.client_session_uuid)
                if viewer in self.phones:
                    with closing(sqlite3.connect(self.phones[viewer].path)) as mine, mine:
                        self.phones[viewer].record(mine, batch)
                else:
                    async with self.app.begin() as connection:
                        await OUTBOX.record(connection, batch)
        return recorded

    async def settled(self) -> int:
        """How many sessions have a result and need no check."""
        count = 0
        for phone in self.phones.values():
            if phone.unchecked(1):
                return -1
            count += len(phone.settled(10_000))
        columns = OUTBOX.table.c
        async with self.app.connect() as connection:
            rows = await connection.execute(
                OUTBOX.table.select().where(columns.state == State.SETTLED, ~columns.unchecked)
            )
            return count + len(rows.all())

    async def ingested(self) -> int:
        return await make.count(self.engine, "ingest_inbox")

    @property
    def resent(self) -> int:
        return sum(relay.status.resent for relay in self.relays.values())

    async def agrees(self, recorded: int) -> None:
        """Everything is there once, and progress is its fold."""
        assert await self.ingested() == recorded
        assert await make.count(self.engine, "study_question_attempts") == recorded
        for user in await make.users(self.engine):
            assert [*await verify(self.engine, user, self.settings.policy())] == []


@pytest.fixture
async def scene(
    primary: Postgres, broker: Broker, tmp_path: Path, empty_database_url: str
) -> AsyncIterator[Scene]:
    url = f"postgresql+asyncpg://{empty_database_url.partition('://')[2]}"
    first = make_engine(settings_for(broker, primary.url), connections=2, name="tests")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(first.dispose)
        await schema.migrate(first)
        questions = {
            viewer: (await make.publish(first, user_id=user))[0]
            for user, viewer in enumerate(("phone-1", "phone-2", "app"), start=1)
        }
        standby = await asyncio.to_thread(standby_of, primary)
        stack.enter_context(standby)
        both = (
            f"postgresql://worker@127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
            f"/{primary.database}?target_session_attrs=read-write"
        )
        settings = settings_for(broker, both, pause_delay_max=0.5)
        engine = make_engine(settings, connections=4, name="tests")
        stack.push_async_callback(engine.dispose)
        app = create_async_engine(url)
        stack.push_async_callback(app.dispose)
        async with app.begin() as connection:
            await connection.run_sync(METADATA.create_all)
        address = broker.settings.amqp_url.get_secret_value()
        phones = {
            name: stack.enter_context(Outbox(tmp_path / f"{name}.db"))
            for name in ("phone-1", "phone-2")
        }
        relays: dict[str, Relay | PostgresRelay] = {
            "phone-1": Relay(phones["phone-1"], address, "phone-1", QUICK),
            # Nothing of it depends on progress.
            "phone-2": Relay(
                phones["phone-2"], address, "phone-2", replace(QUICK, keep_progress=False)
            ),
            "app": PostgresRelay(app, OUTBOX, address, "app", QUICK),
        }
        await stack.enter_async_context(working(settings, engine))
        for relay in relays.values():
            await stack.enter_async_context(running(relay))
        yield Scene(settings, primary, standby, engine, questions, phones, relays, app)


@asynccontextmanager
async def running(relay: Relay | PostgresRelay) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(relay.run(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def run(server: Postgres, statement: str) -> object:
    connection = await asyncpg.connect(server.url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def caught_up(scene: Scene) -> None:
    """Waits until the standby has everything that the primary has now."""
    lsn = await run(scene.primary, "SELECT pg_current_wal_lsn()::text")
    has = f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'"
    await until(lambda: run(scene.standby, has), bool)


async def test_viewers_bring_back_exactly_what_an_asynchronous_standby_has_not(
    scene: Scene, broker: Broker
) -> None:
    async with Management(broker.settings):
        found = await doctor.examine(scene.settings, scene.engine)
    (replication,) = (each for each in found if each.check == "replication")
    assert replication.severity == "note" and "walreceiver" in replication.found

    before = await scene.record(BATCHES)
    await until(scene.settled, len(before).__eq__)
    await caught_up(scene)
    await run(scene.standby, "ALTER SYSTEM SET primary_conninfo = ''")
    await run(scene.standby, "SELECT pg_reload_conf()")
    await until(lambda: run(scene.standby, "SELECT count(*) FROM pg_stat_wal_receiver"), (0).__eq__)
    lost = await scene.record(BATCHES)
    await until(scene.settled, len(before + lost).__eq__)

    await asyncio.to_thread(scene.primary.kill)
    await run(scene.standby, "SELECT pg_promote(false)")
    # Nobody knows until the server has something to say.
    after = await scene.record(1)
    recorded = len(before + lost + after)
    await until(scene.ingested, recorded.__eq__)
    await until(scene.settled, recorded.__eq__)
    assert scene.resent == len(lost)
    await scene.agrees(recorded)


async def test_a_switchover_that_loses_nothing_publishes_nothing_again(scene: Scene) -> None:
    before = await scene.record(BATCHES)
    await until(scene.settled, len(before).__eq__)
    # In order: the standby has everything that was ever acked.
    await asyncio.to_thread(scene.primary.stop)
    await run(scene.standby, "SELECT pg_promote(false)")
    after = await scene.record(1)
    await until(scene.settled, len(before + after).__eq__)
    assert scene.resent == 0
    await scene.agrees(len(before + after))
    epochs = {str(await run_on_phone(phone)) for phone in scene.phones.values()}
    assert len(epochs) == 1  # that of the standby, whose answer they had


async def run_on_phone(phone: Outbox) -> object:
    with closing(sqlite3.connect(phone.path)) as mine:
        return mine.execute("SELECT epoch FROM study_outbox_server").fetchone()[0]
