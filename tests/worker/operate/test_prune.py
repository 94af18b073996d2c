"""What is old goes step by step, holds nobody up, and is remembered as gone."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from schemas.words import RejectReason, Status
from tests import factories as make
from tests.broker_fixtures import make_settings, until
from worker.cli.main import app
from worker.domain.dispositions import Duplicate, Ingested, Rejected
from worker.domain.policy import Policy
from worker.errors import Pruning
from worker.ingest.transaction import Ingest
from worker.operate import prune
from worker.operate.void import void
from worker.relay import prune as relay_prune
from worker.relay.prune import Pruner
from worker.settings import Settings
from worker.store import prune as stored
from worker.store.audit import By
from worker.store.engine import make_engine

OLD = "interval '40 days'"
BY = By("tests", "")


async def old_batches(engine: AsyncEngine, count: int) -> None:
    """Batches of 40 days ago, with results of a usual size."""
    await make.execute(
        engine,
        "INSERT INTO ingest_inbox (client_session_uuid, content_digest, user_id, received_at,"
        f" viewer, summary) SELECT gen_random_uuid(), sha256('x'), 1, now() - {OLD}, 'phone',"
        " jsonb_build_object('due', repeat(md5(n::text), 30)) FROM"
        " generate_series(1, CAST(:count AS integer)) AS n",
        count=count,
    )


async def audited(engine: AsyncEngine, operation: str, age: str) -> None:
    await make.execute(
        engine,
        "INSERT INTO ingest_audit (happened_at, actor, operation, subject, reason, effect)"
        f" VALUES (now() - interval '{age}', 'a', :operation, 's', '', '{{}}')",
        operation=operation,
    )


async def noted(engine: AsyncEngine) -> None:
    """Moments of 0, 15, 30, 45 and 60 days ago."""
    await make.execute(
        engine,
        "INSERT INTO ingest_groups (received_at, worker, deliveries, milliseconds,"
        " client_session_uuids, published_at, apps) SELECT now() - n * interval '15 days', 'w', 1,"
        " 1, '{}', '{}', '{}' FROM generate_series(0, 4) AS n, generate_series(1, 600)",
    )
    await make.execute(
        engine,
        "INSERT INTO ingest_told (received_at, told_at, client_session_uuids)"
        " SELECT now() - n * interval '15 days', now(), '{}' FROM generate_series(0, 4) AS n",
    )


async def kept(engine: AsyncEngine) -> int:
    """How many results are kept."""
    return await make.count(engine, "ingest_inbox WHERE summary IS NOT NULL")


async def operations(engine: AsyncEngine) -> list[str]:
    found = await make.rows(engine, "SELECT operation FROM ingest_audit ORDER BY id")
    return [row["operation"] for row in found]


async def days(engine: AsyncEngine, table: str) -> set[int]:
    query = f"SELECT DISTINCT extract(day FROM now() - received_at)::int AS age FROM {table}"
    return {row["age"] for row in await make.rows(engine, query)}


def before(results: int | None = 30) -> stored.Before:
    settings = make_settings("amqp://unused", database_url="postgresql://unused")
    return relay_prune.before(
        settings.model_copy(update={"keep_results": results}), datetime.now(UTC)
    )


@pytest.fixture
def variables(database_url: str) -> dict[str, str]:
    return {"INGEST_DATABASE_URL": database_url, "INGEST_AMQP_URL": "amqp://unused"}


async def typed(variables: dict[str, str], *words: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, ["prune", *words], env=variables)


async def test_a_prune_that_is_killed_goes_on_when_it_is_run_again(
    engine: AsyncEngine, variables: dict[str, str]
) -> None:
    await old_batches(engine, 12_000)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "prune", "--results", "30d", "--yes"),
        env=os.environ | variables,
    )

    async def gone() -> int:
        return 12_000 - await kept(engine)

    await until(gone, bool)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    at_first = await gone()
    assert 0 < at_first < 12_000
    # Nothing was lost of what it did, and its lock went with it.
    done = await typed(variables, "--results", "30d", "--yes", "--reason", "again", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["results"] == 12_000 - at_first
    assert await kept(engine) == 0
    entries = await make.rows(engine, "SELECT effect FROM ingest_audit ORDER BY id")
    assert [row["effect"]["results"] for row in entries] == [at_first, 12_000 - at_first]
    (found,) = await make.rows(engine, "SELECT results FROM ingest_pruning")
    assert found["results"] == 12_000
    # The digests stay, and with them what makes a duplicate a duplicate.
    assert await make.count(engine, "ingest_inbox WHERE content_digest IS NOT NULL") == 12_000


async def test_ingest_goes_on_beside_it_and_a_batch_in_use_is_left_to_the_next_time(
    engine: AsyncEngine, database_url: str
) -> None:
    settings = make_settings("amqp://unused", database_url=database_url, lock_timeout=1.0)
    impatient = make_engine(settings, connections=2, name="tests")
    ingest = Ingest(impatient, Policy())
    questions = await make.publish(engine, 3)
    await old_batches(engine, 6_000)
    over = asyncio.Event()

    async def ingesting() -> int:
        batches = 0
        while not over.is_set():
            # Whoever waited for more than a second would be refused.
            found = await ingest([make.sent(make.right(each)) for each in questions])
            assert all(isinstance(each, Ingested) for each in found)
            batches += len(found)
        return batches

    try:
        async with make.looking_into(engine) as correcting:
            await correcting.exec_driver_sql(
                "SELECT FROM ingest_inbox WHERE summary ? 'due' LIMIT 1 FOR UPDATE"
            )
            going = asyncio.create_task(ingesting())
            gone = await prune.prune(impatient, before(), BY, lambda step: None)
            over.set()
            batches = await going
    finally:
        await impatient.dispose()
    assert gone["results"] == 5_999
    assert batches and await kept(engine) == batches + 1
    gone = await prune.prune(engine, before(), BY, lambda step: None)
    assert (gone["results"], await kept(engine)) == (1, batches)


async def test_a_duplicate_of_a_pruned_result_is_told_so(engine: AsyncEngine) -> None:
    ingest = Ingest(engine, Policy())
    (question,) = await make.publish(engine)
    batches = [make.sent(make.right(question, make.at(day))) for day in range(3)]
    await ingest(batches)
    pruned, young, voided = [each.client_session_uuid for each in batches]
    assert pruned is not None and young is not None and voided is not None
    await void(engine, voided, Policy(), BY)
    await make.execute(
        engine,
        f"UPDATE ingest_inbox SET received_at = now() - {OLD} WHERE client_session_uuid <> :young",
        young=young,
    )
    assert (await prune.prune(engine, before(), BY, lambda step: None))["results"] == 1
    await make.execute(engine, "DELETE FROM outbox")
    again = [*batches, make.sent(make.wrong(question), uuid=pruned)]
    *duplicates, other = [each for some in again for each in await ingest([some])]
    assert all(isinstance(each, Duplicate) for each in duplicates)
    assert isinstance(other, Rejected) and other.reason is RejectReason.UUID_REUSED
    told = {each.client_session_uuid: each for each in (await make.told(engine))[:3]}
    assert {each.status for each in told.values()} == {Status.ALREADY_INGESTED}
    assert (told[pruned].pruned, told[pruned].sessions) == (True, ())
    assert (told[young].pruned, len(told[young].sessions)) == (None, 1)
    assert told[voided].pruned is None and told[voided].voided_at is not None
    # A void of what is pruned is told as well, and is then what a duplicate is told.
    await make.execute(engine, "DELETE FROM outbox")
    await void(engine, pruned, Policy(), BY)
    await ingest([batches[0]])
    first, second = await make.told(engine)
    assert first == second
    assert first.voided_at is not None and (first.pruned, first.sessions) == (None, ())


async def test_a_dry_run_counts_and_changes_nothing(
    engine: AsyncEngine, variables: dict[str, str]
) -> None:
    await old_batches(engine, 700)
    await noted(engine)
    for operation, age in (("void", "40 days"), ("erase", "40 days"), ("void", "1 day")):
        await audited(engine, operation, age)
    words = ("--results", "30d", "--audit", "31d")
    done = await typed(variables, *words, "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    would = json.loads(done.stdout)
    assert would["dry_run"] and would["results_before"] is not None
    wanted = {"results": 700, "audit": 1, "moments": 1_803}
    assert {kind: would[kind] for kind in wanted} == wanted
    assert await kept(engine) == 700 and await make.count(engine, "ingest_groups") == 3_000
    assert await operations(engine) == ["void", "erase", "void"]
    refused = await typed(variables, *words)
    assert refused.exit_code != 0 and await kept(engine) == 700  # nobody confirmed it
    for option, age in (("--results", "23h"), ("--audit", "29d")):
        assert (await typed(variables, option, age, "--yes")).exit_code != 0
    done = await typed(variables, *words, "--yes", "--json")
    assert {kind: json.loads(done.stdout)[kind] for kind in wanted} == wanted
    # What a restore needs, and what is young, stays.
    assert await operations(engine) == ["erase", "void", "prune"]
    assert await kept(engine) == 0
    assert await days(engine, "ingest_groups") == await days(engine, "ingest_told") == {0, 15}


async def test_whoever_deletes_from_the_audit_what_a_restore_needs_stays(
    engine: AsyncEngine,
) -> None:
    for operation, age in (("erase", "400 days"), ("void", "29 days")):
        await audited(engine, operation, age)
        with pytest.raises(DBAPIError, match="the audit keeps"):
            await make.execute(
                engine, "DELETE FROM ingest_audit WHERE operation = :name", name=operation
            )


async def test_only_one_command_prunes(engine: AsyncEngine, variables: dict[str, str]) -> None:
    with patch.object(stored, "_TRIES", 1):
        async with stored.alone(engine):
            done = await typed(variables, "--results", "30d", "--yes", "--json")
    assert done.exit_code == 1
    assert "Another `prune` is at work" in str(done.exception)


# ------------------------------------------------------------------------------- in workers


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[AsyncEngine]:
    settings = make_settings("amqp://unused", database_url=database_url)
    pool = make_engine(settings, connections=3, name="tests")
    yield pool
    await pool.dispose()


async def pruning(pool: AsyncEngine, workers: int, **keep: Any) -> list[dict[str, Any]]:
    """Has so many workers prune until one has finished; what they logged."""
    settings: Settings = make_settings("amqp://unused", database_url="postgresql://unused", **keep)
    with (
        capture_logs() as logs,
        patch.object(relay_prune, "_LOOK", 0.01),
        patch.object(relay_prune, "_PAUSE", 0.0),
    ):
        pruners = [Pruner(pool, settings, f"worker {uuid4()}") for _ in range(workers)]
        running = [asyncio.create_task(each.run()) for each in pruners]

        async def finished() -> bool:
            return any(each["event"] == "prune.finished" for each in logs)

        await until(finished, bool)
        for each in pruners:
            each.stop()
        await asyncio.gather(*running)
    return [dict(each) for each in logs]


async def test_without_settings_only_what_the_moment_knew_goes(
    engine: AsyncEngine, pool: AsyncEngine
) -> None:
    await old_batches(engine, 600)
    await audited(engine, "void", "400 days")
    await noted(engine)
    logs = await pruning(pool, 1)
    assert [(each["results"], each["audit"], each["moments"]) for each in logs] == [(0, 0, 1_803)]
    assert await kept(engine) == 600 and await operations(engine) == ["void"]
    assert await days(engine, "ingest_groups") == await days(engine, "ingest_told") == {0, 15}


async def test_a_worker_whose_clock_is_ahead_leaves_what_the_database_would_not_delete(
    engine: AsyncEngine, pool: AsyncEngine
) -> None:
    for age in ("31 days", "29 days 23 hours 30 minutes"):
        await audited(engine, "void", age)
    ahead = datetime.now(UTC) + timedelta(hours=1) - timedelta(days=30)
    steps = [step async for step in stored.steps(pool, {"audit": ahead})]
    assert sum(step.gone for step in steps) == 1
    assert await operations(engine) == ["void"]


async def test_one_of_several_workers_prunes_once_a_day(
    engine: AsyncEngine, pool: AsyncEngine
) -> None:
    await old_batches(engine, 2_500)
    await audited(engine, "void", "400 days")
    logs = await pruning(pool, 4, keep_results=30, keep_audit=60)
    assert [each["event"] for each in logs] == ["prune.finished"]
    assert (logs[0]["results"], logs[0]["audit"]) == (2_500, 1)
    assert await kept(engine) == 0 and await operations(engine) == []
    await old_batches(engine, 1)
    later = Pruner(
        pool,
        make_settings("amqp://unused", database_url="postgresql://unused", keep_results=30),
        "later",
    )
    with pytest.raises(Pruning):
        await later._prune()
    await make.execute(engine, "UPDATE ingest_pruning SET finished_at = now() - interval '25 h'")
    # Another one began and was killed: it is waited for, and then replaced.
    await make.execute(engine, "UPDATE ingest_pruning SET worker = 'dead', stepped_at = now()")
    with pytest.raises(Pruning):
        await later._prune()
    await make.execute(
        engine, "UPDATE ingest_pruning SET stepped_at = now() - interval '61 seconds'"
    )
    await later._prune()
    assert await kept(engine) == 0
