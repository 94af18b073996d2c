"""What has changed in one user's progress since a version, as pages have it."""

from collections.abc import Collection, Sequence
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.domain.records import ChangedQuestion, Mark, ReadState
from worker.errors import DatabaseAway
from worker.store.driver import fetch
from worker.store.versions import EPOCH

_STATE: Final = text(
    f"SELECT {EPOCH}, (SELECT last_value FROM ours.ingest_versions), erased_at,"
    " coalesce(version, 0) FROM (SELECT) AS one"
    " LEFT JOIN ours.ingest_erasures ON user_id = CAST(:user_id AS bigint)"
)

_SINCE: Final = (
    "user_id = CAST(:user_id AS bigint) AND (version, study_question_id)"
    " > (CAST(:version AS bigint), CAST(:question_id AS bigint))"
)
_CHANGED: Final = text(
    "SELECT version, study_question_id, last_answered_at, last_outcome, stability, due_at,"
    " correct_count, wrong_count, unsure_count, pattern"
    f" FROM ours.study_question_progress WHERE {_SINCE}"
    " UNION ALL SELECT version, study_question_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL"
    f" FROM ours.ingest_forgotten AS forgotten WHERE {_SINCE}"
    " AND NOT EXISTS (SELECT FROM ours.study_question_progress AS progress"
    " WHERE progress.user_id = forgotten.user_id"
    " AND progress.study_question_id = forgotten.study_question_id)"
    " ORDER BY 1, 2 LIMIT CAST(:limit AS integer)"
)

_PUB_IDS: Final = text(
    "SELECT publication.source_id, publication.pub_id FROM ours.published AS publication"
    " JOIN ours.study_questions AS question ON question.id = publication.source_id"
    " WHERE publication.kind = 'question' AND NOT publication.deleted"
    " AND question.deleted_at IS NULL"
    " AND publication.source_id = ANY(CAST(:question_ids AS bigint[])) ORDER BY 1, 2"
)


async def state(connection: AsyncConnection, user_id: int) -> ReadState:
    """The state as of the transaction, which must be `repeatable_read` for what follows.

    Raises `DatabaseAway` on a standby, which may lag behind what viewers have been told.
    """
    (row,) = await fetch(connection, _STATE, {"user_id": user_id})
    epoch, newest, erased_at, erased = row
    if epoch is None:
        raise DatabaseAway("The database only reads: it is a standby.")
    return ReadState(Mark(epoch, newest), erased_at, erased)


async def since(
    connection: AsyncConnection, user_id: int, position: tuple[int, int], limit: int
) -> list[ChangedQuestion]:
    """What has changed after (version, question), in that order."""
    version, question_id = position
    wanted = {
        "user_id": user_id,
        "version": version,
        "question_id": question_id,
        "limit": limit,
    }
    return [ChangedQuestion._make(row) for row in await fetch(connection, _CHANGED, wanted)]


async def live_ids(
    connection: AsyncConnection, question_ids: Collection[int]
) -> dict[int, Sequence[str]]:
    """The ids under which each question is published now, in order. Others are left out."""
    found: dict[int, list[str]] = {}
    for question_id, pub_id in await fetch(
        connection, _PUB_IDS, {"question_ids": list(question_ids)}
    ):
        found.setdefault(question_id, []).append(pub_id)
    return dict(found)
