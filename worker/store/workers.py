"""Workers say from time to time that they are there, what they do, and why they are paused.

A worker that can't reach the database says nothing meanwhile, so what it said last is older.
Workers of older versions say nothing at all.
"""

from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store.driver import fetch


class Worker(NamedTuple):
    """A worker, as it said last, `age` seconds ago. `reason` is why it is paused; None if it is
    not.
    """

    worker: str
    version: str
    started_at: datetime
    seen_at: datetime
    age: float
    state: str
    in_hand: int
    reason: str | None


# Whoever was killed is remembered for an hour. Nobody waits for a row of another.
_KEEP: Final = text(
    "WITH gone AS (DELETE FROM ours.ingest_workers WHERE worker IN"
    " (SELECT worker FROM ours.ingest_workers WHERE worker <> :worker"
    " AND seen_at < clock_timestamp() - interval '1 hour' FOR UPDATE SKIP LOCKED))"
    " INSERT INTO ours.ingest_workers"
    " (worker, version, started_at, seen_at, state, in_hand, reason)"
    " VALUES (CAST(:worker AS text), :version, :started_at, clock_timestamp(), :state, :in_hand,"
    " :reason) ON CONFLICT (worker) DO UPDATE SET seen_at = excluded.seen_at,"
    " state = excluded.state, in_hand = excluded.in_hand, reason = excluded.reason"
)

_LEAVE: Final = text("DELETE FROM ours.ingest_workers WHERE worker = :worker")

_ALL: Final = text(
    "SELECT worker, version, started_at, seen_at,"
    " CAST(extract(epoch FROM clock_timestamp() - seen_at) AS double precision), state, in_hand,"
    " reason FROM ours.ingest_workers ORDER BY worker"
)


async def keep(
    connection: AsyncConnection,
    worker: str,
    version: str,
    started_at: datetime,
    state: str,
    in_hand: int,
    reason: str | None,
) -> None:
    """Says that the worker is there."""
    values = {
        "worker": worker,
        "version": version,
        "started_at": started_at,
        "state": state,
        "in_hand": in_hand,
        "reason": reason,
    }
    await fetch(connection, _KEEP, values)


async def leave(connection: AsyncConnection, worker: str) -> None:
    """Says that the worker has ended."""
    await fetch(connection, _LEAVE, {"worker": worker})


async def present(connection: AsyncConnection) -> list[Worker]:
    """All workers that have not ended, and those that were killed in the last hour."""
    return [Worker(*row) for row in await fetch(connection, _ALL, {})]
