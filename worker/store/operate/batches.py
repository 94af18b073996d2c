"""Batches as an operator looks for them, and all that is stored about one."""

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas import amqp
from worker.domain.records import LATEST

_ALL: Final = frozenset({"ingested", "voided", "erased", "rejected"})


class Wanted(NamedTuple):
    """Which batches are meant: those that fit everything that is given."""

    since: datetime
    user_id: int | None = None
    viewer: str | None = None
    topic_id: int | None = None
    states: Collection[str] = _ALL
    """Any of `ingested`, `voided`, `erased` and `rejected`."""
    until: datetime | None = None
    """The newest moment that is meant; None for now."""


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


class Moment(NamedTuple):
    """What is noted of a batch for a while (see `worker.store.moments`). None is not known.

    `published_at` is by the viewer's clock, in whole seconds. `worker` committed it, in a
    transaction that decided about so many `deliveries` and took so many `milliseconds` up to the
    commit. The broker had its result at `told_at`.
    """

    published_at: datetime | None = None
    app: str | None = None
    worker: str | None = None
    deliveries: int | None = None
    milliseconds: float | None = None
    told_at: datetime | None = None


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


class Job(NamedTuple):
    """A follow-up job that waits in the outbox."""

    kind: str
    since: datetime


# `find` reads no table of the application's, which may be large or slow.
_VOIDED: Final = "SELECT client_session_uuid FROM ours.study_quiz_sessions AS session"
_IS_VOIDED: Final = (
    f"EXISTS ({_VOIDED} WHERE voided_at IS NOT NULL"
    " AND session.client_session_uuid = inbox.client_session_uuid)"
)
_STATE: Final = (
    f"CASE WHEN inbox.erased_at IS NOT NULL THEN 'erased' WHEN {_IS_VOIDED} THEN 'voided'"
    " ELSE 'ingested' END"
)
# Few are voided, so they are looked up by what is voided.
_IN_STATE: Final = {
    "ingested": f"inbox.erased_at IS NULL AND NOT {_IS_VOIDED}",
    "voided": "inbox.erased_at IS NULL AND inbox.client_session_uuid IN"
    f" ({_VOIDED} WHERE voided_at IS NOT NULL)",
    "erased": "inbox.erased_at IS NOT NULL",
}
_KEPT: Final = (
    "SELECT received_at AS at, client_session_uuid, state, viewer, user_id,"
    " coalesce(topic_ids, '{{}}') AS topic_ids, coalesce(answers, 0) AS answers,"
    " coalesce(jsonb_array_length(summary -> 'skipped'), 0) AS skipped, NULL AS reason FROM"
    f" (SELECT found.*, {_STATE.replace('inbox.', 'found.')} AS state FROM"
    " (SELECT inbox.* FROM ours.ingest_inbox AS inbox WHERE {where}"
    " ORDER BY received_at DESC LIMIT :limit) AS found) AS found"
    " LEFT JOIN LATERAL (SELECT array_agg(study_topic_id ORDER BY study_topic_id) AS topic_ids,"
    " sum(cursor) AS answers FROM ours.study_quiz_sessions AS session"
    " WHERE session.client_session_uuid = found.client_session_uuid) AS sessions ON true"
)
_REJECTED: Final = (
    "(SELECT died_at AS at, client_session_uuid, 'rejected', nullif(viewer, ''), NULL,"
    " CAST('{{}}' AS bigint[]), 0, 0, reason FROM ours.ingest_dead_letters WHERE {where}"
    " ORDER BY died_at DESC LIMIT :limit)"
)
_OF_TOPIC: Final = (
    "inbox.client_session_uuid IN (SELECT client_session_uuid FROM ours.study_quiz_sessions"
    " WHERE study_topic_id = :topic_id)"
)
# The planner may not turn it into a join: each batch is looked at until enough are found.
_IS_OF_TOPIC: Final = (
    "EXISTS (SELECT FROM ours.study_quiz_sessions AS session WHERE"
    " session.client_session_uuid = inbox.client_session_uuid AND study_topic_id = :topic_id"
    " OFFSET 0)"
)
_MANY: Final = 5_000
"""Batches of a topic that are too many to be looked up one by one."""
_COUNT: Final = text(
    "SELECT count(*) FROM (SELECT FROM ours.study_quiz_sessions WHERE study_topic_id = :topic_id"
    f" LIMIT {_MANY}) AS counted"
)
# An engine's plans are for finding few rows by their keys.
_PLANS: Final = (text("SET LOCAL enable_seqscan = on"), text("SET LOCAL enable_hashjoin = on"))

_FIRST_PERIOD: Final = timedelta(minutes=1)
_LONGER: Final = 4
_LONGEST: Final = timedelta(days=365)


async def find(connection: AsyncConnection, wanted: Wanted, limit: int) -> list[Batch]:
    """The newest batches that are wanted. Nobody knows the user or the topic of a rejected one."""
    for each in _PLANS:
        await connection.execute(each)
    topic = {"topic_id": wanted.topic_id}
    is_common = wanted.topic_id is None or await connection.scalar(_COUNT, topic) == _MANY
    statement, values = _statement(wanted, is_common=is_common)
    if statement is None:
        return []
    found: list[Batch] = []
    for start, end in _periods(wanted, is_common=is_common):
        period = values | {"since": start, "before": end, "limit": limit - len(found)}
        found += [Batch(*row) for row in await connection.execute(statement, period)]
        if len(found) == limit:
            break
    return found


def _statement(wanted: Wanted, *, is_common: bool) -> tuple[TextClause | None, dict[str, Any]]:
    """What finds the newest of a period, with its parameters besides the period and the limit."""
    kept = ["received_at >= :since", "received_at < :before"]
    died = ["died_at >= :since", "died_at < :before"]
    values: dict[str, Any] = {}
    if wanted.viewer is not None:
        kept.append("viewer = :viewer")
        died.append("viewer = :viewer")
        values["viewer"] = wanted.viewer
    if wanted.user_id is not None:
        kept.append("user_id = :user_id")
        values["user_id"] = wanted.user_id
    if wanted.topic_id is not None:
        kept.append(_IS_OF_TOPIC if is_common else _OF_TOPIC)
        values["topic_id"] = wanted.topic_id
    states = sorted({*wanted.states} & {*_IN_STATE})
    if len(states) < len(_IN_STATE):
        kept.append(f"({' OR '.join(_IN_STATE[state] for state in states)})")
    parts = [_KEPT.format(where=" AND ".join(kept))] if states else []
    if "rejected" in wanted.states and wanted.user_id is None and wanted.topic_id is None:
        parts.append(_REJECTED.format(where=" AND ".join(died)))
    if not parts:
        return None, {}
    union = " UNION ALL ".join(parts)
    return text(f"SELECT * FROM ({union}) AS found ORDER BY at DESC LIMIT :limit"), values


def _periods(wanted: Wanted, *, is_common: bool) -> Iterator[tuple[datetime, datetime]]:
    """The time since then, from now on backwards: ever longer periods, so that what is found in the
    last minutes takes no look at months. All at once where few are found, or an index finds them.
    """
    end, period = LATEST, _FIRST_PERIOD
    if wanted.until is not None:
        end = wanted.until + timedelta(microseconds=1)
    is_rare = "ingested" not in wanted.states or not is_common
    if not (is_rare or wanted.user_id is not None or wanted.viewer is not None):
        now = wanted.until or datetime.now(UTC)
        while period < _LONGEST and (start := now - period) > wanted.since:
            yield start, end
            end, period = start, period * _LONGER
    yield wanted.since, end


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


# The statement names the time of receipt, because rows are found by it.
_MOMENT: Final = text(
    "SELECT noted.published_at[place], noted.apps[place], worker, deliveries, milliseconds,"
    " (SELECT min(told_at) FROM ours.ingest_told WHERE received_at = batch.received_at"
    " AND batch.client_session_uuid = ANY(client_session_uuids))"
    " FROM ours.ingest_inbox AS batch"
    " LEFT JOIN LATERAL (SELECT *, array_position(client_session_uuids,"
    " batch.client_session_uuid) AS place FROM ours.ingest_groups"
    " WHERE received_at = batch.received_at"
    " AND batch.client_session_uuid = ANY(client_session_uuids) LIMIT 1) AS noted ON true"
    " WHERE batch.client_session_uuid = :uuid"
)


# Two batches may want the same job, which has one id: its body says which session caused it.
_JOBS: Final = text(
    "SELECT routing_key, created_at FROM ours.outbox"
    " WHERE message_id = ANY(CAST(:ids AS uuid[]))"
    " AND CAST(body AS jsonb) ->> 'quiz_session_id' = ANY(ARRAY(SELECT CAST(id AS text)"
    " FROM ours.study_quiz_sessions WHERE client_session_uuid = :uuid)) ORDER BY id"
)


async def receipt(connection: AsyncConnection, uuid: UUID) -> Receipt | None:
    """The batch's row in the inbox. None if it was never ingested."""
    row = (await connection.execute(_RECEIPT, {"uuid": uuid})).one_or_none()
    return None if row is None else Receipt(*row)


async def moment(connection: AsyncConnection, uuid: UUID) -> Moment:
    """What is noted of the batch."""
    row = (await connection.execute(_MOMENT, {"uuid": uuid})).one_or_none()
    return Moment() if row is None else Moment(*row)


async def sessions(connection: AsyncConnection, uuid: UUID) -> list[Session]:
    """The batch's quiz sessions, by topic."""
    return [Session(*row) for row in await connection.execute(_SESSIONS, {"uuid": uuid})]


async def attempts(connection: AsyncConnection, uuid: UUID) -> list[Attempt]:
    """The batch's scored attempts, in the order in which they were answered."""
    return [Attempt(*row) for row in await connection.execute(_ATTEMPTS, {"uuid": uuid})]


async def jobs_waiting(
    connection: AsyncConnection, uuid: UUID, message_ids: Collection[UUID]
) -> list[Job]:
    """Those of these follow-up jobs that the batch has caused and that wait in the outbox."""
    values = {"uuid": uuid, "ids": list(message_ids)}
    return [Job(*row) for row in await connection.execute(_JOBS, values)]


async def result_waits_since(connection: AsyncConnection, uuid: UUID) -> datetime | None:
    """Since when a result of the batch waits in the outbox. None if none does."""
    since: datetime | None = await connection.scalar(_UNPUBLISHED, {"uuid": str(uuid)})
    return since
