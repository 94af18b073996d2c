"""Progress whose schedule another scheduler computed, which `rebuild` folds again."""

from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.domain.schedule import SCHEDULER_NAME

_COUNT: Final = text(
    "SELECT count(*) FROM (SELECT FROM ours.study_question_progress"
    " WHERE scheduler <> :current LIMIT :most) AS counted"
)

# What ANALYZE has seen. A column with so few values has all of them among the most common.
_SHARE: Final = text(
    "SELECT coalesce(sum(each.share), 0) FROM pg_stats AS stats,"
    " unnest(CAST(CAST(stats.most_common_vals AS text) AS text[]), stats.most_common_freqs)"
    " AS each (scheduler, share)"
    " WHERE stats.tablename = 'study_question_progress' AND stats.attname = 'scheduler'"
    " AND to_regclass(format('%I.%I', stats.schemaname, stats.tablename))"
    " = to_regclass('ours.study_question_progress') AND each.scheduler <> :current"
)


async def count_others(connection: AsyncConnection, most: int) -> int:
    """The number of questions whose schedule another scheduler computed; at most `most`.

    Reads all progress if there are fewer.
    """
    found = await connection.scalar(_COUNT, {"current": SCHEDULER_NAME, "most": most})
    return int(found or 0)


async def share_of_others(connection: AsyncConnection) -> float:
    """The share of progress, from 0 to 1, that another scheduler computed, as PostgreSQL estimates
    it. Costs nothing at any size, and is as old as the table's last ANALYZE.
    """
    return float(await connection.scalar(_SHARE, {"current": SCHEDULER_NAME}) or 0.0)
