"""What a good engineer writes in a day: asyncpg, set-based, one message per transaction.

It prepares each statement once, reads a message's questions together, and writes its rows of each
table together. Like the usual handler it shares the worker's pure steps, and leaves the same rows.
"""

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any, Final

import aio_pika
import asyncpg
from aio_pika.abc import AbstractIncomingMessage

from bench.peers.setup import CONCURRENCY, VIEWER
from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from schemas.words import Outcome
from worker.domain.fold import Progress
from worker.domain.history import History
from worker.domain.policy import Policy
from worker.domain.records import Mark, SessionRow, Standing, Stored, UserQuestion
from worker.domain.schedule import Memory
from worker.domain.scoring import ScoredAttempt
from worker.ingest.finalize import finalize, score
from worker.ingest.resolve import Incoming, Plan

_POLICY: Final = Policy(default_deny=False)

_QUESTIONS: Final = (
    "SELECT pub_id, id, user_id, study_topic_id, correct_choice FROM published"
    " JOIN study_questions ON id = source_id"
    " WHERE kind = 'question' AND NOT deleted AND deleted_at IS NULL AND pub_id = ANY($1)"
)
_GRANTS: Final = "SELECT user_id FROM viewer_grants WHERE viewer = $1"
_LOCK: Final = "SELECT pg_advisory_xact_lock($1)"
_KNOWN: Final = "SELECT now(), EXISTS (SELECT FROM ingest_inbox WHERE client_session_uuid = $1)"
_FOLD: Final = (
    "attempts_count, correct_count, wrong_count, unsure_count, correct_run, best_run, spaced_run,"
    " recent_unsure, lapse_count, first_correct_at, last_outcome, last_answered_at, stability,"
    " difficulty, due_at"
)
_PROGRESS: Final = (
    f"SELECT study_question_id, explanation_requested, scheduler, {_FOLD}"
    " FROM study_question_progress WHERE user_id = $1 AND study_question_id = ANY($2)"
)
_HISTORIES: Final = (
    "SELECT study_question_id, answered_at, coalesce(answered_at_sent, answered_at),"
    " client_session_uuid, position, outcome, is_correct FROM study_question_attempts AS attempt"
    " JOIN study_quiz_sessions AS session ON session.id = quiz_session_id"
    " WHERE attempt.user_id = $1 AND study_question_id = ANY($2)"
)
_ADD_RECEIPT: Final = (
    "INSERT INTO ingest_inbox (client_session_uuid, content_digest, user_id, viewer, summary)"
    " VALUES ($1, $2, $3, $4, $5)"
)
_ADD_SESSIONS: Final = (
    "INSERT INTO study_quiz_sessions (id, user_id, study_topic_id, question_ids,"
    " subject_distribution, status, cursor, source, client_session_uuid, correct_count,"
    " wrong_count, unsure_count, finished_at, finalized_at) SELECT id, $1, topic, questions::jsonb,"
    " jsonb_build_object(topic, total), 'finalized', total, 'viewer', $2, correct, wrong, unsure,"
    " finished, $3 FROM unnest($4::uuid[], $5::bigint[], $6::text[], $7::int[], $8::int[],"
    " $9::int[], $10::int[], $11::timestamptz[])"
    " AS row (id, topic, questions, total, correct, wrong, unsure, finished)"
)
_ADD_ATTEMPTS: Final = (
    "INSERT INTO study_question_attempts (user_id, study_topic_id, quiz_session_id,"
    " study_question_id, position, selected_choice, correct_choice, is_correct, outcome,"
    " answered_at, answered_at_sent, time_was, utc_offset) SELECT $1, row.* FROM unnest("
    "$2::bigint[], $3::uuid[], $4::bigint[], $5::int[], $6::int[], $7::int[], $8::bool[],"
    " $9::text[], $10::timestamptz[], $11::timestamptz[], $12::text[], $13::smallint[]) AS row"
)
_SAVE_PROGRESS: Final = (
    "INSERT INTO study_question_progress (user_id, study_question_id, study_topic_id, pattern,"
    f" explanation_requested, scheduler, {_FOLD}) SELECT $1, row.* FROM unnest($2::bigint[],"
    " $3::bigint[], $4::text[], $5::bool[], $6::text[], $7::int[], $8::int[], $9::int[],"
    " $10::int[], $11::int[], $12::int[], $13::int[], $14::int[], $15::int[], $16::timestamptz[],"
    " $17::text[], $18::timestamptz[], $19::float8[], $20::float8[], $21::timestamptz[]) AS row"
    " ON CONFLICT (user_id, study_question_id) DO UPDATE SET "
    + ", ".join(
        f"{name} = excluded.{name}"
        for name in ("study_topic_id", "pattern", "explanation_requested", "scheduler")
    )
    + "".join(f", {name} = excluded.{name}" for name in _FOLD.split(", "))
)
_ADD_MESSAGES: Final = (
    "INSERT INTO outbox (message_id, exchange, routing_key, type, headers, body)"
    " SELECT id, exchange, key, type, headers::jsonb, body FROM unnest($1::uuid[], $2::text[],"
    " $3::text[], $4::text[], $5::text[], $6::text[])"
    " AS row (id, exchange, key, type, headers, body)"
)


async def handle(connection: asyncpg.Connection, body: bytes) -> None:
    """Ingests one message and commits."""
    batch = AttemptBatch.model_validate_json(body)
    uuid = batch.client_session_uuid
    async with connection.transaction():
        pub_ids = [attempt.question_pub_id for attempt in batch.attempts]
        questions = {row[0]: row for row in await connection.fetch(_QUESTIONS, pub_ids)}
        (user_id,) = {row[2] for row in questions.values()}
        granted = [row[0] for row in await connection.fetch(_GRANTS, VIEWER)]
        assert user_id in (granted or [user_id])
        await connection.fetch(_LOCK, user_id)
        received_at, is_known = await connection.fetchrow(_KNOWN, uuid)
        if is_known:
            return
        standing = await _standing(connection, user_id, [*questions.values()])
        answered = tuple(
            (position, attempt, standing[user_id, questions[attempt.question_pub_id][1]])
            for position, attempt in enumerate(batch.attempts)
        )
        plan = Plan(Incoming(VIEWER, batch, uuid), batch, user_id, answered, (), None)
        scored = score(plan, received_at, _POLICY)
        stored = await _histories(connection, user_id, [*scored.late]) if scored.late else {}
        histories = {each: History(None, log) for each, log in stored.items()}
        done = finalize([scored], standing, histories, _POLICY, Mark("", 1))
        await connection.execute(
            _ADD_RECEIPT, uuid, batch.digest(), user_id, VIEWER, done.told[uuid]
        )
        await _add_sessions(connection, user_id, done.sessions)
        await _save_progress(connection, user_id, done.progress)
        messages = [
            (*message[:4], json.dumps(message.headers), message.body)
            for message in done.messages[uuid]
        ]
        await connection.execute(_ADD_MESSAGES, *zip(*messages, strict=True))


async def _standing(
    connection: asyncpg.Connection, user_id: int, questions: Sequence[Sequence[Any]]
) -> dict[tuple[int | None, int], Standing]:
    ids = [row[1] for row in questions]
    found = {row[0]: row for row in await connection.fetch(_PROGRESS, user_id, ids)}
    standing: dict[tuple[int | None, int], Standing] = {}
    for _, question_id, owner, topic_id, right in questions:
        progress, requested, scheduler = None, False, None
        if row := found.get(question_id):
            _, requested, scheduler, *fold = row
            progress = Progress._make((*fold[:10], Outcome(fold[10]), fold[11], Memory(*fold[12:])))
        standing[user_id, question_id] = Standing(
            question_id, owner, topic_id, right, progress, requested, scheduler
        )
    return standing


async def _histories(
    connection: asyncpg.Connection, user_id: int, question_ids: list[int]
) -> dict[UserQuestion, list[ScoredAttempt]]:
    found: dict[UserQuestion, list[ScoredAttempt]] = {(user_id, each): [] for each in question_ids}
    for row in await connection.fetch(_HISTORIES, user_id, question_ids):
        question_id, at, ordered_at, uuid, position, outcome, is_correct = row
        found[user_id, question_id].append(
            ScoredAttempt(at, ordered_at, uuid, position, Outcome(outcome), is_correct)
        )
    return found


async def _add_sessions(
    connection: asyncpg.Connection, user_id: int, sessions: Sequence[SessionRow]
) -> None:
    rows = [
        (
            each.id,
            each.topic_id,
            json.dumps(each.question_ids),
            len(each.attempts),
            each.correct_count,
            each.wrong_count,
            each.unsure_count,
            each.finished_at,
        )
        for each in sessions
    ]
    first = sessions[0]
    await connection.execute(
        _ADD_SESSIONS,
        user_id,
        first.client_session_uuid,
        first.received_at,
        *zip(*rows, strict=True),
    )
    attempts = [
        (
            session.topic_id,
            session.id,
            each.question_id,
            each.attempt.position,
            each.selected_choice,
            each.correct_choice,
            each.attempt.is_correct,
            each.attempt.outcome.value,
            each.attempt.answered_at,
            each.answered_at_sent,
            each.time_was,
            each.utc_offset,
        )
        for session in sessions
        for each in session.attempts
    ]
    await connection.execute(_ADD_ATTEMPTS, user_id, *zip(*attempts, strict=True))


async def _save_progress(
    connection: asyncpg.Connection, user_id: int, rows: Sequence[Stored]
) -> None:
    saved = [
        (
            each.question_id,
            each.topic_id,
            each.pattern.value,
            each.explanation_requested,
            each.scheduler,
            *each.progress[:10],
            each.progress.last_outcome.value,
            each.progress.last_answered_at,
            *each.progress.memory,
        )
        for each in rows
    ]
    await connection.execute(_SAVE_PROGRESS, user_id, *zip(*saved, strict=True))


async def main() -> None:
    """Consumes until it is terminated."""
    url = os.environ["INGEST_DATABASE_URL"]
    connection = await aio_pika.connect_robust(os.environ["INGEST_AMQP_URL"])
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=CONCURRENCY)
    queue = await channel.get_queue(amqp.ATTEMPTS_QUEUE)
    async with asyncpg.create_pool(url, min_size=CONCURRENCY, max_size=CONCURRENCY) as pool:

        async def consume(message: AbstractIncomingMessage) -> None:
            async with message.process(requeue=True), pool.acquire() as database:
                await handle(database, message.body)

        await queue.consume(consume)
        await asyncio.Future()


if __name__ == "__main__":
    asyncio.run(main())
