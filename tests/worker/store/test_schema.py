"""The schema: migrations make the tables that the code knows, there and back; workers check it."""

import asyncio
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from tests.factories import at, right, sent, wrong
from worker.domain.dispositions import Ingested
from worker.domain.policy import Policy
from worker.domain.schedule import Memory, due_from, retrievability
from worker.errors import DatabaseAway, SchemaError
from worker.ingest.transaction import Ingest
from worker.operate.repair import verify
from worker.settings import Settings
from worker.store import attempts, inbox, progress, schema, version
from worker.store.engine import make_engine
from worker.store.prepare import prepared
from worker.store.tables import METADATA


def _engine(url: str, **settings: float) -> AsyncEngine:
    given = Settings(database_url=url, amqp_url="amqp://unused", **settings)  # type: ignore[arg-type]
    return make_engine(given, connections=3, name="tests")


@pytest.fixture
async def empty(empty_database_url: str) -> AsyncIterator[AsyncEngine]:
    """A database without any schema."""
    engine = _engine(empty_database_url)
    yield engine
    await engine.dispose()


async def shape(engine: AsyncEngine) -> dict[str, set[tuple[object, ...]]]:
    """Columns, constraints and indexes, as the server itself describes them."""
    queries = {
        "columns": "SELECT table_name, column_name, data_type, is_nullable,"
        " coalesce(column_default, identity_generation) AS made FROM information_schema.columns"
        " JOIN information_schema.tables USING (table_schema, table_name)"
        " WHERE table_schema = 'public' AND table_type = 'BASE TABLE'",
        "constraints": "SELECT conrelid::regclass::text AS table_name, conname,"
        " pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace AND contype <> 'n'",
        "indexes": "SELECT tablename AS table_name, indexname, indexdef FROM pg_indexes"
        " WHERE schemaname = 'public'",
        "storage": "SELECT relname AS table_name, reloptions FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'",
    }
    return {
        name: {
            tuple(str(value) for value in row.values())
            for row in await make.rows(engine, query)
            if row["table_name"] != "study_ingest_version"
        }
        for name, query in queries.items()
    }


async def test_migrations_make_exactly_the_tables_that_the_code_knows(
    engine: AsyncEngine, empty: AsyncEngine
) -> None:
    async with engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(
                MigrationContext.configure(
                    sync, opts={"compare_server_default": True, "version_table": version.TABLE}
                ),
                METADATA,
            )
        )
    assert differences == []
    async with empty.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    migrated, known = await shape(engine), await shape(empty)
    for kind in known:
        assert migrated[kind] == known[kind]


_A_DEAD_LETTER = (
    "INSERT INTO ingest_dead_letters (key, reason, detail, viewer, routing_key, properties,"
    " body, body_bytes) VALUES (sha256('x'), 'malformed', '', '', '', '\\x00000000', '{', 1)"
)


@pytest.mark.parametrize("step_by_step", [True, False])
async def test_downgrading_removes_everything_and_upgrading_again_gives_the_same_schema(
    empty: AsyncEngine, step_by_step: bool
) -> None:
    assert await schema.migrate(empty) == (None, schema.head())
    up = await shape(empty)
    if step_by_step:
        await schema.migrate(empty, "0001")
    else:
        # An older program could not keep these, but no program is to keep anything.
        await make.publish(empty, user_id=None)
        await make.execute(empty, _A_DEAD_LETTER)
    before = await schema.current(empty)
    assert await schema.migrate(empty, "base") == (before, None)
    left = await make.rows(
        empty,
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " UNION SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    )
    assert left == []
    assert await schema.migrate(empty) == (None, schema.head())
    assert await shape(empty) == up


async def _versions(engine: AsyncEngine, table: str) -> list[str]:
    return [row["version_num"] for row in await make.rows(engine, f"SELECT * FROM {table}")]


async def test_a_version_of_ours_is_moved_out_of_the_application_s_table_and_back(
    engine: AsyncEngine,
) -> None:
    await schema.migrate(engine, "0007")  # the schema of version 0.1.0
    assert await _versions(engine, "alembic_version") == ["0007"]
    assert await schema.current(engine) == "0007"
    role = f"tests_{uuid4().hex}"
    await make.execute(engine, f"CREATE ROLE {role}")
    await make.execute(engine, f"GRANT SELECT ON alembic_version TO {role}")

    assert await schema.migrate(engine) == ("0007", schema.head())
    assert await _versions(engine, "study_ingest_version") == [schema.head()]
    (found,) = await make.rows(
        engine,
        "SELECT to_regclass('alembic_version') AS old,"
        f" has_table_privilege('{role}', 'study_ingest_version', 'SELECT') AS may_read",
    )
    assert found == {"old": None, "may_read": True}
    await make.execute(engine, f"DROP OWNED BY {role}")
    await make.execute(engine, f"DROP ROLE {role}")

    # What development between two versions left in the old place is found there as well.
    await make.execute(engine, "ALTER TABLE study_ingest_version RENAME TO alembic_version")
    renamed = "RENAME CONSTRAINT study_ingest_version_pkc TO alembic_version_pkc"
    await make.execute(engine, f"ALTER TABLE alembic_version {renamed}")
    await schema.check(engine)
    assert await schema.migrate(engine) == (schema.head(), schema.head())
    assert await _versions(engine, "study_ingest_version") == [schema.head()]


@pytest.mark.parametrize("theirs", ["a1b2c3d4e5f6", "0003"])
async def test_the_application_s_own_versions_are_neither_read_nor_written(
    theirs: str, empty: AsyncEngine
) -> None:
    await make.execute(
        empty,
        "CREATE TABLE alembic_version (version_num varchar(32)"
        " CONSTRAINT alembic_version_pkc PRIMARY KEY)",
    )
    await make.execute(empty, f"INSERT INTO alembic_version VALUES ('{theirs}')")
    assert await schema.current(empty) is None
    assert await schema.migrate(empty) == (None, schema.head())
    await schema.check(empty)
    with pytest.raises(SchemaError, match=r"^The program of schema 0007 keeps [^\n]+: choose"):
        await schema.migrate(empty, "0007")
    assert await schema.current(empty) == schema.head()
    assert await _versions(empty, "alembic_version") == [theirs]
    assert await schema.migrate(empty, "base") == (schema.head(), None)
    assert await _versions(empty, "alembic_version") == [theirs]
    assert await schema.migrate(empty) == (None, schema.head())


async def test_an_index_that_a_migration_needs_is_made_before_it(engine: AsyncEngine) -> None:
    before = await shape(engine)
    await schema.migrate(engine, "0016")
    await make.execute(engine, "DROP INDEX published_source_id_idx")
    async with prepared(engine, "0016", "0017"):
        # Only the index is new, and it is the one that the migration would make.
        assert await schema.current(engine) == "0016"
        made = {row for row in before["indexes"] if row[1] == "published_source_id_idx"}
        assert made and made <= (await shape(engine))["indexes"]
    await make.execute(engine, "DROP INDEX published_source_id_idx")
    assert await schema.migrate(engine) == ("0016", schema.head())
    assert await shape(engine) == before


async def test_a_schema_that_is_there_is_left_as_it_is(engine: AsyncEngine) -> None:
    await make.publish(engine)
    assert await schema.migrate(engine) == (schema.head(), schema.head())
    assert await make.count(engine, "study_questions") == 1


_MIGRATE = """
import asyncio, sys
from worker.settings import Settings
from worker.store import schema
from worker.store.engine import make_engine

settings = Settings(database_url=sys.argv[1], amqp_url="amqp://unused")
print(asyncio.run(schema.migrate(make_engine(settings, connections=1, name="tests"))))
"""


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_that_cannot_store_every_id_is_refused(
    encoding: str, empty_database_url: str, empty: AsyncEngine
) -> None:
    name = f"test_{uuid4().hex[:16]}"
    create = f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    async with empty.connect() as connection:
        alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await alone.exec_driver_sql(create)
        url = make_url(empty_database_url).set(database=name)
        other = _engine(url.render_as_string(hide_password=False))
        try:
            with pytest.raises(SchemaError, match=f"encoding is {encoding}.*ENCODING 'UTF8'"):
                await schema.migrate(other)
            assert await schema.current(other) is None
        finally:
            await other.dispose()
            await alone.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


async def test_the_isolation_level_of_a_migration_is_not_left_to_the_database(
    empty: AsyncEngine, empty_database_url: str
) -> None:
    database = make_url(empty_database_url).database
    await make.execute(
        empty, f"ALTER DATABASE {database} SET default_transaction_isolation = serializable"
    )
    engine = _engine(empty_database_url)
    await schema.migrate(engine)
    await schema.migrate(engine, "0004")  # takes away what refers to others
    await engine.dispose()


async def test_two_processes_that_migrate_at_once_migrate_once(
    empty: AsyncEngine, empty_database_url: str
) -> None:
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _MIGRATE, empty_database_url),
            cwd=Path(__file__).parents[3],
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(3)
    ]
    said = [(await process.communicate())[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all(f"'{schema.head()}')" in each.decode() for each in said)
    await schema.check(empty)


async def test_a_migration_that_fails_leaves_everything_as_it_was(empty: AsyncEngine) -> None:
    await make.execute(empty, "CREATE TABLE outbox (mine text)")
    with pytest.raises(Exception, match="outbox"):
        await schema.migrate(empty)
    tables = await make.rows(
        empty, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname !~ '^(pg|sql)_'"
    )
    assert [row["relname"] for row in tables] == ["outbox"]


async def test_a_table_that_is_held_is_waited_for_a_little_and_another_migration_to_its_end(
    engine: AsyncEngine, database_url: str
) -> None:
    impatient = _engine(database_url, lock_timeout=0.2)
    patient = _engine(database_url, lock_timeout=60)
    async with engine.begin() as reading:
        await reading.execute(make.text("SELECT count(*) FROM study_question_progress"))
        with pytest.raises(
            SchemaError, match=r"^Another session has locked a table [^\n]+: run `migrate` again"
        ):
            await schema.migrate(impatient, "0002")
        assert await schema.current(engine) == schema.head()

        first = asyncio.create_task(schema.migrate(patient, "0002"))
        await make.blocked(engine, 1)
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _MIGRATE, database_url),
            cwd=Path(__file__).parents[3],
            env=os.environ | {"INGEST_LOCK_TIMEOUT": "0.2"},
        )
        await make.blocked(engine, 2)
        waiting = asyncio.create_task(second.wait())
        assert await asyncio.wait([waiting], timeout=1) == (set(), {waiting})
    assert await first == (schema.head(), "0002")
    assert await waiting == 0
    await schema.check(engine)
    await impatient.dispose()
    await patient.dispose()


async def test_a_database_that_goes_away_amid_a_migration_is_said_to_be(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as reading:
        await reading.execute(make.text("SELECT count(*) FROM study_question_progress"))
        migrating = asyncio.create_task(schema.migrate(engine, "0002"))
        await make.blocked(engine, 1)
        await make.execute(
            engine,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        with pytest.raises(
            DatabaseAway, match=r"^The connection to the database was lost: run `migrate` again\.$"
        ):
            await migrating
    await schema.check(engine)


async def test_a_migration_that_others_wait_for_crosswise_gives_way(engine: AsyncEngine) -> None:
    async with engine.begin() as other:
        # The server looks for a deadlock from whoever has waited for a second: that is to be us.
        await other.execute(make.text("SET LOCAL deadlock_timeout = '1min'"))
        await other.execute(make.text("LOCK TABLE study_question_progress"))
        migrating = asyncio.create_task(schema.migrate(engine, "0003"))
        await make.blocked(engine, 1)
        await other.execute(make.text("SELECT FROM study_questions"))
    with pytest.raises(
        SchemaError, match=r"^The migration and another session waited for each other:"
    ):
        await migrating
    await schema.check(engine)


async def test_a_failure_that_an_operator_can_fix_is_one_sentence(
    engine: AsyncEngine, database_url: str
) -> None:
    with pytest.raises(
        SchemaError, match=r"^There is no version '9': use head, base or one of 0001, [^\n]+$"
    ):
        await schema.migrate(engine, "9")

    role = f"tests_{uuid4().hex}"
    await make.execute(engine, f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    await make.execute(engine, f"GRANT pg_read_all_data TO {role}")
    theirs = make_url(database_url).set(username=role, password="x")
    stranger = _engine(theirs.render_as_string(hide_password=False))
    try:
        with pytest.raises(SchemaError, match=r"^The login in INGEST_DATABASE_URL may not change"):
            await schema.migrate(stranger, "0002")
    finally:
        await stranger.dispose()
        await make.execute(engine, f"DROP ROLE {role}")
    assert await schema.current(engine) == schema.head()


async def test_batches_come_in_while_the_schema_moves_between_this_version_and_the_last(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker of 0.1.0, as far as it matters: it knows none of the columns that came later.
    columns = r", (time_was|utc_offset|duration_ms)\b"
    older = text(re.sub(columns, "", str(attempts._INSERT_ATTEMPTS)))
    monkeypatch.setattr(attempts, "_INSERT_ATTEMPTS", older)
    nobody = "NULL AS erased_users, NULL AS erased_times, 'old' AS epoch, 1 AS drawn"
    look = re.sub(r"\(SELECT array_agg.* AS once", f"(SELECT {nobody}) AS once", str(inbox._LOOK))
    monkeypatch.setattr(inbox, "_LOOK", text(look))
    versions = r", (version(?=\))|CAST\(:version AS bigint\)|version = excluded\.version)"
    save = re.sub(versions, "", str(progress._SAVE))
    assert "version" not in save
    monkeypatch.setattr(progress, "_SAVE", text(save))
    standing = str(progress._STANDING).replace(" version,", " NULL AS version,")
    monkeypatch.setattr(progress, "_STANDING", text(standing))
    users = (1, 2)
    questions = {user: await make.publish(engine, 5, user_id=user) for user in users}
    ingest, moved = Ingest(engine, Policy()), asyncio.Event()
    ingested = Counter[int]()

    async def work(user: int) -> None:
        for day in itertools.count():
            # Late ones too, which read the history.
            batches = [
                sent(*[right(each, at(when)) for each in questions[user]])
                for when in (day + 1, -day)
            ]
            for disposition in await ingest(batches):
                assert isinstance(disposition, Ingested)
                ingested[user] += len(questions[user])
            if moved.is_set():
                return

    async with asyncio.TaskGroup() as group:
        for user in users:
            group.create_task(work(user))
        for _ in range(5):
            await schema.migrate(engine, "0002")
            await schema.migrate(engine)
        moved.set()

    assert await make.count(engine, "study_question_attempts") == ingested.total()
    for user in users:
        assert await verify(engine, user, Policy()) == []


async def test_a_worker_works_on_its_own_schema_alone(
    engine: AsyncEngine, empty: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await schema.check(engine)
    with pytest.raises(SchemaError, match=r"^The database has no schema: run .*migrate`\.$"):
        await schema.check(empty)

    with monkeypatch.context() as later:
        later.setattr(schema, "head", lambda: "9999")
        with pytest.raises(SchemaError, match=r"is older than this program's 9999: run [^\n]+\.$"):
            await schema.check(engine)

    await make.execute(engine, "UPDATE study_ingest_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match=r"9999 is newer than this program's [^\n]+\.$"):
        await schema.check(engine)


async def test_topic_progress_is_what_the_schedule_says_of_its_questions(
    engine: AsyncEngine,
) -> None:
    first, second, third = await make.publish(engine, 3, user_id=4)
    (alone,) = await make.publish(engine, user_id=4)
    ahead = "2999-01-01T00:00:00Z"
    await Ingest(engine, Policy())(
        [
            sent(right(first, at(0)), right(first, at(12)), right(first, at(60))),
            sent(wrong(second, at(3)), right(alone, at(5))),
            sent(right(third, ahead)),  # of now, and not due yet
        ]
    )
    await make.execute(
        engine,
        "UPDATE study_question_progress SET pattern = 'mastered' WHERE study_question_id = :id",
        id=first.question_id,
    )
    async with engine.connect() as connection:
        topics = (
            await connection.execute(
                make.text("SELECT *, now() AS now FROM study_topic_progress ORDER BY 2")
            )
        ).mappings()
        rows = (
            (await connection.execute(make.text("SELECT * FROM study_question_progress")))
            .mappings()
            .all()
        )
        for topic in topics:
            mine = [row for row in rows if row["study_topic_id"] == topic["study_topic_id"]]
            recall = [
                retrievability(
                    Memory(row["stability"], row["difficulty"], row["due_at"]),
                    row["last_answered_at"],
                    topic["now"],
                )
                for row in mine
            ]
            assert topic["user_id"] == 4
            assert topic["questions_seen"] == len(mine)
            assert topic["questions_known"] == sum(r["last_outcome"] == "correct" for r in mine)
            assert topic["questions_mastered"] == sum(r["pattern"] == "mastered" for r in mine)
            due = sum(due_from(r["due_at"]) <= topic["now"] for r in mine)
            assert topic["questions_due"] == due
            assert topic["mean_retrievability"] == pytest.approx(sum(recall) / len(recall))
            seen = topic["study_topic_id"], topic["questions_seen"], topic["questions_due"]
            assert seen in ((first.topic_id, 3, 2), (alone.topic_id, 1, 1))
