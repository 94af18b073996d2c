"""Batches as an operator looks for them, and all that is stored about one."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas import amqp

_ALL: Final = frozenset({"ingested", "voided", "erased", "rejected"})


class Wanted(NamedTuple):
    """Which batches are meant: those that fit everything that is given."""

    since: datetime
    user_id: int | None = None
    viewer: str | None = None
    topic_id: int | None = None
    states: Collection[str] = _ALL
    """Any of `ingested`, `voided`, `erased` and `rejected`."""


class Batch(NamedTuple):
    """A batch at a glance. `at` is when it was ingested or rejected.

    `answers` counts those that were scored. `reason` is why it was rejected.
    """

    at: datetime
    client_session_uuid: UUID | None
    state: str
    viewer: str | None
    user_id: int | None
    topic_ids: list[int]
    answers: int
    skipped: int
    reason: str | None


class Receipt(NamedTuple):
    """The row of the inbox; `summary` is the result as it is told, as an object."""

    received_at: datetime
    viewer: str | None
    user_id: int | None
    erased_at: datetime | None
    summary: dict[str, Any] | None


class Session(NamedTuple):
    """The part of the batch that belongs to one topic."""

    quiz_session_id: UUID
    topic_id: int
    correct: int
    wrong: int
    unsure: int
    voided_at: datetime | None


class Attempt(NamedTuple):
    """A scored attempt. `times_corrected` counts what corrections have replaced."""

    position: int
    topic_id: int
    question_id: int
    pub_ids: list[str]
    selected_choice: int | None
    correct_choice: int
    outcome: str
    answered_at: datetime
    answered_at_sent: datetime | None
    time_was: str | None
    duration_ms: int | None
    times_corrected: int


# `find` reads no table of the application's, which may be large or slow.
_STATE: Final = (
    "CASE WHEN inbox.erased_at IS NOT NULL THEN 'erased' WHEN EXISTS (SELECT FROM"
    " ours.study_quiz_sessions AS session WHERE voided_at IS NOT NULL"
    " AND session.client_session_uuid = inbox.client_session_uuid) THEN 'voided'"
    " ELSE 'ingested' END"
)
_KEPT: Final = (
    "SELECT received_at AS at, client_session_uuid, state, viewer, user_id,"
    " coalesce(topic_ids, '{{}}') AS topic_ids, coalesce(answers, 0) AS answers,"
    " coalesce(jsonb_array_length(summary -> 'skipped'), 0) AS skipped, NULL AS reason FROM"
    f" (SELECT inbox.*, {_STATE} AS state FROM ours.ingest_inbox AS inbox WHERE {{where}}"
    " ORDER BY received_at DESC LIMIT :limit) AS found"
    " LEFT JOIN LATERAL (SELECT array_agg(study_topic_id ORDER BY study_topic_id) AS topic_ids,"
    " sum(cursor) AS answers FROM ours.study_quiz_sessions AS session"
    " WHERE session.client_session_uuid = found.client_session_uuid) AS sessions ON true"
)
_REJECTED: Final = (
    "(SELECT died_at AS at, client_session_uuid, 'rejected', nullif(viewer, ''), NULL,"
    " CAST('{{}}' AS bigint[]), 0, 0, reason FROM ours.ingest_dead_letters WHERE {where}"
    " ORDER BY died_at DESC LIMIT :limit)"
)
_TOPIC: Final = (
    "EXISTS (SELECT FROM ours.study_quiz_sessions AS session WHERE"
    " session.client_session_uuid = inbox.client_session_uuid AND study_topic_id = :topic_id)"
)
# An engine's plans are for finding few rows by their keys.
_READ_ALL: Final = text("SET LOCAL enable_seqscan = on")


async def find(connection: AsyncConnection, wanted: Wanted, limit: int) -> list[Batch]:
    """The newest batches that are wanted. Nobody knows the user or the topic of a rejected one."""
    kept, died = ["received_at >= :since"], ["died_at >= :since"]
    values: dict[str, Any] = {"since": wanted.since, "limit": limit}
    if wanted.viewer is not None:
        kept.append("viewer = :viewer")
        died.append("viewer = :viewer")
        values["viewer"] = wanted.viewer
    if wanted.user_id is not None:
        kept.append("user_id = :user_id")
        values["user_id"] = wanted.user_id
    if wanted.topic_id is not None:
        kept.append(_TOPIC)
        values["topic_id"] = wanted.topic_id
    states = sorted({*wanted.states} - {"rejected"})
    if len(states) < 3:
        kept.append(f"{_STATE} = ANY(CAST(:states AS text[]))")
        values["states"] = states
    parts = [_KEPT.format(where=" AND ".join(kept))] if states else []
    if "rejected" in wanted.states and wanted.user_id is None and wanted.topic_id is None:
        parts.append(_REJECTED.format(where=" AND ".join(died)))
    if not parts:
        return []
    await connection.execute(_READ_ALL)
    found = await connection.execute(
        text(f"SELECT * FROM ({' UNION ALL '.join(parts)}) AS found ORDER BY at DESC LIMIT :limit"),
        values,
    )
    return [Batch(*row) for row in found]


_RECEIPT: Final = text(
    "SELECT received_at, viewer, user_id, erased_at, summary FROM ours.ingest_inbox"
    " WHERE client_session_uuid = :uuid"
)
_SESSIONS: Final = text(
    "SELECT id, study_topic_id, correct_count, wrong_count, unsure_count, voided_at"
    " FROM ours.study_quiz_sessions WHERE client_session_uuid = :uuid ORDER BY study_topic_id"
)
_ATTEMPTS: Final = text(
    "SELECT attempt.position, attempt.study_topic_id, attempt.study_question_id,"
    " ARRAY(SELECT pub_id FROM ours.published WHERE kind = 'question' AND NOT deleted"
    " AND source_id = attempt.study_question_id ORDER BY pub_id),"
    " attempt.selected_choice, attempt.correct_choice, attempt.outcome, attempt.answered_at,"
    " attempt.answered_at_sent, attempt.time_was, attempt.duration_ms,"
    " coalesce(jsonb_array_length(attempt.replaced), 0)"
    " FROM ours.study_question_attempts AS attempt JOIN ours.study_quiz_sessions AS session"
    " ON session.id = attempt.quiz_session_id WHERE session.client_session_uuid = :uuid"
    " ORDER BY attempt.position"
)
_UNPUBLISHED: Final = text(
    f"SELECT min(created_at) FROM ours.outbox WHERE exchange = '{amqp.RESULTS_EXCHANGE}'"
    f" AND headers ->> '{amqp.CLIENT_SESSION_UUID_HEADER}' = :uuid"
)


async def receipt(connection: AsyncConnection, uuid: UUID) -> Receipt | None:
    """The batch's row in the inbox. None if it was never ingested."""
    row = (await connection.execute(_RECEIPT, {"uuid": uuid})).one_or_none()
    return None if row is None else Receipt(*row)


async def sessions(connection: AsyncConnection, uuid: UUID) -> list[Session]:
    """The batch's quiz sessions, by topic."""
    return [Session(*row) for row in await connection.execute(_SESSIONS, {"uuid": uuid})]


async def attempts(connection: AsyncConnection, uuid: UUID) -> list[Attempt]:
    """The batch's scored attempts, in the order in which they were answered."""
    return [Attempt(*row) for row in await connection.execute(_ATTEMPTS, {"uuid": uuid})]


async def result_waits_since(connection: AsyncConnection, uuid: UUID) -> datetime | None:
    """Since when a result of the batch waits in the outbox. None if none does."""
    since: datetime | None = await connection.scalar(_UNPUBLISHED, {"uuid": str(uuid)})
    return since
