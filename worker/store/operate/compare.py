"""The stored content of an ingested batch, to compare it with another batch of the same uuid."""

from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class StoredAnswer(NamedTuple):
    """An attempt as its viewer sent it. `sent_at` is None if the time was not readable."""

    question_id: int
    selected_choice: int | None
    is_unsure: bool
    sent_at: datetime | None


_STORED: Final = text(
    "SELECT attempt.position, attempt.study_question_id, attempt.selected_choice,"
    " attempt.outcome = 'unsure', attempt.answered_at_sent"
    " FROM ours.study_quiz_sessions AS session JOIN ours.study_question_attempts AS attempt"
    " ON attempt.quiz_session_id = session.id WHERE session.client_session_uuid = :uuid"
)


async def stored(connection: AsyncConnection, uuid: UUID) -> dict[int, StoredAnswer]:
    """The attempts of the batch by position. Skipped attempts are not stored."""
    rows = await connection.execute(_STORED, {"uuid": uuid})
    return {row[0]: StoredAnswer(*row[1:]) for row in rows}
