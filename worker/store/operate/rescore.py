"""Scoring attempts again, and the results that their viewers got before."""

from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.ingest_result import IngestResult
from schemas.words import Outcome
from worker.store.operate.replaced import KEPT


class Answer(NamedTuple):
    """The columns of a stored attempt that are needed to score it again."""

    id: int
    quiz_session_id: UUID
    selected_choice: int | None
    correct_choice: int
    is_correct: bool | None
    outcome: Outcome


class Question(NamedTuple):
    """Whose a question is (None if it is shared), and its key."""

    owner_id: int | None
    correct_choice: int


class Told(NamedTuple):
    """An ingested batch with the result that its viewer got, and its sessions with their
    questions.
    """

    result: IngestResult
    viewer: str | None
    questions: dict[UUID, list[int]]


_QUESTION: Final = text(
    "SELECT user_id, correct_choice FROM ours.study_questions WHERE id = :question_id"
)

_JUDGED_OTHERWISE: Final = text(
    "SELECT DISTINCT attempt.user_id FROM ours.study_questions AS question"
    " JOIN ours.study_question_attempts AS attempt ON attempt.study_question_id = question.id"
    " WHERE question.id = :question_id AND attempt.correct_choice <> question.correct_choice"
    " ORDER BY attempt.user_id"
)

_CORRECT: Final = text(
    "UPDATE ours.study_questions SET correct_choice = :choice"
    " WHERE id = :question_id AND correct_choice <> :choice"
)

_ANSWERS: Final = text(
    "SELECT id, quiz_session_id, selected_choice, correct_choice, is_correct, outcome"
    " FROM ours.study_question_attempts WHERE user_id = :user_id AND study_question_id ="
    " :question_id"
    " ORDER BY id"
)

_RESCORE: Final = text(
    "UPDATE ours.study_question_attempts AS attempt SET correct_choice = :choice,"
    f" is_correct = scored.is_correct, outcome = scored.outcome, {KEPT}"
    " FROM unnest(CAST(:ids AS bigint[]), CAST(:rights AS boolean[]), CAST(:outcomes AS text[]))"
    " AS scored (id, is_correct, outcome), ours.study_quiz_sessions AS session"
    " WHERE attempt.id = scored.id AND session.id = attempt.quiz_session_id"
)

_RECOUNT: Final = text(
    "UPDATE ours.study_quiz_sessions AS session SET correct_count = counted.correct,"
    " wrong_count = counted.wrong, unsure_count = counted.unsure, updated_at = now()"
    " FROM (SELECT quiz_session_id, count(*) FILTER (WHERE outcome = 'correct') AS correct,"
    " count(*) FILTER (WHERE outcome = 'wrong') AS wrong,"
    " count(*) FILTER (WHERE outcome = 'unsure') AS unsure FROM ours.study_question_attempts"
    " WHERE quiz_session_id = ANY(CAST(:ids AS uuid[])) GROUP BY quiz_session_id) AS counted"
    " WHERE session.id = counted.quiz_session_id"
)

_TOLD: Final = text(
    "SELECT CAST(inbox.summary AS text), inbox.viewer, session.id,"
    " ARRAY(SELECT CAST(jsonb_array_elements_text(session.question_ids) AS bigint))"
    " FROM ours.study_quiz_sessions AS session JOIN ours.ingest_inbox AS inbox USING"
    " (client_session_uuid)"
    " WHERE session.client_session_uuid IN (SELECT client_session_uuid FROM"
    " ours.study_quiz_sessions"
    " WHERE id = ANY(CAST(:ids AS uuid[]))) AND session.voided_at IS NULL"
    " AND inbox.summary IS NOT NULL ORDER BY inbox.received_at, inbox.client_session_uuid"
)


async def question(connection: AsyncConnection, question_id: int) -> Question | None:
    """The question, deleted or not. None if there is none."""
    row = (await connection.execute(_QUESTION, {"question_id": question_id})).one_or_none()
    return None if row is None else Question(*row)


async def judged_otherwise(connection: AsyncConnection, question_id: int) -> list[int]:
    """The users with attempts on the question that were judged by another key than it has now."""
    return list(await connection.scalars(_JUDGED_OTHERWISE, {"question_id": question_id}))


async def correct(connection: AsyncConnection, question_id: int, choice: int) -> None:
    """Sets the question's correct choice."""
    await connection.execute(_CORRECT, {"question_id": question_id, "choice": choice})


async def key(connection: AsyncConnection, question_id: int) -> int | None:
    """The question's current correct choice. None if there is no such question."""
    found = await question(connection, question_id)
    return None if found is None else found.correct_choice


async def answers(connection: AsyncConnection, user_id: int, question_id: int) -> list[Answer]:
    """All attempts of a user on a question, including those of voided sessions."""
    rows = await connection.execute(_ANSWERS, {"user_id": user_id, "question_id": question_id})
    return [Answer(row[0], row[1], row[2], row[3], row[4], Outcome(row[5])) for row in rows]


async def rescore(connection: AsyncConnection, choice: int, scored: Sequence[Answer]) -> None:
    """Writes the new outcomes of the attempts, and updates the counts of their sessions.

    What they were is kept with the attempts.
    """
    await connection.execute(
        _RESCORE,
        {
            "choice": choice,
            "ids": [answer.id for answer in scored],
            "rights": [answer.is_correct for answer in scored],
            "outcomes": [answer.outcome for answer in scored],
        },
    )
    await connection.execute(_RECOUNT, {"ids": list({answer.quiz_session_id for answer in scored})})


async def told(connection: AsyncConnection, quiz_session_ids: Sequence[UUID]) -> list[Told]:
    """The results of the batches of these sessions, without voided ones, in order of receipt."""
    rows = await connection.execute(_TOLD, {"ids": list(quiz_session_ids)})
    found: dict[UUID, Told] = {}
    for summary, viewer, quiz_session_id, question_ids in rows:
        result = IngestResult.model_validate_json(summary)
        told = found.setdefault(result.client_session_uuid, Told(result, viewer, {}))
        told.questions[quiz_session_id] = question_ids
    return list(found.values())
