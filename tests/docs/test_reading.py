"""The queries of docs/reading.md answer what they say, by indexes, with the rights of a reader."""

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from tests.broker_fixtures import make_settings
from tests.database_fixtures import OURS, THEIRS
from tests.factories import Published, answer, right, sent, wrong
from worker.domain.policy import Policy
from worker.domain.schedule import Memory, due_from, retrievability
from worker.ingest.transaction import Ingest
from worker.store.engine import make_engine, transaction
from worker.store.operate import roles

PAGE = (Path(__file__).parents[2] / "docs" / "reading.md").read_text()
QUERIES = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```sql\n(.*?)^```$", PAGE, re.M | re.S))
OF_A_USER = [title for title, query in QUERIES.items() if "user_id = 42" in query]
VIEWS = ("study_due", "study_progress", "study_topic_progress", "study_history")
USER = 42
A_DAY = timedelta(days=1)


@pytest.fixture
async def reader(engine: AsyncEngine, database_url: str) -> AsyncIterator[AsyncEngine]:
    """The test's database, seen by a reader."""
    name = f"test_{uuid4().hex[:12]}"
    async with transaction(engine) as connection:
        await roles.ensure_reader(connection, name)
    url = make_url(database_url).set(username=name).render_as_string(hide_password=False)
    pool = make_engine(make_settings("amqp://unused", database_url=url), connections=2, name="r")
    yield pool
    await pool.dispose()
    async with transaction(engine) as connection:
        await connection.exec_driver_sql(f"DROP OWNED BY {name}")
        await connection.exec_driver_sql(f"DROP ROLE {name}")


async def _answered(engine: AsyncEngine) -> list[Published]:
    """Questions of the user with the id 1, 2...: due, not yet due, due but withdrawn, and deleted;
    and one that another user has long neglected.
    """
    now = datetime.now(UTC)
    mine = await make.publish(engine, 5, user_id=USER)
    (other,) = await make.publish(engine, user_id=7)
    ingest = Ingest(engine, Policy())
    await ingest(
        [
            sent(*[wrong(each, now - 9 * A_DAY) for each in mine], wrong(mine[1], now - 2 * A_DAY)),
            sent(right(mine[2], now - timedelta(minutes=5))),
            sent(right(other, now - 90 * A_DAY)),
        ]
    )
    await make.withdraw(engine, mine[3])
    await make.delete_question(engine, mine[4])
    await make.execute(
        engine,
        "INSERT INTO published VALUES ('another-name', 'question', :id)",
        id=mine[0].question_id,
    )
    await make.execute(
        engine,
        "INSERT INTO study_question_texts VALUES (:id, 'Sum', 'x')",
        id=mine[0].question_id,
    )
    return [*mine, other]


@pytest.mark.parametrize("content", [OURS, THEIRS], indirect=True)
async def test_the_queries_answer_what_they_say(engine: AsyncEngine, reader: AsyncEngine) -> None:
    first, second, _, _, _, other = await _answered(engine)
    found = {title: await make.rows(reader, query) for title, query in QUERIES.items()}

    due = found["What is due for a user, most forgotten first"]
    assert [(row["pub_id"], row["title"]) for row in due] == [
        (min(first.pub_id, "another-name"), "Sum"),
        (second.pub_id, None),
    ]
    stored = await make.progress(engine)
    for row, question in zip(due, (first, second), strict=True):
        progress = stored[USER, question.question_id]
        memory = Memory(progress["stability"], progress["difficulty"], progress["due_at"])
        assert row["retrievability"] == pytest.approx(
            retrievability(memory, progress["last_answered_at"], datetime.now(UTC))
        )
    evening = found["What will be due this evening"]
    assert [row["due_from"] for row in evening] == sorted(
        due_from(stored[USER, each.question_id]["due_at"]) for each in (first, second)
    )
    (topic,) = found["Mastery by topic"]
    assert (topic["questions_seen"], topic["questions_due"]) == (5, 2)
    assert {row["user_id"]: row["questions_due"] for row in found["Who has something due"]} == {
        USER: 2,
        other.user_id: 1,
    }
    assert found["Who falls behind"][0]["user_id"] == other.user_id
    history = found["The history of a question"]
    assert first.question_id == 1 and [row["outcome"] for row in history] == ["wrong"]


@pytest.mark.parametrize(("hours", "is_due"), [(11.99, True), (12.01, False)])
async def test_a_question_is_due_half_a_day_before_its_due_time(
    engine: AsyncEngine, hours: float, is_due: bool
) -> None:
    (question,) = await make.publish(engine, user_id=USER)
    await Ingest(engine, Policy())([sent(answer(question))])
    await make.execute(
        engine,
        "UPDATE study_question_progress SET due_at = now() + :hours * interval '1 hour'",
        hours=hours,
    )
    assert (await make.count(engine, "study_due") == 1) is is_due
    (topic,) = await make.rows(engine, "SELECT questions_due FROM study_topic_progress")
    assert (topic["questions_due"] == 1) is is_due
    (row,) = await make.rows(engine, "SELECT due_from <= now() AS is_due FROM study_progress")
    assert row["is_due"] is is_due


async def test_a_shared_question_is_due_for_each_user_by_that_user_s_own_answers(
    engine: AsyncEngine,
) -> None:
    (question,) = await make.publish(engine, user_id=None)
    now = datetime.now(UTC)
    for user, when in ((USER, now - 90 * A_DAY), (7, now - timedelta(minutes=5))):
        await make.grant(engine, f"viewer-{user}", user)
        await Ingest(engine, Policy())([sent(right(question, when), viewer=f"viewer-{user}")])
    assert await make.rows(engine, "SELECT user_id, pub_ids FROM study_due") == [
        {"user_id": USER, "pub_ids": [question.pub_id]}
    ]
    assert await make.count(engine, "study_progress") == 2
    history = await make.rows(engine, "SELECT user_id FROM study_history ORDER BY user_id")
    assert [row["user_id"] for row in history] == [7, USER]


async def test_the_history_leaves_voided_sessions_out(engine: AsyncEngine) -> None:
    (question,) = await make.publish(engine, user_id=USER)
    await Ingest(engine, Policy())([sent(answer(question)), sent(wrong(question))])
    await make.execute(
        engine, "UPDATE study_quiz_sessions SET voided_at = now() WHERE wrong_count = 1"
    )
    assert await make.rows(engine, "SELECT outcome FROM study_history") == [{"outcome": "correct"}]


async def test_a_reader_may_read_the_views_and_nothing_else(
    engine: AsyncEngine, reader: AsyncEngine
) -> None:
    relations = await make.rows(
        engine,
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind IN ('r', 'v', 'm', 'p')",
    )
    for name in (row["relname"] for row in relations):
        if name in VIEWS:
            await make.rows(reader, f"SELECT * FROM {name}")
        else:
            with pytest.raises(DBAPIError, match="permission denied"):
                await make.rows(reader, f"SELECT * FROM {name}")
    for statement in (
        "UPDATE study_progress SET title = ''",
        "DELETE FROM study_history",
        "CREATE TABLE mine ()",
        "CREATE TEMPORARY TABLE mine ()",
    ):
        with pytest.raises(DBAPIError, match=r"permission denied|cannot"):
            await make.execute(reader, statement)


@pytest.fixture
async def filled(engine: AsyncEngine) -> AsyncEngine:
    """200 users with 100 questions each, an answer to each, and statistics."""
    for statement in (
        "INSERT INTO study_topics (id, user_id) SELECT n, n FROM generate_series(1, 200) AS n",
        "INSERT INTO study_questions (id, user_id, study_topic_id, correct_choice)"
        " SELECT n, 1 + n % 200, 1 + n % 200, 1 FROM generate_series(1, 20000) AS n",
        "INSERT INTO published (pub_id, kind, source_id)"
        " SELECT 'pub-' || id, 'question', id FROM study_questions",
        "INSERT INTO study_question_texts SELECT id, 'title ' || id, 'x' FROM study_questions",
        "INSERT INTO study_quiz_sessions (id, user_id, study_topic_id, question_ids,"
        " subject_distribution, status, cursor, source, client_session_uuid, correct_count,"
        " wrong_count, unsure_count, finished_at, finalized_at)"
        " SELECT md5('s' || n)::uuid, 1 + n % 200, 1 + n % 200, '[]', '{}', 'finalized', 5,"
        " 'viewer', md5('b' || n)::uuid, 5, 0, 0, now(), now() FROM generate_series(0, 3999) AS n",
        "INSERT INTO study_question_attempts (user_id, study_question_id, study_topic_id,"
        " quiz_session_id, position, selected_choice, correct_choice, is_correct, outcome,"
        " answered_at) SELECT user_id, id, study_topic_id, md5('s' || id % 4000)::uuid,"
        " id / 4000, 1, 1, true, 'correct', now() FROM study_questions",
        "INSERT INTO study_question_progress SELECT user_id, id, study_topic_id, 1, 1, 0, 0, 1, 1,"
        " 0, 0, 0, now(), 'correct', now() - id % 40 * interval '1 day', 'known', 2.5, 5,"
        " now() + (10 - id % 40) * interval '1 day', 'x' FROM study_questions",
    ):
        await make.execute(engine, statement)
    async with engine.connect() as connection:
        plain = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await plain.execute(text("VACUUM ANALYZE"))
    return engine


@pytest.mark.parametrize("title", OF_A_USER)
async def test_a_query_about_one_user_reads_no_table_whole(filled: AsyncEngine, title: str) -> None:
    plan = await _plan(filled, QUERIES[title])
    scans = [node for node in _nodes(plan) if "Relation Name" in node]
    assert (
        scans
        and {node["Relation Name"] for node in scans if node["Node Type"] == "Seq Scan"} == set()
    )
    read = sum(node["Actual Rows"] * node["Actual Loops"] for node in scans)
    assert read <= 4 * 100, "of each table no more than the user's own rows"


@pytest.mark.parametrize("title", [title for title in QUERIES if title.startswith("Who")])
async def test_a_query_about_everybody_reads_each_table_once(
    filled: AsyncEngine, title: str
) -> None:
    plan = await _plan(filled, QUERIES[title])
    scans = [node for node in _nodes(plan) if "Relation Name" in node]
    assert all(node["Actual Loops"] <= 3 for node in scans), "once, by some processes together"


async def _plan(engine: AsyncEngine, query: str) -> dict[str, Any]:
    """The plan that PostgreSQL chooses by itself, for an application's session."""
    async with engine.connect() as connection:
        for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin"):
            await connection.execute(text(f"SET LOCAL {setting} = on"))
        found = await connection.scalar(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}"))
    (plan,) = json.loads(found) if isinstance(found, str) else found
    return dict(plan["Plan"])


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for part in plan.get("Plans", ()) for node in _nodes(part))]
