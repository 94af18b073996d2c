"""What is due for a user, read from the view for applications."""

from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class Question(NamedTuple):
    """A published question, as `study_progress` shows it."""

    question_id: int
    topic_id: int
    pub_ids: list[str]
    title: str | None
    due_from: datetime
    last_answered_at: datetime
    pattern: str
    stability: float
    difficulty: float
    due_at: datetime


_DUE: Final = text(
    "SELECT study_question_id, study_topic_id, pub_ids, title, due_from, last_answered_at, pattern,"
    " stability, difficulty, due_at FROM ours.study_progress"
    " WHERE user_id = :user_id AND due_from <= :at AND last_answered_at <= :at"
    " ORDER BY study_question_id"
)


async def due(connection: AsyncConnection, user_id: int, at: datetime) -> list[Question]:
    """The published questions that are due at a time, by the progress of now.

    A time before a question's last answer tells nothing about it.
    """
    rows = await connection.execute(_DUE, {"user_id": user_id, "at": at})
    return [Question(*row) for row in rows if row.pub_ids]
