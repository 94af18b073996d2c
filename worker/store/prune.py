"""What goes after its time: results that are told again, the audit, and what only the moment knows.

Each step is a transaction of its own that takes a bounded part and waits for nobody. So whoever
prunes may be killed at any moment, and the next one goes on with what is left.

The batches themselves stay for ever, with their uuids and digests: a batch that comes again is
recognised, and its viewer is told that its result is pruned. The result of a voided batch stays
too, because it is short, and says what nobody could say again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple

from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.errors import Pruning
from worker.store.driver import fetch
from worker.store.engine import transaction

Kind = Literal["moments", "audit", "results"]
KINDS: Final[tuple[Kind, ...]] = ("moments", "audit", "results")
MOMENTS_KEPT: Final = timedelta(days=30)
RESULTS_KEPT_MIN: Final = timedelta(days=1)
"""For as long a viewer may ask which of its batches are here, and publish the others again."""
AUDIT_KEPT_MIN: Final = timedelta(days=30)

Before = Mapping[Kind, datetime]
"""What goes: of each kind that is named, all that is older than this."""

_AT_ONCE: Final = 500
_PAGES_AT_ONCE: Final = 64
"""Pages of the inbox that one step looks at. Where it finds nothing, the next looks at more."""
_PAGES_AT_MOST: Final = 1_024
_LOCK: Final = "hashtextextended('study-ingest prune', 0)"
_LEASE: Final = "1 minute"
"""How long a worker may be silent before another one goes on."""
_EVERY: Final = "1 day"


class Step(NamedTuple):
    """What a step did: how many rows of the kind went, and how far it got, in pages of the table;
    `of` is 0 where that is not known.
    """

    kind: Kind
    gone: int
    done: int = 0
    of: int = 0


class Pruned(NamedTuple):
    """Who prunes, and how much has gone so far. `worker` is None while none does. Results from
    before `results_before` are gone, except those whose rows were locked at that moment.
    """

    worker: str | None
    finished_at: datetime | None
    results_before: datetime | None
    results: int
    audit: int
    moments: int


# Whoever holds a table up, a migration say, must not find this before everybody else.
_PATIENCE: Final = text("SELECT set_config('lock_timeout', '200ms', true)")

_OLD_RESULTS: Final = (
    "FROM ours.ingest_inbox WHERE ctid >= CAST(:first AS tid) AND ctid < CAST(:last AS tid)"
    " AND received_at < CAST(:before AS timestamptz) AND summary IS NOT NULL"
    " AND summary -> 'voided_at' IS NULL"
)
# A batch that is being corrected or erased is left to the next time.
_RESULTS: Final = text(
    "WITH gone AS (UPDATE ours.ingest_inbox SET summary = NULL WHERE ctid = ANY(ARRAY("
    f"SELECT ctid {_OLD_RESULTS} LIMIT {_AT_ONCE} FOR UPDATE SKIP LOCKED)) RETURNING 1)"
    " SELECT count(*) FROM gone"
)
_COUNT_RESULTS: Final = text(f"SELECT count(*) {_OLD_RESULTS}")
_PAGES: Final = text(
    "SELECT pg_relation_size('ours.ingest_inbox') / CAST(current_setting('block_size') AS integer)"
)

_OLD_AUDIT: Final = (
    "FROM ours.ingest_audit WHERE happened_at < least(CAST(:before AS timestamptz),"
    " now() - interval '30 days')"
    " AND operation <> 'erase'"
)
_COUNT_AUDIT: Final = text(f"SELECT count(*) {_OLD_AUDIT}")
_AUDIT: Final = text(
    f"WITH gone AS (DELETE FROM ours.ingest_audit WHERE id IN (SELECT id {_OLD_AUDIT} ORDER BY id"
    f" LIMIT {_AT_ONCE}) RETURNING 1) SELECT count(*) FROM gone"
)

_MOMENTS_OF: Final = ("ingest_groups", "ingest_told")
_COUNT_MOMENTS: Final = text(
    "SELECT "
    + " + ".join(
        f"(SELECT count(*) FROM ours.{table} WHERE received_at < CAST(:before AS timestamptz))"
        for table in _MOMENTS_OF
    )
)
_MOMENTS: Final = text(
    "WITH "
    + ", ".join(
        f"{table} AS (DELETE FROM ours.{table} WHERE (received_at, id) IN"
        f" (SELECT received_at, id FROM ours.{table}"
        " WHERE received_at < CAST(:before AS timestamptz) ORDER BY received_at, id"
        f" LIMIT {_AT_ONCE}) RETURNING 1)"
        for table in _MOMENTS_OF
    )
    + " SELECT "
    + " + ".join(f"(SELECT count(*) FROM {table})" for table in _MOMENTS_OF)
)

_PRUNE: Final[Mapping[Kind, TextClause]] = {
    "moments": _MOMENTS,
    "audit": _AUDIT,
    "results": _RESULTS,
}
_COUNT: Final[Mapping[Kind, TextClause]] = {
    "moments": _COUNT_MOMENTS,
    "audit": _COUNT_AUDIT,
    "results": _COUNT_RESULTS,
}

# Nobody waits for another one that prunes.
_MAY: Final = (
    "(worker = CAST(:worker AS text) OR worker IS NULL"
    f" OR stepped_at < clock_timestamp() - interval '{_LEASE}')"
    f" AND (finished_at IS NULL OR finished_at < clock_timestamp() - interval '{_EVERY}')"
)
# Who may not prune does not take the lock either, because then nobody could.
_CLAIM: Final = text(
    f"WITH due AS MATERIALIZED (SELECT FROM ours.ingest_pruning WHERE {_MAY}),"
    f" alone AS MATERIALIZED (SELECT pg_try_advisory_xact_lock({_LOCK}) AS free FROM due)"
    " UPDATE ours.ingest_pruning SET worker = CAST(:worker AS text),"
    f" stepped_at = clock_timestamp() WHERE (SELECT free FROM alone) AND {_MAY} RETURNING 1"
)
_FINISH: Final = text(
    "UPDATE ours.ingest_pruning SET worker = NULL, finished_at = clock_timestamp()"
    " WHERE worker = :worker"
)
_NOTE: Final = {
    kind: text(f"UPDATE ours.ingest_pruning SET {kind} = {kind} + CAST(:gone AS bigint)")
    for kind in KINDS
}
_REACHED: Final = text(
    "UPDATE ours.ingest_pruning"
    " SET results_before = greatest(results_before, CAST(:before AS timestamptz))"
)
_FIND: Final = text(
    f"SELECT CASE WHEN stepped_at > clock_timestamp() - interval '{_LEASE}' THEN worker END,"
    " finished_at, results_before, results, audit, moments FROM ours.ingest_pruning"
)

_HOLD: Final = text(f"SELECT pg_try_advisory_lock({_LOCK})")
_RELEASE: Final = text(f"SELECT pg_advisory_unlock({_LOCK})")
_TRIES: Final = 30
_WAIT: Final = 0.1
"""Seconds between two tries, in which a worker that prunes ends its step."""

InStep = Callable[[AsyncConnection], Awaitable[None]]
OfStep = Callable[[AsyncConnection, Step], Awaitable[None]]


async def _alone(_: AsyncConnection) -> None: ...


async def _unrecorded(_: AsyncConnection, __: Step) -> None: ...


async def steps(
    engine: AsyncEngine, before: Before, claim: InStep = _alone, record: OfStep = _unrecorded
) -> AsyncIterator[Step]:
    """Prunes step by step: the caller decides how long to wait after each.

    `claim` begins the transaction of each step, and `record` ends it. Raises what they raise, and
    `DatabaseAway` and `TransientFault`: what the steps before did is done.
    """

    async def one(kind: Kind, first: int, pages: int, of: int) -> Step:
        async with transaction(engine) as connection:
            await fetch(connection, _PATIENCE, {})
            await claim(connection)
            gone = await _prune(connection, kind, before[kind], first, pages)
            step = Step(kind, gone, min(first + pages, of), of)
            if gone:
                await fetch(connection, _NOTE[kind], {"gone": gone})
            await record(connection, step)
        return step

    for kind in KINDS:
        if kind not in before:
            continue
        if kind != "results":
            while (step := await one(kind, 0, 0, 0)).gone:
                yield step
            continue
        async with transaction(engine) as connection:
            of = await _pages(connection)
        first, pages = 0, _PAGES_AT_ONCE
        while first < of:
            step = await one(kind, first, pages, of)
            if step.gone < _AT_ONCE:
                first += pages
            pages = _PAGES_AT_ONCE if step.gone else min(2 * pages, _PAGES_AT_MOST)
            yield step
        async with transaction(engine) as connection:
            await fetch(connection, _REACHED, {"before": before[kind]})


async def count(connection: AsyncConnection, before: Before) -> dict[Kind, int]:
    """How many rows of each kind would go. It reads the whole inbox."""
    found: dict[Kind, int] = {}
    for kind, time in before.items():
        values: dict[str, object] = {"before": time}
        if kind == "results":
            values |= {"first": _tid(0), "last": _tid(await _pages(connection))}
        rows = await fetch(connection, _COUNT[kind], values)
        found[kind] = rows[0][0]
    return found


async def _pages(connection: AsyncConnection) -> int:
    rows = await fetch(connection, _PAGES, {})
    return int(rows[0][0])


async def _prune(
    connection: AsyncConnection, kind: Kind, before: datetime, first: int, pages: int
) -> int:
    values: dict[str, object] = {"before": before}
    if kind == "results":
        values |= {"first": _tid(first), "last": _tid(first + pages)}
    rows = await fetch(connection, _PRUNE[kind], values)
    return int(rows[0][0])


def _tid(page: int) -> tuple[int, int]:
    """The place before all rows of a page."""
    return page, 0


async def claim(connection: AsyncConnection, worker: str) -> None:
    """Makes the worker the one that prunes, until it has finished or is silent for a minute.

    Raises `Pruning` while another one prunes, and for a day after somebody has finished.
    """
    if not await fetch(connection, _CLAIM, {"worker": worker}):
        raise Pruning("Another one prunes, or has pruned today")


async def finish(connection: AsyncConnection, worker: str) -> None:
    """Ends the worker's pass: the next one begins in a day."""
    await fetch(connection, _FINISH, {"worker": worker})


async def find(connection: AsyncConnection) -> Pruned:
    """Who prunes, and how much has gone."""
    return Pruned(*(await fetch(connection, _FIND, {}))[0])


@asynccontextmanager
async def alone(engine: AsyncEngine) -> AsyncIterator[None]:
    """Nobody else prunes while the block runs. It takes a connection of the engine.

    Raises `Pruning` if another command does. A worker stops for it.
    """
    async with engine.connect() as plain:
        connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
        for _ in range(_TRIES):
            if await connection.scalar(_HOLD):
                break
            await asyncio.sleep(_WAIT)
        else:
            raise Pruning("Another `prune` is at work", "wait until it has ended.")
        try:
            yield
        finally:
            with suppress(DBAPIError):  # whoever has lost the connection has lost the lock
                await connection.execute(_RELEASE)
