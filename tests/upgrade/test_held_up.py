"""A migration holds up ingest for a second at most, however many attempts there are."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from random import randrange
from typing import Final
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from worker.settings import Settings
from worker.store import schema
from worker.store.engine import make_engine

pytestmark = pytest.mark.slow

_ATTEMPTS: Final = int(os.environ.get("TEST_ATTEMPTS", "5000000"))
_USERS: Final = 500
_QUESTIONS: Final = 200
"""For each user; the users' questions are numbered one after another."""
_WORKERS: Final = 4
_FROM: Final = "0007"
"""The schema of version 0.1.0."""

_FILL: Final = (
    f"INSERT INTO study_topics (id, user_id) SELECT n, n FROM generate_series(1, {_USERS}) AS n",
    "INSERT INTO study_questions (id, user_id, study_topic_id, correct_choice)"
    f" SELECT n, 1 + (n - 1) / {_QUESTIONS}, 1 + (n - 1) / {_QUESTIONS}, 1"
    f" FROM generate_series(1, {_USERS * _QUESTIONS}) AS n",
    "INSERT INTO published (pub_id, kind, source_id)"
    " SELECT 'pub-' || id, 'question', id FROM study_questions",
    "INSERT INTO study_question_progress (user_id, study_question_id, study_topic_id,"
    " attempts_count, correct_count, wrong_count, unsure_count, correct_run, best_run, spaced_run,"
    " recent_unsure, lapse_count, first_correct_at, last_outcome, last_answered_at, pattern,"
    " stability, difficulty, due_at, scheduler)"
    " SELECT user_id, id, study_topic_id, 1, 1, 0, 0, 1, 1, 0, 0, 0, now(), 'correct', now(),"
    " 'known', 2.5, 5, now(), 'x' FROM study_questions",
    "INSERT INTO study_quiz_sessions (id, user_id, study_topic_id, question_ids,"
    " subject_distribution, status, cursor, source, client_session_uuid, correct_count,"
    " wrong_count, unsure_count, finished_at, finalized_at)"
    f" SELECT md5('session' || n)::uuid, 1 + n % {_USERS}, 1 + n % {_USERS}, '[]', '{{}}',"
    " 'finalized', 20, 'viewer', md5('batch' || n)::uuid, 20, 0, 0, '2023-01-01', '2023-01-01'"
    f" FROM generate_series(0, {_ATTEMPTS} / 20 - 1) AS n",
    "INSERT INTO ingest_inbox (client_session_uuid, content_digest, user_id, summary)"
    " SELECT client_session_uuid, sha256('x'), user_id, '{}' FROM study_quiz_sessions",
    # The references are what each row says: to check them takes longer than to write them.
    "SET LOCAL session_replication_role = replica",
    "INSERT INTO study_question_attempts (user_id, study_question_id, study_topic_id,"
    " quiz_session_id, position, selected_choice, correct_choice, is_correct, outcome, answered_at)"
    f" SELECT 1 + n % {_USERS}, 1 + (n % {_USERS}) * {_QUESTIONS} + (n + place * 7) % {_QUESTIONS},"
    f" 1 + n % {_USERS}, md5('session' || n)::uuid, place, 1, 1, true, 'correct',"
    " timestamptz '2023-01-01' + place * interval '1 second'"
    f" FROM generate_series(0, {_ATTEMPTS} / 20 - 1) AS n, generate_series(0, 19) AS place",
)


@pytest.fixture
async def engine(empty_database_url: str) -> AsyncIterator[AsyncEngine]:
    given = Settings(
        database_url=empty_database_url,  # type: ignore[arg-type]
        amqp_url="amqp://unused",  # type: ignore[arg-type]
        statement_timeout=3_600,
        transaction_timeout=3_600,
    )
    engine = make_engine(given, connections=3, name="tests")
    yield engine
    await engine.dispose()


_INGEST: Final = (
    # What a worker of any version does, in its order.
    "SELECT question.correct_choice FROM study_questions AS question"
    " LEFT JOIN study_question_progress AS progress ON progress.user_id = question.user_id"
    " AND progress.study_question_id = question.id WHERE question.id = $1",
    "INSERT INTO ingest_inbox (client_session_uuid, content_digest, user_id)"
    " SELECT $2::uuid, sha256('x'), 1 WHERE $1::bigint > 0",
    "INSERT INTO study_quiz_sessions (id, user_id, study_topic_id, question_ids,"
    " subject_distribution, status, cursor, source, client_session_uuid, correct_count,"
    " wrong_count, unsure_count, finished_at, finalized_at)"
    " SELECT $2::uuid, 1, 1, '[]', '{}', 'finalized', 1, 'viewer', $2::uuid, 1, 0, 0, now(), now()"
    " WHERE $1::bigint > 0",
    "INSERT INTO study_question_attempts (user_id, study_question_id, study_topic_id,"
    " quiz_session_id, position, selected_choice, correct_choice, is_correct, outcome, answered_at)"
    " SELECT 1, $1::bigint, 1, $2::uuid, 0, 1, 1, true, 'correct', now()",
    "UPDATE study_question_progress SET due_at = now() WHERE study_question_id = $1"
    " AND user_id = 1 AND $2::uuid IS NOT NULL",
    "INSERT INTO outbox (message_id, exchange, routing_key, type, headers, body)"
    " SELECT $2::uuid, 'x', 'x', 'x', '{}', 'x' WHERE $1::bigint > 0",
)


async def _ingest(url: str, over: asyncio.Event, waits: list[float]) -> None:
    """Ingests one attempt after another, and notes how long each took."""
    connection = await asyncpg.connect(url)
    try:
        while not over.is_set():
            started = time.perf_counter()
            async with connection.transaction():
                values = randrange(1, _QUESTIONS), uuid4()
                await connection.fetch(_INGEST[0], values[0])
                for statement in _INGEST[1:]:
                    await connection.fetch(statement, *values)
            waits.append(time.perf_counter() - started)
    finally:
        await connection.close()


async def test_migrations_hold_up_ingest_for_a_second_at_most(
    engine: AsyncEngine, empty_database_url: str
) -> None:
    await schema.migrate(engine, _FROM)
    async with engine.begin() as connection:
        for statement in _FILL:
            await connection.exec_driver_sql(statement)
    async with engine.connect() as plain:
        alone = await plain.execution_options(isolation_level="AUTOCOMMIT")
        await alone.exec_driver_sql("VACUUM ANALYZE")
    held_up: dict[str, float] = {}
    for version in schema.versions(since=_FROM):
        over, waits = asyncio.Event(), list[float]()
        async with asyncio.TaskGroup() as group:
            for _ in range(_WORKERS):
                group.create_task(_ingest(empty_database_url, over, waits))
            await asyncio.sleep(1)
            before = len(waits)
            started = time.perf_counter()
            await schema.migrate(engine, version)
            took = time.perf_counter() - started
            await asyncio.sleep(0.2)
            over.set()
        held_up[version] = max(waits)
        print(
            f"{version}: the migration took {took:.2f} s, ingest waited {max(waits):.2f} s at"
            f" most, {len(waits) - before} went on"
        )
    assert await make.count(engine, "study_question_attempts") >= _ATTEMPTS
    assert max(held_up.values()) < 1, held_up
