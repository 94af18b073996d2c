"""What failures of the database mean: unreachable, temporary, or a bug. All of them are real."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

import pytest
from asyncpg import (
    CheckViolationError,
    DataError,
    InsufficientPrivilegeError,
    UndefinedTableError,
)
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

from tests import factories as make
from tests.factories import right, sent
from worker.domain.dispositions import Duplicate, Ingested
from worker.domain.policy import Policy
from worker.errors import DatabaseAway, SessionStale, TransientFault
from worker.ingest.transaction import Ingest
from worker.ingest.trial import try_writing
from worker.settings import Settings
from worker.store import connecting
from worker.store.driver import fetch
from worker.store.engine import make_engine, transaction

Connect = Callable[..., AsyncEngine]
Run = Callable[..., Coroutine[Any, Any, object]]

_UNKNOWN: Final = "SELECT * FROM no_such_table"
_REFUSED: Final = "INSERT INTO published (pub_id, kind, source_id) VALUES ('', 'x', 1)"


@pytest.fixture
async def connect(database_url: str) -> AsyncIterator[Connect]:
    """Makes engines on the test's database, with other settings where they are given."""
    made: list[AsyncEngine] = []

    def new(url: str = database_url, connections: int = 2, **settings: object) -> AsyncEngine:
        made.append(
            make_engine(
                Settings(database_url=url, amqp_url="amqp://unused", **settings),  # type: ignore[arg-type]
                connections=connections,
                name="under-test",
            )
        )
        return made[-1]

    yield new
    for engine in made:
        await engine.dispose()


async def _by_sqlalchemy(engine: AsyncEngine, *statements: str) -> object:
    async with transaction(engine) as connection:
        for statement in statements:
            result = await connection.execute(text(statement))
        return result.scalar() if result.returns_rows else None


async def _by_driver(engine: AsyncEngine, *statements: str) -> object:
    async with transaction(engine) as connection:
        for statement in statements:
            rows = await fetch(connection, text(statement), {})
        return rows[0][0] if rows else None


@pytest.fixture(params=[_by_sqlalchemy, _by_driver], ids=["SQLAlchemy", "driver"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs statements in one transaction, each way that the store has; the last one's value."""
    way: Run = request.param
    return way


async def _terminate(engine: AsyncEngine, name: str = "under-test") -> None:
    await make.execute(
        engine,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = :name"
        " AND pid <> pg_backend_pid()",
        name=name,
    )


@asynccontextmanager
async def _end_held_back(url: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A way to the server by which all arrives but a connection's end; that sets the event."""
    server, ended = make_url(url), asyncio.Event()
    held: list[asyncio.StreamWriter] = []

    async def forward(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        held.append(to_client)
        there, to_server = await asyncio.open_connection(server.host, server.port or 5432)

        async def upwards() -> None:
            while data := await client.read(65_536):
                to_server.write(data)

        asking = asyncio.create_task(upwards())
        while data := await there.read(65_536):
            to_client.write(data)
        to_server.close()
        ended.set()
        await asking

    proxy = await asyncio.start_server(forward, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    async with proxy:
        by_proxy = server.set(host="127.0.0.1", port=port)
        yield by_proxy.render_as_string(hide_password=False), ended
        for to_client in held:
            to_client.close()


async def _turns() -> None:
    """Lets what lies in the sockets be read."""
    for _ in range(20):
        await asyncio.sleep(0)


# ----------------------------------------------------------------------------- transactions


async def test_a_transaction_commits_at_its_end_and_is_rolled_back_when_it_raises(
    engine: AsyncEngine, run: Run
) -> None:
    insert = "INSERT INTO study_topics (user_id) VALUES (1)"
    await run(engine, insert)
    with pytest.raises(KeyError):
        async with transaction(engine) as connection:
            await connection.execute(text(insert))
            raise KeyError
    assert await make.count(engine, "study_topics") == 1


async def test_a_connection_that_ends_is_away_before_its_end_has_arrived(
    engine: AsyncEngine, database_url: str, connect: Connect, run: Run
) -> None:
    async with _end_held_back(database_url) as (url, ended):
        pool = connect(url, connections=1)
        await run(pool, "SELECT 1")
        await _terminate(engine)
        await ended.wait()
        await _turns()
        with pytest.raises(DatabaseAway, match=r"^The database is away: [^\n]+\.$"):
            await run(pool, "SELECT 1")

        ended.clear()
        with pytest.raises(DatabaseAway, match=r"^The database is away: [^\n]+\.$"):
            async with transaction(pool) as connection:
                await fetch(connection, text("SELECT 1"), {})
                await _terminate(engine)
                await ended.wait()
                await _turns()
                if run is _by_driver:
                    await fetch(connection, text("SELECT 1"), {})
                else:
                    await connection.execute(text("SELECT 1"))
        assert await run(pool, "SELECT 7") == 7


async def test_a_connection_that_ends_while_it_is_set_up_is_away(
    engine: AsyncEngine, database_url: str, connect: Connect, run: Run
) -> None:
    async with _end_held_back(database_url) as (url, ended):
        pool = connect(url, connections=1)
        dialect = pool.sync_engine.dialect
        ask_server = dialect.initialize

        def initialize(connection: Connection) -> None:
            if not ended.is_set():
                await_only(_terminate(engine))
                await_only(ended.wait())
                await_only(_turns())
            ask_server(connection)

        dialect.initialize = initialize  # type: ignore[method-assign]
        with pytest.raises(DatabaseAway, match=r"^The database is away: it closed the connection"):
            await run(pool, "SELECT 1")
        assert await run(pool, "SELECT 7") == 7


async def test_a_cancelled_transaction_is_rolled_back_and_its_connection_given_back(
    connect: Connect, run: Run
) -> None:
    engine = connect(connections=1, transaction_timeout=1.0)

    async def work() -> None:
        await run(engine, "INSERT INTO study_topics (user_id) VALUES (1)", "SELECT pg_sleep(10)")

    task = asyncio.create_task(work())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await make.count(engine, "study_topics") == 0


async def test_a_connection_is_named_in_utc_with_its_timeouts(connect: Connect, run: Run) -> None:
    engine = connect(statement_timeout=1.5, lock_timeout=0.25, idle_in_transaction_timeout=2.0)
    found = {
        name: await run(engine, f"SHOW {name}")
        for name in (
            "application_name",
            "timezone",
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
        )
    }
    assert found == {
        "application_name": "under-test",
        "timezone": "UTC",
        "statement_timeout": "1500ms",
        "lock_timeout": "250ms",
        "idle_in_transaction_session_timeout": "2s",
    }


async def test_the_connection_that_was_used_last_is_used_again(connect: Connect) -> None:
    engine = connect(connections=3)
    together = asyncio.Barrier(3)

    async def at_once() -> object:
        async with transaction(engine) as connection:
            await together.wait()
            return await connection.scalar(text("SELECT pg_backend_pid()"))

    backends = await asyncio.gather(*[at_once() for _ in range(3)])
    assert len(set(backends)) == 3
    one_by_one = {await _by_sqlalchemy(engine, "SELECT pg_backend_pid()") for _ in range(6)}
    assert len(one_by_one) == 1


async def test_an_isolation_level_lasts_for_one_transaction(connect: Connect, run: Run) -> None:
    engine = connect(connections=1)
    async with transaction(engine, isolation="repeatable_read") as connection:
        level = await connection.scalar(text("SHOW transaction_isolation"))
    assert level == "repeatable read"
    assert await run(engine, "SHOW transaction_isolation") == "read committed"


# ------------------------------------------------------------------------ passing failures


async def test_a_deadlock_passes(engine: AsyncEngine) -> None:
    both_hold = asyncio.Barrier(2)

    async def crosswise(first: int, second: int) -> None:
        async with transaction(engine) as connection:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({first})"))
            await both_hold.wait()
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({second})"))

    failures = await asyncio.gather(crosswise(1, 2), crosswise(2, 1), return_exceptions=True)
    assert sorted(type(each).__name__ for each in failures) == ["NoneType", "TransientFault"]
    assert any("40P01" in str(each) for each in failures)


async def test_a_serialization_failure_passes(engine: AsyncEngine, run: Run) -> None:
    await run(engine, "INSERT INTO study_topics (id, user_id) VALUES (1, 1)")
    update = text("UPDATE study_topics SET user_id = user_id + 1")
    with pytest.raises(TransientFault, match="40001"):
        async with transaction(engine, isolation="repeatable_read") as connection:
            await connection.execute(text("SELECT * FROM study_topics"))
            await run(engine, "UPDATE study_topics SET user_id = 5")
            await connection.execute(update)


async def test_waiting_for_a_lock_too_long_passes(
    engine: AsyncEngine, connect: Connect, run: Run
) -> None:
    impatient = connect(lock_timeout=0.05)
    async with transaction(engine) as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(1)"))
        with pytest.raises(TransientFault, match="55P03"):
            await run(impatient, "SELECT pg_advisory_xact_lock(1)")
    await run(impatient, "SELECT pg_advisory_xact_lock(1)")


async def test_a_statement_that_takes_too_long_passes(connect: Connect, run: Run) -> None:
    engine = connect(statement_timeout=0.05)
    with pytest.raises(TransientFault, match="57014"):
        await run(engine, "SELECT pg_sleep(5)")
    assert await run(engine, "SELECT 1") == 1


# ------------------------------------------------------------------------ the database is away


async def test_a_backend_ended_in_the_middle_is_away_and_the_next_connection_is_new(
    engine: AsyncEngine, connect: Connect, run: Run
) -> None:
    ours = connect(connections=1)
    task: asyncio.Task[object] = asyncio.create_task(run(ours, "SELECT pg_sleep(10)"))
    await asyncio.sleep(0.2)
    await _terminate(engine)
    with pytest.raises(DatabaseAway):
        await task
    assert await run(ours, "SELECT 1") == 1


async def test_connections_that_died_while_idle_are_replaced_before_they_are_used(
    engine: AsyncEngine, connect: Connect, run: Run
) -> None:
    ours = connect(connections=5)
    await asyncio.gather(*(run(ours, "SELECT pg_sleep(0.1)") for _ in range(5)))
    await _terminate(engine)
    await asyncio.sleep(0.1)
    results = await asyncio.gather(*(run(ours, "SELECT 1") for _ in range(5)))
    assert results == [1] * 5


@pytest.mark.parametrize("stands_still", [False, True])
async def test_a_transaction_left_idle_is_no_fault_of_the_server(
    connect: Connect, run: Run, stands_still: bool
) -> None:
    engine = connect(idle_in_transaction_timeout=0.3)
    with pytest.raises(TransientFault, match="25P03"):
        async with transaction(engine) as connection:
            await connection.execute(text("SELECT 1"))
            if stands_still:
                time.sleep(0.8)  # noqa: ASYNC251  # as a long computation does
            else:
                await asyncio.sleep(0.8)
            await connection.execute(text("SELECT 1"))
    assert await run(engine, "SELECT 1") == 1


async def test_a_transaction_left_idle_at_its_end_is_no_fault_of_the_server(
    connect: Connect, run: Run
) -> None:
    engine = connect(idle_in_transaction_timeout=0.3)
    with pytest.raises(TransientFault, match="25P03"):
        async with transaction(engine) as connection:
            await fetch(connection, text("SELECT 1"), {})
            await asyncio.sleep(0.8)
    assert await run(engine, "SELECT 1") == 1


async def test_a_session_that_ends_before_the_idle_timeout_is_lost(
    engine: AsyncEngine, connect: Connect
) -> None:
    ours = connect()
    with pytest.raises(DatabaseAway):
        async with transaction(ours) as connection:
            await fetch(connection, text("SELECT 1"), {})
            await _terminate(engine)
            await asyncio.sleep(0.1)
            await fetch(connection, text("SELECT 1"), {})


async def test_a_server_that_does_not_even_time_out_is_away(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setattr(connecting, "_CLIENT_MARGIN", 0.1)
    engine = connect(statement_timeout=1)  # in which a busy machine answers
    with pytest.raises(DatabaseAway):
        await run(engine, "SET LOCAL statement_timeout = 0", "SELECT pg_sleep(10)")
    assert await run(engine, "SELECT 1") == 1


async def test_no_such_database_host_port_or_login_is_away(
    connect: Connect, database_url: str, unused_tcp_port: int, run: Run
) -> None:
    url = make_url(database_url)
    for changed in (
        url.set(database="no_such_database"),
        url.set(host="no-such-host.invalid"),
        url.set(host="127.0.0.1", port=unused_tcp_port),
        url.set(username="no_such_login"),
    ):
        with pytest.raises(DatabaseAway) as caught:
            await run(connect(changed.render_as_string(hide_password=False)), "SELECT 1")
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


async def test_no_room_for_another_connection_is_away(
    engine: AsyncEngine, connect: Connect, database_url: str, run: Run
) -> None:
    role = f"test_{uuid4().hex[:12]}"
    await make.execute(engine, f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 0")
    try:
        url = make_url(database_url).set(username=role, password="x")
        with pytest.raises(DatabaseAway, match="too many connections"):
            await run(connect(url.render_as_string(hide_password=False)), "SELECT 1")
    finally:
        await make.execute(engine, f"DROP ROLE {role}")


async def test_a_read_only_database_is_away_and_not_ready(
    engine: AsyncEngine, connect: Connect, database_url: str
) -> None:
    """As after a failover, while the address still leads to the old primary."""
    (question,) = await make.publish(engine)
    database = make_url(database_url).database
    await make.execute(engine, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    ours = connect(connections=1)
    with pytest.raises(DatabaseAway, match="read-only"):
        await try_writing(ours)
    delivery = sent(right(question))
    with pytest.raises(DatabaseAway):
        await Ingest(ours, Policy())([delivery])

    await make.execute(engine, f"ALTER DATABASE {database} RESET default_transaction_read_only")
    # The session is older than the change, and takes no part in it.
    await try_writing(ours)
    (disposition,) = await Ingest(ours, Policy())([delivery])
    assert isinstance(disposition, Ingested)


async def test_a_pool_without_a_free_connection_is_away(connect: Connect, run: Run) -> None:
    engine = connect(connections=1, transaction_timeout=0.1)
    async with transaction(engine):
        with pytest.raises(DatabaseAway, match="connection"):
            await run(engine, "SELECT 1")
    assert await run(engine, "SELECT 1") == 1


async def test_a_server_that_is_not_there_takes_no_writes(
    connect: Connect, unused_tcp_port: int
) -> None:
    await try_writing(connect())
    with pytest.raises(DatabaseAway):
        await try_writing(connect(f"postgresql://nobody@127.0.0.1:{unused_tcp_port}/none"))


# ------------------------------------------------------------------------------ faults of ours


async def test_other_database_errors_are_not_translated(engine: AsyncEngine) -> None:
    with pytest.raises(ProgrammingError):
        await _by_sqlalchemy(engine, _UNKNOWN)
    with pytest.raises(IntegrityError):
        await _by_sqlalchemy(engine, _REFUSED)
    with pytest.raises(UndefinedTableError):
        await _by_driver(engine, _UNKNOWN)
    with pytest.raises(CheckViolationError) as caught:
        await _by_driver(engine, _REFUSED)
    assert caught.value.detail is None, "it quotes the row"
    assert await _by_driver(engine, "SELECT 1") == 1


async def test_a_parameter_that_cannot_be_encoded_is_no_reason_to_wait(engine: AsyncEngine) -> None:
    with pytest.raises(DataError):
        async with transaction(engine) as connection:
            await fetch(connection, text("SELECT CAST(:n AS bigint)"), {"n": 2**63})


async def test_the_driver_is_not_asked_outside_of_a_transaction(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        with pytest.raises(RuntimeError):
            await fetch(connection, text("SELECT 1"), {})


async def test_both_ways_are_one_transaction(engine: AsyncEngine) -> None:
    insert = text("INSERT INTO study_topics (user_id) VALUES (1)")
    with pytest.raises(KeyError):
        async with transaction(engine) as connection:
            await connection.execute(insert)
            await fetch(connection, insert, {})
            count = text("SELECT count(*) FROM study_topics")
            assert await connection.scalar(count) == 2
            assert await fetch(connection, count, {}) == [(2,)]
            raise KeyError
    assert await make.count(engine, "study_topics") == 0


# ----------------------------------------------------------------- a commit that is lost


@asynccontextmanager
async def _proxy(
    database_url: str, cut: Callable[[bytes, asyncio.StreamWriter], Awaitable[bool]]
) -> AsyncIterator[str]:
    """A TCP proxy to the database; `cut` sees what the client sends and may end the line."""
    target = make_url(database_url)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = target.host or "127.0.0.1"
        upstream_reader, upstream = await asyncio.open_connection(host, target.port or 5432)
        back = asyncio.create_task(pump(upstream_reader, writer))
        try:
            while data := await reader.read(65_536):
                if b"COMMIT;" in data:
                    # What the server says from now on never arrives.
                    back.cancel()
                    if await cut(data, upstream):
                        await upstream_reader.read(65_536)
                    return
                upstream.write(data)
                await upstream.drain()
        finally:
            back.cancel()
            upstream.close()
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    finally:
        server.close()


@pytest.mark.parametrize("committed", [True, False])
async def test_a_connection_lost_inside_commit_is_away_and_the_next_run_tells_what_happened(
    engine: AsyncEngine, connect: Connect, database_url: str, committed: bool
) -> None:
    (question,) = await make.publish(engine)
    delivery = sent(right(question))

    async def cut(data: bytes, upstream: asyncio.StreamWriter) -> bool:
        if committed:
            upstream.write(data)
            await upstream.drain()
        return committed

    async with _proxy(database_url, cut) as url:
        with pytest.raises(DatabaseAway):
            await Ingest(connect(url), Policy())([delivery])

    (disposition,) = await Ingest(engine, Policy())([delivery])
    assert isinstance(disposition, Duplicate if committed else Ingested)
    row = (await make.progress(engine))[1, question.question_id]
    assert row["attempts_count"] == 1


async def test_a_cancelled_commit_ends_the_connection_and_nothing_is_left_unsaid(
    engine: AsyncEngine, connect: Connect, database_url: str
) -> None:
    complaints: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    arrived, over = asyncio.Event(), asyncio.Event()

    async def swallow(data: bytes, upstream: asyncio.StreamWriter) -> bool:
        arrived.set()
        await over.wait()
        return False

    async with _proxy(database_url, swallow) as url:
        work = asyncio.create_task(
            _by_driver(connect(url), "INSERT INTO study_topics (user_id) VALUES (1)")
        )
        await arrived.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        del work
        gc.collect()
        await _turns()
        assert complaints == []
        over.set()
    assert await make.count(engine, "study_topics") == 0


# ------------------------------------------------------------------ what others have set up


async def test_the_isolation_level_is_asked_for_whatever_the_default(
    engine: AsyncEngine, connect: Connect, database_url: str, run: Run
) -> None:
    database = make_url(database_url).database
    for name, value in (("isolation", "serializable"), ("deferrable", "on")):
        await make.execute(
            engine, f"ALTER DATABASE {database} SET default_transaction_{name} = {value}"
        )
    assert await run(connect(), "SHOW transaction_isolation") == "read committed"


async def test_rows_that_a_policy_hides_are_an_error_and_not_an_empty_answer(
    engine: AsyncEngine, connect: Connect, database_url: str, run: Run
) -> None:
    role = f"test_{uuid4().hex[:12]}"
    await make.execute(engine, f"CREATE ROLE {role} LOGIN")
    try:
        await make.execute(engine, f"GRANT SELECT ON published TO {role}")
        await make.execute(engine, "ALTER TABLE published ENABLE ROW LEVEL SECURITY")
        url = make_url(database_url).set(username=role).render_as_string(hide_password=False)
        with pytest.raises((ProgrammingError, InsufficientPrivilegeError), match="row-level"):
            await run(connect(url), "SELECT * FROM published")
    finally:
        await make.execute(engine, f"DROP OWNED BY {role}")
        await make.execute(engine, f"DROP ROLE {role}")


async def test_a_table_that_was_changed_costs_each_session_one_try(
    engine: AsyncEngine, connect: Connect, run: Run
) -> None:
    ours = connect(connections=2)
    both = asyncio.Barrier(2)

    async def read() -> None:
        async with transaction(ours) as connection:
            await fetch(connection, text("SELECT * FROM study_topics"), {})
            await connection.execute(text("SELECT * FROM study_topics"))
            await both.wait()

    await asyncio.gather(read(), read())
    await make.execute(engine, "ALTER TABLE study_topics ALTER COLUMN name TYPE varchar(90)")
    with pytest.raises(SessionStale):
        await run(ours, "SELECT * FROM study_topics")
    # Not the other session's plan either.
    await asyncio.gather(read(), read())


async def test_a_batch_that_meets_a_changed_table_is_ingested_at_once(
    engine: AsyncEngine, connect: Connect
) -> None:
    (question,) = await make.publish(engine)
    ingest = Ingest(connect(connections=1), Policy())
    await ingest([sent(right(question))])
    await make.execute(engine, "ALTER TABLE ingest_inbox ALTER COLUMN viewer TYPE varchar(200)")
    await make.execute(
        engine, "ALTER TABLE study_questions ALTER COLUMN correct_choice TYPE bigint"
    )
    (disposition,) = await ingest([sent(right(question))])
    assert isinstance(disposition, Ingested)


async def test_the_trial_writes_to_all_tables_and_leaves_nothing(
    engine: AsyncEngine, connect: Connect
) -> None:
    ours = connect()
    await try_writing(ours)  # nothing is published yet
    (question,) = await make.publish(engine)
    await try_writing(ours)
    await Ingest(engine, Policy())([sent(right(question))])
    before = [await make.count(engine, table) for table in make.LOG_TABLES]
    await make.delete_question(engine, question)
    await try_writing(ours)
    assert [await make.count(engine, table) for table in make.LOG_TABLES] == before
    for table in make.LOG_TABLES:
        await make.execute(engine, f"ALTER TABLE {table} RENAME TO elsewhere")
        with pytest.raises(DatabaseAway, match=f"takes no writes: .*{table}.* does not exist"):
            await try_writing(ours)
        await make.execute(engine, f"ALTER TABLE elsewhere RENAME TO {table}")
    await try_writing(ours)
