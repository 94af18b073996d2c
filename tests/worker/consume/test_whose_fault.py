"""Whose fault a failure is: the database's, which is waited for, or one message's, which pays.

A whole worker on real servers. Each trouble is made in the database, and ended there.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from schemas import amqp
from tests import factories as make
from tests.broker_fixtures import PATIENCE, Broker
from tests.whole_worker import working
from worker.consume.consumer import Consumer
from worker.consume.pauses import Conditions
from worker.ingest import transaction as ingest
from worker.ingest.finalize import finalize
from worker.settings import Settings
from worker.store.engine import make_engine, transaction
from worker.store.operate import roles

pytestmark = pytest.mark.broker

_BATCHES = 6


def raising(sqlstate: str, table: str, uuid: UUID | None = None) -> str:
    """Statements that make every insert into the table fail; with `uuid` only that batch's."""
    only = f"WHEN (NEW.client_session_uuid = '{uuid}')" if uuid else ""
    return (
        "CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE SQLSTATE '{sqlstate}' USING MESSAGE = 'trouble {sqlstate}'; END $$;"
        f" CREATE TRIGGER trouble BEFORE INSERT ON {table} FOR EACH ROW {only}"
        " EXECUTE FUNCTION trouble()"
    )


CALM = "DROP FUNCTION trouble() CASCADE"


@pytest.fixture
async def role(engine: AsyncEngine) -> AsyncIterator[str]:
    """A worker's role, with the rights of one."""
    name = f"test_{uuid4().hex[:12]}"
    async with transaction(engine) as connection:
        await roles.ensure_worker(connection, name)
    yield name
    await make.execute(engine, f"DROP OWNED BY {name}")
    await make.execute(engine, f"DROP ROLE {name}")


@pytest.fixture
async def as_role(role: str, broker: Broker, database_url: str) -> AsyncIterator[AsyncEngine]:
    """The pool of a worker that has that role."""
    url = make_url(database_url).set(username=role).render_as_string(hide_password=False)
    changed: dict[str, Any] = {"database_url": url, "lock_timeout": 0.3}
    settings = Settings.model_validate(broker.settings.model_dump(exclude_unset=True) | changed)
    engine = make_engine(settings, connections=3, name="tests")
    yield engine
    await engine.dispose()


async def script(engine: AsyncEngine, statements: str) -> None:
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute(statements)


async def reach(consumer: Consumer, **counts: int) -> None:
    def reached() -> bool:
        return all(consumer.counts[name] >= number for name, number in counts.items())

    assert await consumer.changed.until(reached, PATIENCE), dict(consumer.counts)


async def publish(broker: Broker, question: make.Published, uuid: UUID | None = None) -> None:
    batch = make.batch(make.right(question), uuid=uuid)
    await broker.publish(batch.model_dump_json())


async def wait_it_out(
    broker: Broker,
    ours: AsyncEngine,
    engine: AsyncEngine,
    *,
    begin: Callable[[], Awaitable[object]],
    end: Callable[[], Awaitable[object]],
    reason: str,
) -> None:
    """A worker meets a trouble, is paused for it until it ends, and goes on by itself."""
    (question,) = await make.publish(engine)
    async with working(broker.settings, ours) as consumer:
        await publish(broker, question)
        await reach(consumer, ingested=1)
        await begin()
        for _ in range(_BATCHES):
            await publish(broker, question)
        assert await consumer.changed.until(lambda: reason in (consumer.why_paused or ""), PATIENCE)
        assert consumer.state == "paused"
        await end()
        await reach(consumer, ingested=1 + _BATCHES)
        assert await consumer.changed.until(lambda: consumer.state == "consuming", PATIENCE)
        assert consumer.counts.keys() <= {"ingested", "given_back"}, consumer.counts
    for queue in (amqp.DEAD_QUEUE, amqp.ATTEMPTS_QUEUE):
        assert await broker.depth(queue) == 0
    assert await make.count(engine, "ingest_inbox") == 1 + _BATCHES


_REFUSED = "ALTER TABLE ingest_inbox ADD CONSTRAINT never CHECK (false) NOT VALID"


@pytest.mark.parametrize(
    ("begin", "end", "reason"),
    [
        # What the server says when no more transactions can be numbered.
        (raising("54000", "ingest_inbox"), CALM, "trouble 54000"),
        (raising("XX001", "study_question_progress"), CALM, "trouble XX001"),
        (raising("P0001", "study_quiz_sessions"), CALM, "trouble P0001"),
        (
            "ALTER TABLE study_question_progress RENAME TO elsewhere",
            "ALTER TABLE elsewhere RENAME TO study_question_progress",
            "does not exist",
        ),
        (
            "REVOKE INSERT ON outbox FROM {role}",
            "GRANT INSERT ON outbox TO {role}",
            "permission denied",
        ),
        (_REFUSED, "ALTER TABLE ingest_inbox DROP CONSTRAINT never", "violates check constraint"),
        (
            "ALTER TABLE outbox ADD COLUMN more int NOT NULL DEFAULT 0;"
            " ALTER TABLE outbox ALTER COLUMN more DROP DEFAULT",
            "ALTER TABLE outbox DROP COLUMN more",
            "null value",
        ),
        # Row level security hides every row from a role that no policy names.
        (
            "ALTER TABLE published ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE published DISABLE ROW LEVEL SECURITY",
            "row-level security",
        ),
        (
            "ALTER TABLE viewer_grants ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE viewer_grants DISABLE ROW LEVEL SECURITY",
            "row-level security",
        ),
        (
            "REVOKE SELECT ON ingest_pause FROM {role}",
            "GRANT SELECT ON ingest_pause TO {role}",
            "permission denied",
        ),
    ],
    ids=[
        *("wraparound", "corruption", "anything", "missing table", "revoked", "constraint"),
        *("new column", "hidden publications", "hidden grants", "hidden pause"),
    ],
)
async def test_what_no_batch_could_pass_is_waited_for(
    begin: str,
    end: str,
    reason: str,
    broker: Broker,
    engine: AsyncEngine,
    role: str,
    as_role: AsyncEngine,
) -> None:
    await wait_it_out(
        broker,
        as_role,
        engine,
        begin=lambda: script(engine, begin.replace("{role}", role)),
        end=lambda: script(engine, end.replace("{role}", role)),
        reason=reason,
    )


async def test_a_table_that_somebody_holds_is_waited_for(
    broker: Broker, engine: AsyncEngine, as_role: AsyncEngine
) -> None:
    async with engine.connect() as holder:
        await wait_it_out(
            broker,
            as_role,
            engine,
            begin=lambda: holder.execute(text("LOCK TABLE outbox IN SHARE MODE")),
            end=holder.rollback,
            reason="INGEST_LOCK_TIMEOUT",
        )


# One message's fault


@pytest.mark.parametrize(
    "body",
    [
        "RAISE SQLSTATE '54000' USING MESSAGE = 'trouble'",
        "RAISE SQLSTATE '53100' USING MESSAGE = 'no space, says this one'",
        # Its session ends each time: the server is well, and says nothing of why.
        "PERFORM pg_terminate_backend(pg_backend_pid())",
    ],
    ids=["a state of the server", "a state that means away", "the end of its session"],
)
async def test_what_one_batch_alone_meets_is_charged_to_it(
    body: str, broker: Broker, engine: AsyncEngine, as_role: AsyncEngine
) -> None:
    (question,) = await make.publish(engine)
    poison = uuid4()
    await script(
        engine,
        f"CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body};"
        " RETURN NEW; END $$; CREATE TRIGGER trouble BEFORE INSERT ON ingest_inbox FOR EACH ROW"
        f" WHEN (NEW.client_session_uuid = '{poison}') EXECUTE FUNCTION trouble()",
    )
    # A traceback takes seconds to be drawn on a busy machine.
    with capture_logs():
        async with working(broker.settings, as_role) as consumer:
            await publish(broker, question, poison)
            for _ in range(_BATCHES):
                await publish(broker, question)
            await reach(consumer, ingested=_BATCHES, rejected=1)
            assert await consumer.changed.until(lambda: consumer.state == "consuming", PATIENCE)
            assert consumer.counts["rejected"] == 1
            assert consumer.counts["deferred"] == len(broker.settings.retry_delays)


async def test_a_session_that_ends_once_costs_its_batch_nothing(
    broker: Broker, engine: AsyncEngine, as_role: AsyncEngine
) -> None:
    (question,) = await make.publish(engine)
    await script(
        engine,
        "CREATE SEQUENCE tries; CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql"
        " SECURITY DEFINER AS $$ BEGIN IF nextval('tries') = 1 THEN"
        " PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NEW; END $$;"
        " CREATE TRIGGER trouble BEFORE INSERT ON ingest_inbox FOR EACH ROW"
        " EXECUTE FUNCTION trouble()",
    )
    async with working(broker.settings, as_role) as consumer:
        await publish(broker, question)
        await reach(consumer, ingested=1)
        assert consumer.counts == {"ingested": 1}


# What is in hand meanwhile


async def test_the_hold_is_measured_from_the_oldest_delivery_however_many_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("worker.consume.pauses._now", lambda: now)
    since: list[float] = []
    conditions = Conditions(300.0, lambda: min(since, default=None))
    assert conditions.hold_left == 300.0
    since.append(now)
    for _ in range(10):
        conditions.pause("database", "away")
        now += 20
        conditions.resume("database")
        since.append(now)
    assert conditions.hold_left == 100.0
    now += 500
    assert conditions.hold_left == 0
    since.clear()
    assert conditions.hold_left == 300.0


async def test_a_group_that_leaves_its_transaction_idle_is_split_and_nobody_is_away(
    broker: Broker, engine: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: dict[str, Any] = {"database_url": database_url, "idle_in_transaction_timeout": 0.3}
    settings = Settings.model_validate(broker.settings.model_dump(exclude_unset=True) | changed)
    ours = make_engine(settings, connections=3, name="tests")

    def slow_in_groups(batches: Any, *others: Any) -> Any:
        if len(batches) > 1:
            time.sleep(1.0)
        return finalize(batches, *others)

    monkeypatch.setattr(ingest, "finalize", slow_in_groups)
    (question,) = await make.publish(engine)
    for _ in range(_BATCHES):
        await publish(broker, question)
    with capture_logs() as logs:
        async with working(settings, ours) as consumer:
            await reach(consumer, ingested=_BATCHES)
            assert consumer.counts == {"ingested": _BATCHES}
    await ours.dispose()
    split = [each for each in logs if each["event"] == "group.split"]
    assert split and {each["error"] for each in split} == {"TransientFault"}
    assert not [each for each in logs if each["event"] == "consumer.paused"]
