"""What is kept, how large it is, since when, and how fast it grows. No table is counted.

Sizes and numbers of rows are the catalog's, and the oldest row of each is found by an index.
"""

from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store.driver import fetch


class Size(NamedTuple):
    """What a table takes, with its indexes: `bytes`, and about so many `rows`, since `oldest`.

    `rows` is None until PostgreSQL has analyzed the table, and `oldest` where there is none.
    """

    what: str
    bytes: int
    rows: int | None
    oldest: datetime | None


class Growth(NamedTuple):
    """How fast the database grows: `batches_per_day` of up to a week, as far as it is noted, and
    the bytes for good of a batch, over all that there are.
    """

    batches_per_day: float
    bytes_per_batch: float

    @property
    def bytes_per_day(self) -> float:
        """What is added in a day."""
        return self.batches_per_day * self.bytes_per_batch


FOR_GOOD: Final = ("inbox", "results", "sessions", "attempts", "progress")
"""What a batch leaves behind, unless somebody prunes."""

# The rows were written in the order of their ids, and a session is as old as its batch.
_OLDEST_BATCH: Final = (
    "(SELECT session.created_at FROM (SELECT quiz_session_id FROM"
    " ours.study_question_attempts ORDER BY id LIMIT 1) AS attempt"
    " JOIN ours.study_quiz_sessions AS session ON session.id = attempt.quiz_session_id)"
)


def _first(column: str, table: str, order: str) -> str:
    return f"(SELECT {column} FROM ours.{table} ORDER BY {order} LIMIT 1)"


_TABLES: Final = {
    "inbox": ("ingest_inbox", _OLDEST_BATCH),
    "sessions": ("study_quiz_sessions", _OLDEST_BATCH),
    "attempts": ("study_question_attempts", _OLDEST_BATCH),
    "progress": ("study_question_progress", "NULL"),
    "outbox": ("outbox", _first("created_at", "outbox", "id")),
    "audit": ("ingest_audit", _first("happened_at", "ingest_audit", "id")),
    "dead letters": ("ingest_dead_letters", _first("died_at", "ingest_dead_letters", "died_at")),
    "moments": ("ingest_groups", _first("received_at", "ingest_groups", "received_at, id")),
    "moments told": ("ingest_told", _first("received_at", "ingest_told", "received_at, id")),
}
_SIZES: Final = text(
    " UNION ALL ".join(
        f"SELECT '{what}', pg_total_relation_size(oid), reltuples,"
        f" CAST({oldest} AS timestamptz) FROM pg_class WHERE oid = to_regclass('ours.{table}')"
        for what, (table, oldest) in _TABLES.items()
    )
)

# The width of a value is as it is stored: compressed, and of a long one only its pointer.
_RESULTS: Final = text(
    "SELECT greatest(reltuples, 0) * (1 - coalesce(null_frac, 0)),"
    " greatest(reltuples, 0) * (1 - coalesce(null_frac, 0)) * coalesce(avg_width, 0)"
    " + CASE WHEN reltoastrelid = 0 THEN 0 ELSE pg_total_relation_size(reltoastrelid) END,"
    f" greatest({_OLDEST_BATCH}, (SELECT results_before FROM ours.ingest_pruning))"
    " FROM pg_class AS inbox JOIN pg_namespace AS schema ON schema.oid = relnamespace"
    " LEFT JOIN pg_stats ON schemaname = nspname AND tablename = relname AND attname = 'summary'"
    " WHERE inbox.oid = to_regclass('ours.ingest_inbox')"
)

_SAMPLE: Final = 100
# Groups are numbered as they come, and a few at both ends say how many batches each has.
_BATCHES: Final = text(
    "WITH first AS MATERIALIZED (SELECT received_at, id, cardinality(client_session_uuids) AS"
    " batches FROM ours.ingest_groups WHERE received_at > now() - interval '7 days'"
    f" ORDER BY received_at, id LIMIT {_SAMPLE}),"
    " last AS MATERIALIZED (SELECT received_at, id, cardinality(client_session_uuids) AS batches"
    " FROM ours.ingest_groups WHERE received_at > now() - interval '7 days'"
    f" ORDER BY received_at DESC, id DESC LIMIT {_SAMPLE})"
    " SELECT (SELECT max(id) FROM last) - (SELECT min(id) FROM first) + 1,"
    " (SELECT avg(batches) FROM (SELECT * FROM first UNION SELECT * FROM last) AS sample),"
    " extract(epoch FROM now() - (SELECT min(received_at) FROM first)) / 86400"
)
_SHORTEST: Final = 1 / 24
"""Days over which growth is measured at least."""


async def sizes(connection: AsyncConnection) -> list[Size]:
    """What is kept. Results are a part of the inbox, which is without them here."""
    found = {
        row[0]: Size(row[0], int(row[1]), None if row[2] < 0 else int(row[2]), row[3])
        for row in await fetch(connection, _SIZES, {})
    }
    for rows, width, oldest in await fetch(connection, _RESULTS, {}):
        inbox = found["inbox"]
        taken = min(int(width), inbox.bytes)
        found["inbox"] = inbox._replace(bytes=inbox.bytes - taken)
        is_known = inbox.rows is not None
        found["results"] = Size("results", taken, int(rows) if is_known else None, oldest)
    told = found.pop("moments told")
    moments = found["moments"]
    found["moments"] = moments._replace(bytes=moments.bytes + told.bytes)
    order = [*FOR_GOOD, *(what for what in found if what not in FOR_GOOD)]
    return [found[what] for what in order]


async def growth(connection: AsyncConnection, kept: list[Size]) -> Growth | None:
    """How fast `kept` grows. None while nothing is known: without batches, or statistics."""
    by_name = {each.what: each for each in kept}
    batches = by_name["inbox"].rows
    ((groups, batches_in_a_group, days),) = await fetch(connection, _BATCHES, {})
    if not batches or groups is None:
        return None
    return Growth(
        float(groups) * float(batches_in_a_group) / max(float(days), _SHORTEST),
        sum(by_name[what].bytes for what in FOR_GOOD) / batches,
    )
