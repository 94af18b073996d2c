"""Every query of a worker can find its rows by an index, however large the tables grow.

The server itself counts: told to scan a table only where nothing else will do, it never has to.
"""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from tests.factories import Published, at, right, sent, wrong
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.operate.repair import rebuild, verify
from worker.settings import Settings
from worker.store import outbox
from worker.store.engine import make_engine, transaction

USERS, QUESTIONS, SESSIONS, ANSWERS = 120, 20, 10, 10
"""For each user: questions; sessions; attempts in each session."""

_FILL = (
    f"INSERT INTO study_topics (id, user_id) SELECT n, n FROM generate_series(1, {USERS}) AS n",
    "INSERT INTO study_questions (id, user_id, study_topic_id, correct_choice)"
    f" SELECT n, 1 + n % {USERS}, 1 + n % {USERS}, 1"
    f" FROM generate_series(0, {USERS * QUESTIONS - 1}) AS n",
    "INSERT INTO published (pub_id, kind, source_id)"
    " SELECT 'pub-' || id, 'question', id FROM study_questions",
    "INSERT INTO ingest_inbox (client_session_uuid, content_digest, user_id, summary)"
    " SELECT md5('batch' || n)::uuid, sha256(n::text::bytea), 1 + n % %USERS, '{}'"
    f" FROM generate_series(0, {USERS * SESSIONS - 1}) AS n",
    "INSERT INTO study_quiz_sessions (id, user_id, study_topic_id, question_ids,"
    " subject_distribution, status, cursor, source, client_session_uuid, correct_count,"
    " wrong_count, unsure_count, finished_at, finalized_at)"
    " SELECT md5('session' || n)::uuid, 1 + n % %USERS, 1 + n % %USERS, '[]', '{}', 'finalized',"
    " 10, 'viewer', md5('batch' || n)::uuid, 10, 0, 0, '2024-01-01', '2024-01-01'"
    f" FROM generate_series(0, {USERS * SESSIONS - 1}) AS n",
    "INSERT INTO study_question_attempts (user_id, study_question_id, study_topic_id,"
    " quiz_session_id, position, selected_choice, correct_choice, is_correct, outcome,"
    " answered_at)"
    " SELECT 1 + n % %USERS, n % %USERS + %USERS * (place + 2 * (n / %USERS) % 10),"
    " 1 + n % %USERS, md5('session' || n)::uuid, place, 1, 1, true, 'correct',"
    " timestamptz '2024-01-01' + n * interval '1 second' + place * interval '1 second'"
    f" FROM generate_series(0, {USERS * SESSIONS - 1}) AS n,"
    f" generate_series(0, {ANSWERS - 1}) AS place",
    "INSERT INTO study_question_progress SELECT user_id, study_question_id, study_topic_id,"
    " count(*), count(*), 0, 0, 0, 0, 0, 0, 0, min(answered_at), 'correct', max(answered_at),"
    " 'known', 2.5, 5, max(answered_at), 'other' FROM study_question_attempts GROUP BY 1, 2, 3",
    "INSERT INTO outbox (message_id, exchange, routing_key, type, headers, body)"
    " SELECT gen_random_uuid(), CASE n % 5 WHEN 0 THEN 'study.results' ELSE 'study.followups' END,"
    " 'key.' || n % 50, 'x', '{}', 'x' FROM generate_series(1, 5000) AS n",
    "INSERT INTO viewer_grants (viewer, user_id)"
    " SELECT 'viewer-' || n % 50, n FROM generate_series(1, 5000) AS n",
)


@pytest.fixture
async def filled(engine: AsyncEngine) -> AsyncEngine:
    """A database with thousands of rows in every table that grows, and with statistics."""
    async with engine.begin() as connection:
        for statement in _FILL:
            await connection.execute(text(statement.replace("%USERS", str(USERS))))
        for sequence in ("study_topics", "study_questions"):
            await connection.execute(
                text(f"SELECT setval(pg_get_serial_sequence('{sequence}', 'id'), 1000000)")
            )
    async with engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.execute(text("VACUUM ANALYZE"))
        name = await autocommit.scalar(text("SELECT current_database()"))
        await autocommit.execute(text(f"ALTER DATABASE {name} SET enable_seqscan = off"))
    return engine


async def _counts(engine: AsyncEngine, column: str) -> dict[str, int]:
    """One of the server's counters for each table."""
    await engine.dispose()
    # A backend hands in its counts at the latest when it ends.
    for _ in range(500):
        (others,) = await make.rows(
            engine,
            "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )
        if not others["n"]:
            break
        await asyncio.sleep(0.02)
    rows = await make.rows(
        engine,
        f"SELECT relname, {column} AS n FROM pg_stat_user_tables"
        " WHERE relname NOT IN ('study_ingest_version', 'study_topics')",
    )
    return {row["relname"]: row["n"] for row in rows}


async def test_no_statement_of_ingest_scans_a_whole_table(
    filled: AsyncEngine, database_url: str
) -> None:
    questions = [Published(f"pub-{n}", n, 1 + n % USERS, 1 + n % USERS) for n in range(3 * USERS)]
    settings = Settings(database_url=database_url, amqp_url="amqp://unused")  # type: ignore[arg-type]
    before = await _counts(filled, "seq_scan")
    fetched = await _counts(filled, "idx_tup_fetch")

    engine = make_engine(settings, connections=1, name="worker")
    ingest = Ingest(engine, Policy())
    group = [
        sent(right(questions[n], at(n)), wrong(questions[n + USERS], at(-900)), viewer="viewer-1")
        for n in range(40)
    ]
    await make.execute(filled, "DELETE FROM viewer_grants WHERE viewer = 'viewer-1'")
    # More than the five runs after which the server may choose a plan for any parameters.
    for _ in range(8):
        fresh = [sent(right(questions[n], at(n)), wrong(questions[n], at(-n))) for n in range(3)]
        await ingest([*fresh, *group])
        async with transaction(engine) as connection:
            taken = await outbox.take(connection, results=40, jobs=40)
        assert len(taken) == 80
    for user_id in range(1, 7):
        assert len(await verify(engine, user_id, Policy())) > 0
        assert (await rebuild(engine, user_id, Policy())).progress > 0
    await engine.dispose()

    after = await _counts(filled, "seq_scan")
    assert {table: after[table] - before[table] for table in after} == dict.fromkeys(after, 0)
    # Nor by way of an index that leads to every row.
    read = await _counts(filled, "idx_tup_fetch")
    for table in ("study_question_attempts", "study_question_progress"):
        assert read[table] - fetched[table] < await make.count(filled, table) / 2, table
    # A question is looked up to be resolved, to be scored, and because an attempt refers to it.
    looked_up = 8 * (len(fresh) + len(group)) * 2 * 3
    repaired = 8 * QUESTIONS * 4
    assert read["study_questions"] - fetched["study_questions"] <= looked_up + repaired
