"""The rows for a user's report: the state of each question, and the results of reviews."""

from datetime import date, datetime
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.words import Outcome, Pattern


class QuestionNow(NamedTuple):
    """One question's progress and name. Times are UTC, and stability is in days."""

    question_id: int
    pub_id: str | None
    topic_id: int
    topic_name: str
    attempts: int
    lapses: int
    last_outcome: Outcome
    last_answered_at: datetime
    pattern: Pattern
    stability: float
    difficulty: float
    due_at: datetime


class Week(NamedTuple):
    """The reviews of one week, by its Monday (UTC). A review is an attempt at least one elapsed day
    (12 hours, when rounded to whole days) after the last.
    """

    monday: date
    reviews: int
    recalled: int


_QUESTIONS: Final = text(
    "SELECT progress.study_question_id,"
    " coalesce(question.study_topic_id, progress.study_topic_id),"
    " coalesce(topic.name, ''), progress.attempts_count,"
    " progress.lapse_count, progress.last_outcome, progress.last_answered_at, progress.pattern,"
    " progress.stability, progress.difficulty, progress.due_at"
    " FROM ours.study_question_progress AS progress"
    " LEFT JOIN ours.study_questions AS question ON question.id = progress.study_question_id"
    " LEFT JOIN ours.study_topics AS topic"
    " ON topic.id = coalesce(question.study_topic_id, progress.study_topic_id)"
    " WHERE progress.user_id = :user_id ORDER BY progress.study_question_id"
)

# The table is the application's, and need not have an index on `source_id`: one pass for all.
_NAMES: Final = text(
    "SELECT source_id, min(pub_id) FROM ours.published WHERE kind = 'question' AND NOT deleted"
    " AND source_id = ANY(CAST(:question_ids AS bigint[])) GROUP BY source_id"
)

# What the scheduler counts as a pass: correct, or unsure with the right selection.
_WEEKS: Final = text(
    "WITH answered AS (SELECT answered_at, outcome, is_correct,"
    " lag(answered_at) OVER (PARTITION BY study_question_id ORDER BY answered_at) AS before"
    " FROM ours.study_question_attempts AS attempt"
    " JOIN ours.study_quiz_sessions AS session ON session.id = attempt.quiz_session_id"
    " WHERE session.user_id = :user_id AND session.voided_at IS NULL)"
    " SELECT CAST(date_trunc('week', answered_at AT TIME ZONE 'UTC') AS date) AS monday,"
    " count(*), count(*) FILTER (WHERE is_correct)"
    " FROM answered"
    " WHERE answered_at >= before + interval '12 hours' AND answered_at >= :since"
    " GROUP BY monday ORDER BY monday"
)


async def questions(connection: AsyncConnection, user_id: int) -> list[QuestionNow]:
    """Every question that the user has answered."""
    rows = (await connection.execute(_QUESTIONS, {"user_id": user_id})).all()
    found = await connection.execute(_NAMES, {"question_ids": [row[0] for row in rows]})
    names = {row[0]: row[1] for row in found}
    return [
        QuestionNow(
            *(row[0], names.get(row[0]), row[1], row[2], row[3], row[4]),
            *(Outcome(row[5]), row[6], Pattern(row[7]), row[8], row[9], row[10]),
        )
        for row in rows
    ]


async def weeks(connection: AsyncConnection, user_id: int, since: datetime) -> list[Week]:
    """The user's weeks since `since` that have reviews."""
    rows = await connection.execute(_WEEKS, {"user_id": user_id, "since": since})
    return [Week(*row) for row in rows]
