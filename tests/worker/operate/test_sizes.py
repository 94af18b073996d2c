"""How large everything is, since when, and how fast it grows, without counting."""

from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from tests.broker_fixtures import make_settings
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.operate.doctor import kept
from worker.operate.status.facts import sized
from worker.store.engine import transaction
from worker.store.operate import sizes as stored
from worker.store.operate.sizes import Growth, Size

SETTINGS = make_settings("amqp://unused", database_url="postgresql://unused")


async def looked(engine: AsyncEngine) -> tuple[dict[str, Size], Growth | None]:
    async with transaction(engine) as connection:
        found = await stored.sizes(connection)
        return {each.what: each for each in found}, await stored.growth(connection, found)


async def test_a_new_database_has_sizes_and_nothing_else(engine: AsyncEngine) -> None:
    found, growth = await looked(engine)
    assert [*found] == [
        *("inbox", "results", "sessions", "attempts", "progress", "outbox", "audit"),
        *("dead letters", "moments"),
    ]
    assert growth is None
    assert all(each.oldest is None and not each.rows for each in found.values())
    assert [each.severity for each in await kept.examine(SETTINGS, engine)] == ["ok"]


async def test_everything_is_measured_by_the_catalog_and_by_indexes(engine: AsyncEngine) -> None:
    questions = await make.publish(engine, 10)
    ingest = Ingest(engine, Policy(), worker="w")
    batches = [make.sent(*map(make.right, questions)) for _ in range(30)]
    for start in range(0, 30, 10):
        await ingest(batches[start : start + 10])
    first = batches[0].client_session_uuid
    for table, column in (("ingest_inbox", "received_at"), ("study_quiz_sessions", "created_at")):
        await make.execute(
            engine,
            f"UPDATE {table} SET {column} = now() - interval '9 days'"
            " WHERE client_session_uuid = :first",
            first=first,
        )
    await make.execute(engine, "ANALYZE")
    found, growth = await looked(engine)
    rows = {what: each.rows for what, each in found.items()}
    assert rows == {
        "inbox": 30,
        "results": 30,
        "sessions": 30,
        "attempts": 300,
        "progress": 10,
        "outbox": 30,
        "audit": 0,
        "dead letters": 0,
        "moments": 3,
    }
    (whole,) = await make.rows(engine, "SELECT pg_total_relation_size('ingest_inbox') AS bytes")
    assert found["inbox"].bytes + found["results"].bytes == whole["bytes"]
    (width,) = await make.rows(
        engine, "SELECT sum(pg_column_size(summary)) AS bytes FROM ingest_inbox"
    )
    page = 8_192  # of the index of a TOAST table that is empty
    assert found["results"].bytes - page == pytest.approx(width["bytes"], rel=0.05)
    for what in ("inbox", "results", "sessions", "attempts"):
        oldest = found[what].oldest
        assert oldest is not None
        assert timedelta(days=9) < datetime.now(UTC) - oldest < timedelta(days=9, hours=1)
    # So few minutes count as an hour.
    assert growth is not None and growth.batches_per_day == pytest.approx(30 * 24)
    for_good = sum(found[what].bytes for what in stored.FOR_GOOD)
    assert growth.bytes_per_batch == pytest.approx(for_good / 30)
    assert growth.bytes_per_day == pytest.approx(for_good * 24)


async def test_the_doctor_warns_where_it_is_worth_it(engine: AsyncEngine) -> None:
    await make.execute(
        engine,
        "INSERT INTO ingest_told (received_at, told_at, client_session_uuids)"
        " VALUES (now() - interval '40 days', now(), '{}')",
    )
    await make.execute(
        engine,
        "INSERT INTO ingest_groups (received_at, worker, deliveries, milliseconds,"
        " client_session_uuids, published_at, apps)"
        " VALUES (now() - interval '40 days', 'w', 1, 1, '{}', '{}', '{}')",
    )
    with (
        patch.object(kept, "_MANY_RESULTS", -1),
        patch.object(kept, "_MANY_ENTRIES", -1),
        patch.object(kept, "_MANY_LETTERS", -1),
    ):
        found = await kept.examine(SETTINGS, engine)
        assert [each.severity for each in found] == ["ok", *["warning"] * 4]
        keeping = SETTINGS.model_copy(update={"keep_results": 36_500, "keep_audit": 36_500})
        assert len(await kept.examine(keeping, engine)) == 3


def test_sizes_have_a_unit() -> None:
    assert [sized(n) for n in (0, 999, 1_000, 99_949, 99_950, 1e9, 2.5e15)] == [
        *("0 bytes", "999 bytes", "1.0 kB", "99.9 kB", "100 kB", "1.0 GB", "2500 TB"),
    ]
