"""Sessions that were ingested and should no longer count."""

from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.ingest_result import IngestResult
from schemas.words import Status


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
    "SELECT CAST(summary AS text), received_at, viewer, now() FROM ours.ingest_inbox"
    " WHERE client_session_uuid = :uuid AND erased_at IS NULL"
)


async def principal(connection: AsyncConnection, client_session_uuid: UUID) -> int | None:
    """The owner of the session. None if it was never ingested, or is erased."""
    found = (await connection.scalars(_PRINCIPAL, {"uuid": client_session_uuid})).first()
    return None if found is None else int(found)


async def told(
    connection: AsyncConnection, client_session_uuid: UUID
) -> tuple[IngestResult, str | None, datetime] | None:
    """The result that the batch's viewer got, as far as it is kept, the viewer, and the
    transaction's time. None if the batch is not in the inbox, or is erased.
    """
    row = (await connection.execute(_TOLD, {"uuid": client_session_uuid})).first()
    if row is None:
        return None
    summary, received_at, viewer, now = row
    if summary is not None:
        return IngestResult.model_validate_json(summary), viewer, now
    pruned = IngestResult(
        client_session_uuid=client_session_uuid, status=Status.INGESTED, received_at=received_at
    )
    return pruned, viewer, now


async def void(connection: AsyncConnection, client_session_uuid: UUID) -> Voided:
    """Marks the batch's sessions as void. The result leaves out those that already were."""
    ids, question_ids, count = (
        await connection.execute(_VOID, {"uuid": client_session_uuid})
    ).one()
    return Voided(ids or [], question_ids or [], count)
