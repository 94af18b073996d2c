"""What servers of the database do to a worker: a failover, a full disk, a replica that is away.

Each test has a server of its own, because others could not work on it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from chaos.proxy import Proxy
from devtools.errors import DevError
from devtools.postgres import Postgres, standby_of
from devtools.small_disk import ONLY_ROOT, small_disk
from schemas import amqp
from tests import factories as make
from tests.broker_fixtures import PATIENCE, Broker, until
from tests.whole_worker import working
from worker.broker.management import Management
from worker.consume.consumer import Consumer
from worker.errors import DatabaseAway
from worker.operate import status
from worker.settings import Settings
from worker.store import changed, connecting, schema
from worker.store.engine import make_engine, transaction

pytestmark = pytest.mark.broker

LONG = 4 * PATIENCE


@pytest.fixture
def server() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off", "full_page_writes": "off"}) as server:
        yield server


@pytest.fixture
async def link(server: Postgres) -> AsyncIterator[Proxy]:
    async with Proxy("127.0.0.1", server.port) as link:
        yield link


def settings_for(broker: Broker, url: str, **changed: object) -> Settings:
    given = broker.settings.model_dump(exclude_unset=True) | {"database_url": url} | changed
    return Settings.model_validate(given)


@pytest.fixture
async def engine(server: Postgres, broker: Broker) -> AsyncIterator[AsyncEngine]:
    """Past the link, to look and to prepare."""
    engine = make_engine(settings_for(broker, server.url), connections=4, name="tests")
    await schema.migrate(engine)
    yield engine
    await engine.dispose()


async def ask(server: Postgres, statement: str) -> None:
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def reach(consumer: Consumer, **counts: int) -> None:
    def reached() -> bool:
        return all(consumer.counts[name] >= number for name, number in counts.items())

    assert await consumer.changed.until(reached, LONG), (consumer.counts, consumer.why_paused)


async def paused(consumer: Consumer, reason: str) -> None:
    def because() -> bool:
        return reason in (consumer.why_paused or "")

    assert await consumer.changed.until(because, LONG), (consumer.state, consumer.why_paused)


async def open_all(engine: AsyncEngine, connections: int) -> None:
    """Has every session of the pool open at once, where the address leads now."""
    together = asyncio.Barrier(connections)

    async def session() -> None:
        async with transaction(engine) as connection:
            await connection.exec_driver_sql("SELECT 1")
            await together.wait()

    await asyncio.gather(*(session() for _ in range(connections)))


async def test_a_failover_behind_one_address_ends_by_itself(
    server: Postgres, link: Proxy, engine: AsyncEngine, broker: Broker
) -> None:
    (question,) = await make.publish(engine)
    url = f"postgresql://worker@127.0.0.1:{link.port}/{server.database}"
    settings = settings_for(broker, url)
    ours = make_engine(settings, connections=3, name="tests")
    try:
        with await asyncio.to_thread(standby_of, server) as standby:
            async with working(settings, ours) as consumer:
                await broker.publish(make.batch(make.right(question)).model_dump_json())
                await reach(consumer, ingested=1)
                # The address leads to a server that only reads, and what is open ends.
                link.lead_to(standby.port)
                link.reset()
                await broker.publish(make.batch(make.right(question)).model_dump_json())
                await paused(consumer, "read-only")
                await open_all(ours, 3)
                # Nor does anybody get progress from a server that may lag behind.
                with pytest.raises(DatabaseAway, match="standby"):
                    async with transaction(ours) as connection:
                        await changed.state(connection, user_id=1)
                # It leads to the primary again; sessions on the standby stay open.
                link.lead_to(server.port)
                await reach(consumer, ingested=2)
                assert consumer.counts == {"ingested": 2}
                await until(lambda: make.count(engine, "outbox"), lambda count: count == 0)
    finally:
        await ours.dispose()


async def test_a_failover_to_another_host_of_the_url_ends_by_itself(
    server: Postgres, engine: AsyncEngine, broker: Broker
) -> None:
    (question,) = await make.publish(engine)
    with await asyncio.to_thread(standby_of, server) as standby:
        url = (
            f"postgresql://worker@127.0.0.1:{standby.port},127.0.0.1:{server.port}"
            f"/{server.database}?target_session_attrs=read-write"
        )
        settings = settings_for(broker, url)
        ours = make_engine(settings, connections=3, name="tests")
        theirs = make_engine(settings_for(broker, standby.url), connections=1, name="tests")
        try:
            async with working(settings, ours) as consumer:
                await broker.publish(make.batch(make.right(question)).model_dump_json())
                await reach(consumer, ingested=1)
                # The standby has it before its primary is gone for good.
                await until(lambda: make.count(theirs, "ingest_inbox"), lambda count: count == 1)
                await asyncio.to_thread(server.kill)
                await broker.publish(make.batch(make.right(question)).model_dump_json())
                await ask(standby, "SELECT pg_promote(false)")
                await reach(consumer, ingested=2)
                assert await make.count(theirs, "ingest_inbox") == 2
        finally:
            await ours.dispose()
            await theirs.dispose()


async def test_commits_that_wait_for_a_replica_are_never_cancelled_and_charged_to_nobody(
    server: Postgres,
    engine: AsyncEngine,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connecting, "_CLIENT_MARGIN", 0.5)
    (question,) = await make.publish(engine)
    settings = settings_for(broker, server.url, statement_timeout=1.0, lock_timeout=0.5)
    ours = make_engine(settings, connections=3, name="tests")
    try:
        async with working(settings, ours) as consumer:
            await broker.publish(make.batch(make.right(question)).model_dump_json())
            await reach(consumer, ingested=1)
            await until(lambda: make.count(engine, "outbox"), lambda count: count == 0)
            await ask(server, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            await ask(server, "SELECT pg_reload_conf()")
            await broker.publish(make.batch(make.right(question)).model_dump_json())
            await paused(consumer, "commits hang")
            async with Management(broker.settings) as management:
                seen = await status.look(broker.settings, engine, management)
            assert "commits_hang" in {each.code for each in seen.attention}, seen.attention
            await ask(server, "ALTER SYSTEM RESET synchronous_standby_names")
            await ask(server, "SELECT pg_reload_conf()")
            await reach(consumer, duplicate=1)
            assert consumer.counts == {"ingested": 1, "duplicate": 1}
    finally:
        await ours.dispose()
    assert "canceling wait for synchronous replication" not in server.log.read_text()


@pytest.fixture
def small() -> Iterator[Path]:
    """A file system of 24 MB that PostgreSQL may write to."""
    with ExitStack() as made:
        try:
            folder = made.enter_context(small_disk(24))
        except DevError:
            pytest.skip(ONLY_ROOT)
        yield folder


async def fill(server: Postgres) -> None:
    """Fills the tablespace to its last page."""
    await ask(server, "CREATE TABLE filler (x text) TABLESPACE small")
    await ask(server, "ALTER TABLE filler ALTER x SET STORAGE PLAIN")
    for rows in (500, 100, 20, 5, 1, 1):
        while True:
            try:
                await ask(
                    server,
                    f"INSERT INTO filler SELECT repeat('x', 7000) FROM generate_series(1, {rows})",
                )
            except asyncpg.DiskFullError:
                break


async def test_a_tablespace_that_is_full_is_waited_for_with_steady_hands(
    small: Path, server: Postgres, engine: AsyncEngine, broker: Broker
) -> None:
    (question,) = await make.publish(engine)
    await ask(server, f"CREATE TABLESPACE small LOCATION '{small}'")
    for table in make.LOG_TABLES:
        await ask(server, f"ALTER TABLE {table} SET TABLESPACE small")
    settings = settings_for(broker, server.url, prefetch=20, group_max=5)
    ours = make_engine(settings, connections=3, name="tests")
    batches = 120
    try:
        with capture_logs() as logs:
            async with working(settings, ours) as consumer:
                await broker.publish(make.batch(make.right(question)).model_dump_json())
                await reach(consumer, ingested=1)
                await fill(server)
                for _ in range(batches):
                    attempts = [make.right(question)] * 20
                    await broker.publish(make.batch(*attempts).model_dump_json())
                await paused(consumer, "No space left")
                pauses = sum(line["event"] == "consumer.paused" for line in logs)
                # Reads work all the time, and each look at them would have ended the pause.
                for _ in range(10):
                    assert not await consumer.changed.until(
                        lambda: consumer.state == "consuming", timeout=0.3
                    )
                    assert consumer.in_hand <= settings.prefetch
                assert sum(line["event"] == "consumer.paused" for line in logs) == pauses
                await ask(server, "DROP TABLE filler")
                await reach(consumer, ingested=1 + batches)
                assert consumer.counts.keys() <= {"ingested", "given_back"}
    finally:
        await ours.dispose()
    assert await broker.depth(amqp.DEAD_QUEUE) == 0
