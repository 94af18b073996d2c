"""Attempts that were stored before the rule about times, and the times that it gives them."""

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.words import TimeWas
from worker.store.operate.replaced import KEPT


class Timed(NamedTuple):
    """A stored attempt, as far as its time goes."""

    id: int
    answered_at_sent: datetime | None
    time_was: TimeWas | None


class TimedSession(NamedTuple):
    """A batch's attempts, in the order of the answers."""

    client_session_uuid: UUID
    received_at: datetime
    attempts: Sequence[Timed]


class Retimed(NamedTuple):
    """An attempt with its new effective time, and why that is not the time as sent."""

    id: int
    answered_at: datetime
    time_was: TimeWas


_UNJUDGED: Final = (
    "attempt.time_was IS NULL AND (attempt.answered_at_sent IS NULL"
    " OR attempt.answered_at_sent <> attempt.answered_at OR attempt.answered_at_sent < :earliest)"
)

# Materialized: after an import the statistics may not know the user, and a plan for a user with one
# session would search all sessions again for each session.
_SESSIONS: Final = text(
    "WITH batch AS MATERIALIZED (SELECT DISTINCT one.client_session_uuid AS uuid"
    " FROM ours.study_quiz_sessions AS one"
    " JOIN ours.study_question_attempts AS attempt ON attempt.quiz_session_id = one.id"
    f" WHERE one.user_id = :user_id AND {_UNJUDGED})"
    " SELECT session.client_session_uuid, session.finalized_at, attempt.id,"
    " attempt.answered_at_sent, attempt.time_was"
    " FROM batch JOIN ours.study_quiz_sessions AS session ON session.client_session_uuid = uuid"
    " JOIN ours.study_question_attempts AS attempt ON attempt.quiz_session_id = session.id"
    " ORDER BY session.client_session_uuid, attempt.position"
)

_RETIME: Final = text(
    "UPDATE ours.study_question_attempts AS attempt"
    f" SET answered_at = retimed.answered_at, time_was = retimed.time_was, {KEPT}"
    " FROM unnest(CAST(:ids AS bigint[]), CAST(:times AS timestamptz[]), CAST(:reasons AS text[]))"
    " AS retimed (id, answered_at, time_was), ours.study_quiz_sessions AS session"
    " WHERE attempt.id = retimed.id AND session.id = attempt.quiz_session_id"
)

_FINISHED: Final = text(
    "UPDATE ours.study_quiz_sessions AS session SET finished_at = finished.at, updated_at = now()"
    " FROM (SELECT quiz_session_id, max(answered_at) AS at FROM ours.study_question_attempts"
    " WHERE quiz_session_id IN (SELECT quiz_session_id FROM ours.study_question_attempts"
    " WHERE id = ANY(CAST(:ids AS bigint[]))) GROUP BY quiz_session_id) AS finished"
    " WHERE session.id = finished.quiz_session_id AND session.finished_at <> finished.at"
)

_COUNT: Final = text(
    "SELECT count(*) FROM"
    f" (SELECT FROM ours.study_question_attempts AS attempt WHERE {_UNJUDGED} LIMIT :most) AS"
    f" counted"
)


async def unjudged(
    connection: AsyncConnection, user_id: int, earliest: datetime
) -> list[TimedSession]:
    """The user's batches, voided ones too, with an attempt whose time nobody has judged."""
    rows = await connection.execute(_SESSIONS, {"user_id": user_id, "earliest": earliest})
    return [
        TimedSession(
            uuid,
            received_at,
            [Timed(row[2], row[3], None if row[4] is None else TimeWas(row[4])) for row in some],
        )
        for (uuid, received_at), some in groupby(rows, key=lambda row: (row[0], row[1]))
    ]


async def retime(connection: AsyncConnection, retimed: Sequence[Retimed]) -> None:
    """Writes the attempts' new times, and when their sessions were finished by these.

    What the attempts were is kept with them.
    """
    ids = [each.id for each in retimed]
    times = [each.answered_at for each in retimed]
    reasons = [each.time_was for each in retimed]
    await connection.execute(_RETIME, {"ids": ids, "times": times, "reasons": reasons})
    await connection.execute(_FINISHED, {"ids": ids})


async def count_unjudged(connection: AsyncConnection, earliest: datetime, most: int) -> int:
    """How many attempts of all users `rebuild` would look at; at most `most`. Reads all of them
    where there are fewer.
    """
    found = await connection.scalar(_COUNT, {"earliest": earliest, "most": most})
    return int(found or 0)
