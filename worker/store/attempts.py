"""Quiz sessions and attempts: the log that everything else can be recomputed from."""

from collections.abc import AsyncIterator, Collection, Sequence
from itertools import chain
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.words import Outcome
from worker.domain.records import SessionRow
from worker.domain.scoring import ScoredAttempt
from worker.store.driver import Write, fetch
from worker.store.literals import as_text, numbers, rows_of, time_of, times, words

_OUTCOMES: Final = {outcome.value: outcome for outcome in Outcome}
_STREAMED_AT_ONCE: Final = 2_000
"""Rows fetched in one round trip of a stream."""
_SOURCE: Final = "viewer"
_STATUS: Final = "finalized"


_SESSIONS: Final = rows_of(
    {
        "id": "CAST(:session_ids AS uuid[])",
        "user_id": "CAST(:session_users AS bigint[])",
        "topic_id": "CAST(:session_topics AS bigint[])",
        "question_ids": "CAST(:asked AS jsonb[])",
        "uuid": "CAST(:session_uuids AS uuid[])",
        "correct": as_text("corrects", "integer"),
        "wrong": as_text("wrongs", "integer"),
        "unsure": as_text("unsures", "integer"),
        "finished_at": as_text("finished", "bigint"),
        "received_at": "CAST(:received AS timestamptz[])",
    }
)
_ATTEMPTS: Final = rows_of(
    {
        "place": as_text("places", "integer"),
        "question_id": as_text("question_ids", "bigint"),
        "position": as_text("positions", "integer"),
        "selected": as_text("selections", "integer"),
        "right_one": as_text("right_ones", "integer"),
        "outcome": as_text("outcomes", "text"),
        "answered_at": as_text("answered", "bigint"),
        "sent_at": as_text("sent", "bigint"),
    }
)

_INSERT_SESSIONS: Final = text(
    "INSERT INTO study_quiz_sessions (id, user_id, study_topic_id, question_ids,"
    " subject_distribution, status, cursor, source, client_session_uuid, correct_count,"
    " wrong_count, unsure_count, finished_at, finalized_at, created_at, updated_at)"
    " SELECT id, user_id, topic_id, question_ids,"
    f" jsonb_build_object(topic_id, correct + wrong + unsure), '{_STATUS}',"
    f" correct + wrong + unsure, '{_SOURCE}', uuid, correct, wrong, unsure,"
    f" {time_of('finished_at')}, received_at, received_at, received_at"
    f" FROM {_SESSIONS} AS session"
)
_INSERT_ATTEMPTS: Final = text(
    "INSERT INTO study_question_attempts (user_id, study_question_id, study_topic_id,"
    " quiz_session_id, position, selected_choice, correct_choice, is_correct, outcome,"
    " answered_at, answered_at_sent)"
    # What an attempt has from its session is sent once: `place` is the session's in the arrays
    # (which are no text, or each attempt would read them again).
    " SELECT (CAST(:session_users AS bigint[]))[place], question_id,"
    " (CAST(:session_topics AS bigint[]))[place], (CAST(:session_ids AS uuid[]))[place],"
    " position, selected, right_one, selected = right_one, outcome,"
    f" {time_of('answered_at')}, {time_of('sent_at')} FROM {_ATTEMPTS} AS attempt"
)

_SCORED: Final = (
    "attempt.answered_at, coalesce(attempt.answered_at_sent, attempt.answered_at),"
    " session.client_session_uuid, attempt.position, attempt.outcome, attempt.is_correct"
)

_HISTORY: Final = text(
    f"SELECT attempt.study_question_id, {_SCORED}"
    " FROM unnest(CAST(:user_ids AS bigint[]), CAST(:question_ids AS bigint[]))"
    " AS wanted (user_id, question_id)"
    " JOIN study_question_attempts AS attempt ON attempt.user_id = wanted.user_id"
    " AND attempt.study_question_id = wanted.question_id"
    " JOIN study_quiz_sessions AS session ON session.id = attempt.quiz_session_id"
    " WHERE session.voided_at IS NULL"
)

_USERS: Final = text(
    "SELECT user_id FROM study_quiz_sessions UNION SELECT user_id FROM study_question_progress"
    " ORDER BY user_id"
)

_LOG: Final = (
    f"SELECT attempt.study_question_id, question.study_topic_id, {_SCORED}"
    " FROM study_question_attempts AS attempt"
    " JOIN study_questions AS question ON question.id = attempt.study_question_id"
    " JOIN study_quiz_sessions AS session ON session.id = attempt.quiz_session_id"
    " WHERE session.user_id = :user_id AND session.voided_at IS NULL"
)
_IN_ORDER: Final = " ORDER BY attempt.study_question_id, attempt.answered_at"
_WHOLE_LOG: Final = text(_LOG + _IN_ORDER)
_LOG_OF_SOME: Final = text(
    f"{_LOG} AND attempt.study_question_id = ANY(CAST(:question_ids AS bigint[])){_IN_ORDER}"
)


def inserting(sessions: Sequence[SessionRow]) -> list[Write]:
    """What adds the sessions and their attempts, for `write`."""
    if not sessions:
        return []
    ids, users, topics, asked, uuids, corrects, wrongs, unsures, finished, received, rows = zip(
        *sessions, strict=True
    )
    scored, question_ids, selections, right_ones, sent = zip(*chain(*rows), strict=True)
    answered, _, _, positions, outcomes, _ = zip(*scored, strict=True)
    answered_as_text = times(answered)
    of_sessions = {
        "session_ids": ids,
        "session_users": users,
        "session_topics": topics,
        "asked": [repr(question_ids) for question_ids in asked],  # a list of numbers is JSON
        "session_uuids": uuids,
        "corrects": numbers(corrects),
        "wrongs": numbers(wrongs),
        "unsures": numbers(unsures),
        "finished": times(finished),
        "received": received,
    }
    of_attempts = {
        "places": numbers([place for place, of_it in enumerate(rows, start=1) for _ in of_it]),
        "question_ids": numbers(question_ids),
        "positions": numbers(positions),
        "selections": numbers(selections),
        "right_ones": numbers(right_ones),
        "outcomes": words(outcomes),
        "answered": answered_as_text,
        # Nearly always the very same: a time is only clamped when a clock is ahead.
        "sent": answered_as_text if sent == answered else times(sent),
    }
    return [Write(_INSERT_SESSIONS, of_sessions), Write(_INSERT_ATTEMPTS, of_attempts)]


async def histories(
    connection: AsyncConnection, wanted: Collection[tuple[int, int]]
) -> dict[int, list[ScoredAttempt]]:
    """All attempts that count, in no order, of each (user_id, question_id); keyed by question.

    Those of voided sessions are on record only.
    """
    rows = await fetch(
        connection,
        _HISTORY,
        {
            "user_ids": [user_id for user_id, _ in wanted],
            "question_ids": [question_id for _, question_id in wanted],
        },
    )
    found: dict[int, list[ScoredAttempt]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(_scored(row[1:]))
    return found


async def users(connection: AsyncConnection) -> list[int]:
    """Everybody who has attempts, voided or not, or progress; in order."""
    return list((await connection.scalars(_USERS)).all())


async def log(
    connection: AsyncConnection, user_id: int, question_ids: Collection[int] | None = None
) -> AsyncIterator[tuple[int, int, list[ScoredAttempt]]]:
    """Streams (question_id, its topic now, attempts in no particular order) of one user.

    Only attempts that count, and only of `question_ids` where those are given.
    """
    question_id: int | None = None
    topic_id = 0
    attempts: list[ScoredAttempt] = []
    statement, wanted = _WHOLE_LOG, dict[str, object](user_id=user_id)
    if question_ids is not None:
        statement, wanted = _LOG_OF_SOME, wanted | {"question_ids": list(question_ids)}
    async with connection.stream(
        statement, wanted, execution_options={"yield_per": _STREAMED_AT_ONCE}
    ) as rows:
        async for part in rows.partitions():  # a part at a time: awaiting each row costs as much
            for row in part:
                if row[0] != question_id:
                    if question_id is not None:
                        yield question_id, topic_id, attempts
                    question_id, topic_id, attempts = row[0], row[1], []
                attempts.append(_scored(row[2:]))
    if question_id is not None:
        yield question_id, topic_id, attempts


def _scored(row: Sequence[Any]) -> ScoredAttempt:
    return ScoredAttempt(row[0], row[1], row[2], row[3], _OUTCOMES[row[4]], row[5])
