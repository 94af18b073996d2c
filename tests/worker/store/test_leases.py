"""Leases in the table: kept, expired by the database's clock, and never waited for."""

from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from worker.store import leases
from worker.store.engine import transaction
from worker.store.leases import Lease


async def _live(engine: AsyncEngine) -> list[Lease]:
    async with transaction(engine) as connection:
        return await leases.live(connection)


async def _keep(engine: AsyncEngine, worker: str, *queues: str, seconds: float = 60) -> None:
    async with transaction(engine) as connection:
        await leases.keep(connection, worker, queues, seconds)


async def test_a_worker_has_leases_of_what_it_kept_last(engine: AsyncEngine) -> None:
    await _keep(engine, "a", "q", "q.1", "q.2")
    await _keep(engine, "b", "q")
    await _keep(engine, "a", "q", "q.2", "q.3")
    assert await _live(engine) == [("q", "a"), ("q", "b"), ("q.2", "a"), ("q.3", "a")]
    async with transaction(engine) as connection:
        await leases.release(connection, "a")
    assert await _live(engine) == [("q", "b")]


async def test_a_lease_that_is_not_renewed_expires_and_is_removed_by_others(
    engine: AsyncEngine,
) -> None:
    await _keep(engine, "dead", "q", "q.1", seconds=0)
    await _keep(engine, "slow", "q", seconds=0)
    await _keep(engine, "slow", "q")
    assert await _live(engine) == [("q", "slow")]
    assert await make.count(engine, "ingest_leases") == 1


async def test_nobody_waits_for_a_worker_that_hangs_while_it_renews(engine: AsyncEngine) -> None:
    await _keep(engine, "hung", "q", "q.1", seconds=0)
    async with transaction(engine) as connection:
        await leases.keep(connection, "hung", ["q", "q.1"], 60)
        await _keep(engine, "a", "q", "q.1")
        assert await _live(engine) == [("q", "a"), ("q.1", "a")]
