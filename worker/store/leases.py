"""Leases: which worker consumes which queue, as long as it renews that.

A worker that consumes partitions has a lease of each, and one of the common queue, which tells the
others that it is there. All times are the database's. Nothing is correct only because of a lease:
two workers may consume one partition at once.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store.driver import fetch


class Lease(NamedTuple):
    """`worker` consumes `queue`."""

    queue: str
    worker: str


_LIVE: Final = text(
    "SELECT queue, worker FROM ours.ingest_leases WHERE until > clock_timestamp() ORDER BY 1, 2"
)

# Nobody waits for a row of another: what another worker is deleting or renewing is skipped.
_KEEP: Final = text(
    "WITH gone AS (DELETE FROM ours.ingest_leases WHERE (queue, worker) IN"
    " (SELECT queue, worker FROM ours.ingest_leases"
    " WHERE worker = :worker AND queue <> ALL(CAST(:queues AS text[]))"
    " OR worker <> :worker AND until <= clock_timestamp() FOR UPDATE SKIP LOCKED))"
    " INSERT INTO ours.ingest_leases (queue, worker, until)"
    " SELECT queue, :worker, clock_timestamp() + make_interval(secs => :seconds)"
    " FROM unnest(CAST(:queues AS text[])) AS queue"
    " ON CONFLICT (queue, worker) DO UPDATE SET until = excluded.until"
)

_RELEASE: Final = text("DELETE FROM ours.ingest_leases WHERE worker = :worker")


async def live(connection: AsyncConnection) -> list[Lease]:
    """The leases that have not expired."""
    return [Lease(*row) for row in await fetch(connection, _LIVE, {})]


async def keep(
    connection: AsyncConnection, worker: str, queues: Collection[str], seconds: float
) -> None:
    """Gives the worker leases of these queues, for so many seconds from now, and of no others."""
    parameters = {"worker": worker, "queues": sorted(queues), "seconds": seconds}
    await fetch(connection, _KEEP, parameters)


async def release(connection: AsyncConnection, worker: str) -> None:
    """Ends all leases of the worker."""
    await fetch(connection, _RELEASE, {"worker": worker})
