"""Sessions that were ingested and should no longer count."""

from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.ingest_result import IngestResult


class Voided(NamedTuple):
    """The voided quiz sessions, and the questions that have attempts in them."""

    quiz_session_ids: list[UUID]
    question_ids: list[int]
    attempts: int


_PRINCIPAL: Final = text(
    "SELECT user_id FROM ours.study_quiz_sessions WHERE client_session_uuid = :uuid"
)

_VOID: Final = text(
    "WITH voided AS (UPDATE ours.study_quiz_sessions SET voided_at = now(), updated_at = now()"
    " WHERE client_session_uuid = :uuid AND voided_at IS NULL RETURNING id)"
    " SELECT array_agg(DISTINCT voided.id), array_agg(DISTINCT attempt.study_question_id),"
    " count(*) FROM voided JOIN ours.study_question_attempts AS attempt"
    " ON attempt.quiz_session_id = voided.id"
)


_TOLD: Final = text(
    "SELECT CAST(summary AS text), viewer, now() FROM ours.ingest_inbox"
    " WHERE client_session_uuid = :uuid AND summary IS NOT NULL"
)


async def principal(connection: AsyncConnection, client_session_uuid: UUID) -> int | None:
    """The owner of the session. None if it was never ingested, or is erased."""
    found = (await connection.scalars(_PRINCIPAL, {"uuid": client_session_uuid})).first()
    return None if found is None else int(found)


async def told(
    connection: AsyncConnection, client_session_uuid: UUID
) -> tuple[IngestResult, str | None, datetime] | None:
    """The result that the batch's viewer got, the viewer, and the transaction's time. None if the
    inbox has no result.
    """
    row = (await connection.execute(_TOLD, {"uuid": client_session_uuid})).first()
    return None if row is None else (IngestResult.model_validate_json(row[0]), row[1], row[2])


async def void(connection: AsyncConnection, client_session_uuid: UUID) -> Voided:
    """Marks the batch's sessions as void. The result leaves out those that already were."""
    ids, question_ids, count = (
        await connection.execute(_VOID, {"uuid": client_session_uuid})
    ).one()
    return Voided(ids or [], question_ids or [], count)
