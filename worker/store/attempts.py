"""Quiz sessions and attempts: the log from which everything else can be computed again."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.words import Outcome
from worker.domain.records import SessionRow, UserQuestion
from worker.domain.scoring import ScoredAttempt
from worker.store.driver import Write, fetch
from worker.store.literals import as_text, numbers, rows_of, time_of, times, words

_OUTCOMES: Final = {outcome.value: outcome for outcome in Outcome}
_STREAMED_AT_ONCE: Final = 2_000
"""The number of rows that a stream fetches in one round trip."""
_READ_AT_ONCE: Final = 5_000
"""The number of rows that are read before other tasks run."""
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
_SENT_AS: Final[Mapping[str, tuple[str, Callable[[Any], str]]]] = {
    "bigint": ("bigint", numbers),
    "integer": ("integer", numbers),
    "smallint": ("smallint", numbers),
    "text": ("text", words),
    "timestamptz": ("bigint", times),
}
"""How the array of a column is sent as text, by the column's type, and how it is written."""
_FOLDED: Final = {
    "answered_at": "timestamptz",
    "position": "integer",
    "outcome": "text",
}
"""The columns that are folded: those of `AttemptRow.attempt`."""
_BESIDE: Final = {
    "study_question_id": "bigint",
    "selected_choice": "integer",
    "correct_choice": "integer",
    "answered_at_sent": "timestamptz",
    "time_was": "text",
    "utc_offset": "smallint",
    "duration_ms": "integer",
}
"""The columns written beside them, in the order of the other fields of `AttemptRow`. A new field
there is a line here.
"""
_OF_ATTEMPT: Final = _FOLDED | _BESIDE
_ATTEMPTS: Final = rows_of(
    {
        "place": as_text("places", "integer"),
        **{
            name: as_text(f"attempt_{name}", _SENT_AS[kind][0])
            for name, kind in _OF_ATTEMPT.items()
        },
    }
)

_INSERT_SESSIONS: Final = text(
    "INSERT INTO ours.study_quiz_sessions (id, user_id, study_topic_id, question_ids,"
    " subject_distribution, status, cursor, source, client_session_uuid, correct_count,"
    " wrong_count, unsure_count, finished_at, finalized_at, created_at, updated_at)"
    " SELECT id, user_id, topic_id, question_ids,"
    f" jsonb_build_object(topic_id, correct + wrong + unsure), '{_STATUS}',"
    f" correct + wrong + unsure, '{_SOURCE}', uuid, correct, wrong, unsure,"
    f" {time_of('finished_at')}, received_at, received_at, received_at"
    f" FROM {_SESSIONS} AS session"
)
_INSERT_ATTEMPTS: Final = text(
    "INSERT INTO ours.study_question_attempts (user_id, study_topic_id, quiz_session_id,"
    " is_correct,"
    f" {', '.join(_OF_ATTEMPT)})"
    # Values that attempts share with their session are sent once: `place` is the session's place in
    # the arrays. (These are not sent as text, because each attempt would parse them again.)
    " SELECT (CAST(:session_users AS bigint[]))[place],"
    " (CAST(:session_topics AS bigint[]))[place], (CAST(:session_ids AS uuid[]))[place],"
    " selected_choice = correct_choice, "
    + ", ".join(
        time_of(name) if kind == "timestamptz" else name for name, kind in _OF_ATTEMPT.items()
    )
    + f" FROM {_ATTEMPTS} AS attempt"
)

# The time as sent only where it differs: most are equal, and reading a time takes a while.
_SCORED: Final = (
    "attempt.answered_at, nullif(attempt.answered_at_sent, attempt.answered_at),"
    " session.client_session_uuid, attempt.position, attempt.outcome, attempt.is_correct"
)

_HISTORY: Final = text(
    "SELECT attempt.user_id, attempt.study_question_id, attempt.quiz_session_id,"
    " attempt.answered_at, nullif(attempt.answered_at_sent, attempt.answered_at),"
    " attempt.position, attempt.outcome, attempt.is_correct"
    " FROM unnest(CAST(:user_ids AS bigint[]), CAST(:question_ids AS bigint[]))"
    " AS wanted (user_id, question_id)"
    " JOIN ours.study_question_attempts AS attempt ON attempt.user_id = wanted.user_id"
    " AND attempt.study_question_id = wanted.question_id"
)
# By itself, because a session has many attempts, and would be looked up for each of them.
_UUIDS: Final = text(
    "SELECT id, client_session_uuid FROM ours.study_quiz_sessions"
    " WHERE id = ANY(CAST(:session_ids AS uuid[])) AND voided_at IS NULL"
)

_LOG: Final = (
    "SELECT attempt.study_question_id,"
    f" coalesce(question.study_topic_id, attempt.study_topic_id), {_SCORED}"
    " FROM ours.study_question_attempts AS attempt"
    " LEFT JOIN ours.study_questions AS question ON question.id = attempt.study_question_id"
    " JOIN ours.study_quiz_sessions AS session ON session.id = attempt.quiz_session_id"
    " WHERE session.user_id = :user_id AND session.voided_at IS NULL"
)
_IN_ORDER: Final = " ORDER BY attempt.study_question_id, attempt.answered_at"
_WHOLE_LOG: Final = text(_LOG + _IN_ORDER)
_LOG_OF_SOME: Final = text(
    f"{_LOG} AND attempt.study_question_id = ANY(CAST(:question_ids AS bigint[])){_IN_ORDER}"
)


def inserting(sessions: Sequence[SessionRow]) -> list[Write]:
    """The writes that add the sessions and their attempts, for `write`."""
    if not sessions:
        return []
    ids, users, topics, asked, uuids, corrects, wrongs, unsures, finished, received, rows = zip(
        *sessions, strict=True
    )
    scored, *beside = zip(*chain(*rows), strict=True)
    answered, _, _, positions, outcomes, _ = zip(*scored, strict=True)
    of_sessions = {
        "session_ids": ids,
        "session_users": users,
        "session_topics": topics,
        "asked": [repr(question_ids) for question_ids in asked],  # a list of numbers is valid JSON
        "session_uuids": uuids,
        "corrects": numbers(corrects),
        "wrongs": numbers(wrongs),
        "unsures": numbers(unsures),
        "finished": times(finished),
        "received": received,
    }
    columns = dict(zip(_OF_ATTEMPT, (answered, positions, outcomes, *beside), strict=True))
    of_attempts = {
        f"attempt_{name}": _SENT_AS[kind][1](columns[name])
        for name, kind in _OF_ATTEMPT.items()
        # Almost always the same object, because a time is replaced only if a clock is wrong.
        if name != "answered_at_sent" or columns[name] != answered
    }
    of_attempts.setdefault("attempt_answered_at_sent", of_attempts["attempt_answered_at"])
    of_attempts["places"] = numbers(
        [place for place, of_it in enumerate(rows, start=1) for _ in of_it]
    )
    return [Write(_INSERT_SESSIONS, of_sessions), Write(_INSERT_ATTEMPTS, of_attempts)]


async def histories(
    connection: AsyncConnection, wanted: Collection[UserQuestion]
) -> dict[UserQuestion, list[ScoredAttempt]]:
    """All attempts that count, in no order, of each (user_id, question_id).

    Attempts of voided sessions do not count.
    """
    rows = await fetch(
        connection,
        _HISTORY,
        {
            "user_ids": [user_id for user_id, _ in wanted],
            "question_ids": [question_id for _, question_id in wanted],
        },
    )
    session_ids = list({row[2] for row in rows})
    sessions = await fetch(connection, _UUIDS, {"session_ids": session_ids})
    uuids: dict[UUID, UUID] = {row[0]: row[1] for row in sessions}
    found: dict[UserQuestion, list[ScoredAttempt]] = {each: [] for each in wanted}
    for start in range(0, len(rows), _READ_AT_ONCE):
        if start:
            await asyncio.sleep(0)  # other tasks must run too, and there may be many rows
        for row in rows[start : start + _READ_AT_ONCE]:
            user_id, question_id, session_id, at, sent_at, position, outcome, is_correct = row
            if (uuid := uuids.get(session_id)) is not None:
                # By position, because this runs for each attempt.
                scored = (at, sent_at or at, uuid, position, _OUTCOMES[outcome], is_correct)
                found[user_id, question_id].append(ScoredAttempt._make(scored))
    return found


async def log(
    connection: AsyncConnection, user_id: int, question_ids: Collection[int] | None = None
) -> AsyncIterator[tuple[int, int, list[ScoredAttempt]]]:
    """Streams (question_id, the question's current topic, attempts in no particular order) of one
    user. If the question is gone, the topic is that of the latest attempt.

    It includes only attempts that count, and only those on `question_ids` if they are given.
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
        async for part in (
            rows.partitions()
        ):  # fetched in parts, because awaiting each row costs as much as the row itself
            for row in part:
                if row[0] != question_id:
                    if question_id is not None:
                        yield question_id, topic_id, attempts
                    question_id, attempts = row[0], []
                topic_id = row[1]
                attempts.append(_scored(row[2:]))
    if question_id is not None:
        yield question_id, topic_id, attempts


def _scored(row: Sequence[Any]) -> ScoredAttempt:
    return ScoredAttempt(row[0], row[1] or row[0], row[2], row[3], _OUTCOMES[row[4]], row[5])
