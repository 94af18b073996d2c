"""The worker's database role: a whole worker runs with it, and everything else is refused."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from schemas import amqp
from tests import factories
from tests.broker_fixtures import Broker, make_settings
from tests.security.test_identity import body_for, publish_as, result_of
from tests.whole_worker import Viewers, working
from worker.errors import RoleError
from worker.relay.prune import Pruner
from worker.settings import Settings
from worker.store import schema
from worker.store.engine import make_engine, transaction
from worker.store.operate import grants, roles

INSUFFICIENT_PRIVILEGE = "42501"


@pytest.fixture
async def role(engine: AsyncEngine) -> AsyncIterator[str]:
    """A worker's role; roles are the whole server's."""
    name = f"test_{uuid4().hex[:12]}"
    async with transaction(engine) as connection:
        await roles.ensure_worker(connection, name)
    yield name
    async with transaction(engine) as connection:
        await connection.exec_driver_sql(f"DROP OWNED BY {name}")
        await connection.exec_driver_sql(f"DROP ROLE {name}")


@pytest.fixture
async def as_worker(database_url: str, role: str) -> AsyncIterator[AsyncEngine]:
    """The test's database, seen by the role (the test server trusts who comes)."""
    url = make_url(database_url).set(username=role).render_as_string(hide_password=False)
    engine = make_engine(make_settings("amqp://unused", database_url=url), connections=5, name="w")
    yield engine
    await engine.dispose()


async def test_it_may_prune(engine: AsyncEngine, as_worker: AsyncEngine) -> None:
    await factories.execute(
        engine,
        "INSERT INTO ingest_audit (happened_at, actor, operation, subject, reason, effect)"
        " VALUES (now() - interval '40 days', 'a', 'void', 's', '', '{}')",
    )
    await factories.execute(
        engine,
        "INSERT INTO ingest_inbox (client_session_uuid, content_digest, user_id, received_at,"
        " summary) VALUES (gen_random_uuid(), sha256('x'), 1, now() - interval '40 days', '{}')",
    )
    keeping = make_settings("amqp://unused", keep_results=30, keep_audit=30)
    with capture_logs() as logs:
        await Pruner(as_worker, keeping, "w")._prune()
    assert logs == [
        {"event": "prune.finished", "log_level": "info", "results": 1, "audit": 1, "moments": 0}
    ]


@pytest.mark.broker
async def test_a_whole_worker_runs_with_it(
    viewers: Viewers,
    broker: Broker,
    settings: Settings,
    engine: AsyncEngine,
    as_worker: AsyncEngine,
) -> None:
    await schema.check(as_worker)
    login = await viewers.add(42)
    (question,) = await factories.publish(engine, user_id=42)
    later = factories.batch(factories.wrong(question, "2024-03-02T10:00:00Z"))
    earlier = factories.batch(factories.right(question, "2024-03-01T10:00:00Z"))
    expired = factories.batch(factories.right(question)).model_dump_json()
    await publish_as(login, expired, expiration=0.001)
    await broker.until_depth(amqp.DEAD_QUEUE, 1)
    told = []
    async with working(settings, as_worker):
        # What the broker gave up on is collected; in the end its replay takes the letter away.
        told.append((await result_of(broker, login))["reason"])
        # A late batch (which folds again), a duplicate, a rejection, follow-up jobs.
        for body in (later, earlier, earlier):
            await publish_as(login, body.model_dump_json())
            told.append((await result_of(broker, login))["status"])
        await publish_as(login, await body_for(engine, 43))
        told.append((await result_of(broker, login))["status"])
        await factories.execute(
            engine,
            "INSERT INTO ingest_replays (letter_id, message_id)"
            " SELECT id, gen_random_uuid() FROM ingest_dead_letters WHERE reason = 'expired'",
        )
        told.append((await result_of(broker, login))["status"])
    assert told == ["expired", "ingested", "ingested", "already_ingested", "rejected", "ingested"]
    assert await factories.count(engine, "ingest_dead_letters") == 1
    assert await factories.count(engine, "ingest_replays") == 0


async def test_a_workers_role_may_do_nothing_else(
    engine: AsyncEngine, as_worker: AsyncEngine
) -> None:
    await factories.publish(engine)
    tables = [
        row["table_name"]
        for row in await factories.rows(
            engine,
            "SELECT table_name FROM information_schema.tables"
            " WHERE table_schema = 'public' AND table_type = 'BASE TABLE'",
        )
    ]
    attempts = [
        "CREATE TABLE mine (x int)",
        "CREATE TEMPORARY TABLE mine (x int)",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE ROLE mine",
        "CREATE EXTENSION vector",
        "COPY outbox TO PROGRAM 'cat'",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT rolpassword FROM pg_authid",
        "SELECT * FROM ingest_audit",
        "SELECT subject FROM ingest_audit",
        "UPDATE ingest_audit SET actor = 'me'",
        "DELETE FROM study_question_attempts",
        "UPDATE study_question_attempts SET outcome = 'correct'",
        "DELETE FROM study_question_progress",
        "DELETE FROM ingest_inbox",
        "UPDATE ingest_inbox SET user_id = 1",
        "UPDATE outbox SET body = ''",
        "INSERT INTO viewer_grants (viewer, user_id) VALUES ('me', 1)",
        "INSERT INTO published (pub_id, kind, source_id) VALUES ('me', 'question', 1)",
        "UPDATE study_questions SET user_id = 2",
        "UPDATE ingest_dead_letters SET reason = ''",
        "INSERT INTO ingest_replays (letter_id, message_id) VALUES (1, gen_random_uuid())",
        "INSERT INTO ingest_pause (actor, reason) VALUES ('me', 'me')",
        *(f"{verb} TABLE {table}" for table in tables for verb in ("TRUNCATE", "DROP")),
        *(f"ALTER TABLE {table} ADD COLUMN mine int" for table in tables),
        *(f"CREATE INDEX ON {table} ((1))" for table in tables),
    ]
    done = []
    for statement in attempts:
        try:
            async with as_worker.begin() as connection:
                await connection.execute(text(statement))
        except DBAPIError as error:
            assert getattr(error.orig, "sqlstate", None) == INSUFFICIENT_PRIVILEGE, statement
        else:
            done.append(statement)
    assert done == []
    # What works with the owner's rights can't be hung on a table of somebody else's.
    functions = await factories.rows(
        as_worker,
        "SELECT prosecdef, has_function_privilege(oid, 'EXECUTE') AS may FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace",
    )
    assert {(each["prosecdef"], each["may"]) for each in functions} == {(True, False)}


async def test_running_it_again_restores_the_rights_and_changes_the_password(
    engine: AsyncEngine, role: str
) -> None:
    async with transaction(engine) as connection:
        await connection.exec_driver_sql(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        first = await roles.ensure_worker(connection, role)
        second = await roles.ensure_worker(connection, role)
    assert first != second
    (found,) = await factories.rows(
        engine,
        "SELECT has_table_privilege(:role, 'outbox', 'TRUNCATE') AS truncate,"
        " has_table_privilege(:role, 'outbox', 'DELETE') AS delete,"
        " (SELECT rolpassword FROM pg_authid WHERE rolname = :role) AS kept",
        role=role,
    )
    assert (found["truncate"], found["delete"]) == (False, True)
    assert found["kept"].startswith("SCRAM-SHA-256$")
    assert second not in found["kept"]


async def test_the_owners_role_is_not_reduced(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        owner = str(await connection.scalar(text("SELECT current_user")))
        with pytest.raises(RoleError, match="another name"):
            await roles.ensure_worker(connection, owner)


async def test_grants_name_their_viewer(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await grants.add(connection, "a", [1, 2])
        await grants.add(connection, "a", [2])
        await grants.add(connection, "b", [2])
        assert await grants.remove(connection, "a", [2, 3])
        assert not await grants.remove(connection, "a", [2, 3])
        assert await grants.all_of(connection) == {"a": [1], "b": [2]}
