"""What a thousand batches leave behind: bytes of each table and index, WAL, and messages.

*capacity*: every user has answered every question before, so that the rows of progress are there,
as they are after some weeks. Then batches are ingested in this process, in groups, and their
messages are taken from the outbox as a relay takes them.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from bench import courses, reference
from bench.stage import Stage
from bench.workload import Shape, batches, earlier
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.store import moments, outbox
from worker.store.engine import make_engine, transaction
from worker.store.moments import Told

_GROUP: Final = 50
_FOR_GOOD: Final = (
    *("ingest_inbox", "study_quiz_sessions", "study_question_attempts", "study_question_progress"),
)
_FOR_30_DAYS: Final = ("ingest_groups", "ingest_told")
_RELATIONS: Final = (
    "SELECT owner.relname AS owner, part.relname AS part, pg_relation_size(part.oid) AS bytes"
    " FROM pg_class AS owner JOIN pg_class AS part ON part.oid = owner.oid"
    " OR part.oid = owner.reltoastrelid OR part.oid IN"
    " (SELECT indexrelid FROM pg_index WHERE indrelid IN (owner.oid, owner.reltoastrelid))"
    " WHERE owner.relnamespace = 'public'::regnamespace AND owner.relname = ANY($1)"
)


class Sizes(NamedTuple):
    """How much is ingested."""

    shape: Shape = Shape()
    batches: int = 10_000


class Capacity:
    """Measures it."""

    def __init__(self, stage: Stage, sizes: Sizes, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._sizes = sizes
        self._say = say
        self.workloads: Mapping[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "capacity": self.capacity
        }

    async def capacity(self) -> dict[str, Any]:
        """Bytes for each batch by table and by table and index, and of WAL; messages by kind."""
        shape, count = self._sizes.shape, self._sizes.batches
        await self._stage.copy("capacity", courses.FRESH)
        await reference.ingest(self._stage, "capacity", earlier(shape, share=1.0))
        connection = await self._stage.connect("capacity")
        engine = make_engine(self._stage.on_database("capacity"), connections=1, name="bench")
        try:
            await connection.execute("TRUNCATE outbox")
            await self._stage.settle("capacity")
            before, log = await _sizes(connection), await _log(connection)
            ingest = Ingest(engine, Policy(), worker="bench:1:capacity")
            sent = batches(shape, count, seed="capacity", day=30)
            messages: dict[str, int] = {}
            for start in range(0, count, _GROUP):
                await ingest(reference.incoming_all(sent[start : start + _GROUP]))
                for kind, taken in (await _take(engine)).items():
                    messages[kind] = messages.get(kind, 0) + taken
            written = await _log(connection) - log
            after = await _sizes(connection)
        finally:
            await engine.dispose()
            await connection.close()
        grown = {place: (after[place] - before.get(place, 0)) / count for place in after}
        by_table = {
            table: sum(each for (owner, _), each in grown.items() if owner == table)
            for table in (*_FOR_GOOD, *_FOR_30_DAYS)
        }
        return {
            "capacity": {
                "batches": count,
                "for_good": sum(by_table[table] for table in _FOR_GOOD),
                "for_30_days": sum(by_table[table] for table in _FOR_30_DAYS),
                "wal": written / count,
                "by_table": by_table,
                "by_part": {f"{owner} {part}": each for (owner, part), each in grown.items()},
                "messages": {kind: taken / count for kind, taken in messages.items()},
            }
        }


async def _take(engine: AsyncEngine) -> dict[str, int]:
    """Takes everything that waits, and notes that it is told; how many of each kind that was."""
    found: dict[str, int] = {}
    async with transaction(engine) as connection:
        rows = await outbox.take(connection, results=1_000, jobs=1_000)
        results = [row for row in rows if not row.message.is_job]
        told = [Told(row.created_at, row.message.headers["client-session-uuid"]) for row in results]
        await moments.tell(connection, told)
    for row in rows:
        kind = row.message.routing_key if row.message.is_job else "result"
        found[kind] = found.get(kind, 0) + 1
    return found


async def _sizes(connection: asyncpg.Connection) -> dict[tuple[str, str], int]:
    tables = [*_FOR_GOOD, *_FOR_30_DAYS]
    found = await connection.fetch(_RELATIONS, tables)
    sizes: dict[tuple[str, str], int] = {}
    for owner, part, size in found:
        # The names of what belongs to a TOAST table have a number that no two databases share.
        name = "toast" if part.startswith("pg_toast") else part
        sizes[owner, name] = sizes.get((owner, name), 0) + size
    return sizes


async def _log(connection: asyncpg.Connection) -> int:
    written: int = await connection.fetchval(
        "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
    )
    return written
