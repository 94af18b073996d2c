"""What is noted for 30 days goes by itself, a bounded part of it at once."""

from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from worker.store import moments
from worker.store.engine import transaction

_FILL = (
    "INSERT INTO ingest_groups (received_at, worker, deliveries, milliseconds,"
    " client_session_uuids, published_at, apps) SELECT now() - n * interval '15 days', 'w', 1, 1,"
    " '{}', '{}', '{}' FROM generate_series(0, 4) AS n, generate_series(1, 500)",
    "INSERT INTO ingest_told (received_at, told_at, client_session_uuids)"
    " SELECT now() - n * interval '29 days', now(), '{}' FROM generate_series(0, 2) AS n",
)


async def _ages(engine: AsyncEngine, table: str) -> dict[int, int]:
    """The number of rows by their age in days."""
    query = f"SELECT extract(day FROM now() - received_at) AS age FROM {table}"
    ages = [int(row["age"]) for row in await make.rows(engine, query)]
    return {age: ages.count(age) for age in sorted(ages)}


async def test_what_is_older_than_30_days_goes_step_by_step_and_holds_nobody_up(
    engine: AsyncEngine,
) -> None:
    for statement in _FILL:
        await make.execute(engine, statement)
    async with transaction(engine) as connection:
        await moments.forget(connection)
        # Another one that comes meanwhile waits for nothing, and leaves it to the first.
        async with transaction(engine) as other:
            await moments.forget(other)
    # 30 days and an instant are more than 30 days.
    assert await _ages(engine, "ingest_groups") == {0: 500, 15: 500, 30: 500}
    assert await _ages(engine, "ingest_told") == {0: 1, 29: 1}
    for _ in range(2):
        async with transaction(engine) as connection:
            await moments.forget(connection)
    assert await _ages(engine, "ingest_groups") == {0: 500, 15: 500}
