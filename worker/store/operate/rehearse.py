"""What a transaction has written for one batch, read inside that transaction."""

from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class SessionWritten(NamedTuple):
    """A quiz session of the batch."""

    quiz_session_id: UUID
    user_id: int
    topic_id: int
    correct: int
    wrong: int
    unsure: int


class AttemptWritten(NamedTuple):
    """An attempt of the batch."""

    position: int
    question_id: int
    selected_choice: int | None
    correct_choice: int
    outcome: str
    answered_at: datetime


class MessageWritten(NamedTuple):
    """A message that the batch causes."""

    routing_key: str
    type: str
    body: str


_SESSIONS: Final = text(
    "SELECT id, user_id, study_topic_id, correct_count, wrong_count, unsure_count"
    " FROM ours.study_quiz_sessions WHERE client_session_uuid = :uuid ORDER BY study_topic_id"
)

_ATTEMPTS: Final = text(
    "SELECT attempt.position, attempt.study_question_id, attempt.selected_choice,"
    " attempt.correct_choice, attempt.outcome, attempt.answered_at"
    " FROM ours.study_quiz_sessions AS session JOIN ours.study_question_attempts AS attempt"
    " ON attempt.quiz_session_id = session.id WHERE session.client_session_uuid = :uuid"
    " ORDER BY attempt.position"
)

_LAST: Final = text("SELECT coalesce(max(id), 0) FROM ours.outbox")

_MESSAGES: Final = text(
    "SELECT routing_key, type, body FROM ours.outbox WHERE id > :last AND (headers ->>"
    " 'client-session-uuid' = :uuid OR CAST(body AS jsonb) ->> 'quiz_session_id' IN"
    " (SELECT CAST(id AS text) FROM ours.study_quiz_sessions WHERE client_session_uuid = :id))"
    " ORDER BY id"
)


async def last_message(connection: AsyncConnection) -> int:
    """A position in the outbox, to find later what came after it."""
    return int(await connection.scalar(_LAST) or 0)


async def sessions(connection: AsyncConnection, uuid: UUID) -> list[SessionWritten]:
    """The batch's quiz sessions."""
    return [SessionWritten(*row) for row in await connection.execute(_SESSIONS, {"uuid": uuid})]


async def attempts(connection: AsyncConnection, uuid: UUID) -> list[AttemptWritten]:
    """The batch's attempts, in their order."""
    return [AttemptWritten(*row) for row in await connection.execute(_ATTEMPTS, {"uuid": uuid})]


async def messages(connection: AsyncConnection, uuid: UUID, last: int) -> list[MessageWritten]:
    """The batch's result and jobs that were written after the position `last`."""
    rows = await connection.execute(_MESSAGES, {"uuid": str(uuid), "id": uuid, "last": last})
    return [MessageWritten(*row) for row in rows]
