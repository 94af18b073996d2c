"""The rows that the log refers to exist as long as the log, whoever writes.

Triggers check that for a whole statement at once (migration 0005). The foreign keys before them did
the same, except for the isolation levels.
"""

import asyncio
from uuid import UUID, uuid4

import pytest
from asyncpg import ForeignKeyViolationError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from tests.factories import Published, at, right, sent
from worker.domain.dispositions import Ingested
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest

_NOBODY = UUID(int=0)

_COPY_OF_ATTEMPTS = (
    "INSERT INTO study_question_attempts (user_id, study_question_id, study_topic_id,"
    " quiz_session_id, position, correct_choice, outcome, answered_at)"
    " SELECT user_id, CAST({question} AS bigint), study_topic_id, CAST({session} AS uuid),"
    " position + 100, correct_choice, 'unsure', answered_at FROM study_question_attempts"
)


@pytest.fixture
async def asked(engine: AsyncEngine) -> list[Published]:
    """Three questions, the first two of which have an attempt each, in one session."""
    questions = await make.publish(engine, 3)
    (done,) = await _ingest(engine, *questions[:2])
    assert isinstance(done, Ingested)
    return questions


async def _ingest(engine: AsyncEngine, *questions: Published) -> list[object]:
    batch = sent(*[right(question, at(1)) for question in questions], uuid=uuid4())
    return [*await Ingest(engine, Policy())([batch])]


async def _refused(engine: AsyncEngine, sql: str, **values: object) -> str:
    """What the server says; nothing may have changed."""
    before = await make.contents(engine)
    with pytest.raises(IntegrityError) as refused:
        await make.execute(engine, sql, **values)
    assert getattr(refused.value.orig, "sqlstate", None) == "23503"
    assert await make.contents(engine) == before
    return str(refused.value.orig)


@pytest.mark.parametrize(
    ("question", "session"),
    [
        pytest.param("987654", "quiz_session_id", id="no question"),
        pytest.param(
            "CASE position WHEN 0 THEN study_question_id ELSE 987654 END",
            "quiz_session_id",
            id="one of several has no question",
        ),
        pytest.param("study_question_id", f"'{_NOBODY}'", id="no session"),
    ],
)
async def test_an_attempt_is_not_written_without_what_it_refers_to(
    engine: AsyncEngine, asked: list[Published], question: str, session: str
) -> None:
    said = await _refused(engine, _COPY_OF_ATTEMPTS.format(question=question, session=session))
    assert said.endswith("987654" if "987654" in question else str(_NOBODY))
    await _refused(
        engine,
        f"UPDATE study_question_attempts SET study_question_id = {question},"
        f" quiz_session_id = {session}",
    )
    await make.execute(
        engine,
        _COPY_OF_ATTEMPTS.format(question="study_question_id", session="quiz_session_id"),
    )
    assert await make.count(engine, "study_question_attempts") == 4


async def test_a_session_is_not_written_without_its_topic(
    engine: AsyncEngine, asked: list[Published]
) -> None:
    said = await _refused(engine, "UPDATE study_quiz_sessions SET study_topic_id = 987654")
    assert said.endswith("987654")
    columns = "user_id, question_ids, subject_distribution, status, cursor, source, correct_count,"
    columns += " wrong_count, unsure_count, finished_at, finalized_at, client_session_uuid"
    copy = (
        f"INSERT INTO study_quiz_sessions (id, study_topic_id, {columns})"
        f" SELECT gen_random_uuid(), {{topic}}, {columns} FROM study_quiz_sessions"
    )
    await _refused(engine, copy.format(topic=987654))
    (other,) = await make.publish(engine)
    await make.execute(engine, copy.format(topic=other.topic_id))
    assert await make.count(engine, "study_quiz_sessions") == 2


async def test_a_topic_stays_while_a_session_refers_to_it(
    engine: AsyncEngine, asked: list[Published]
) -> None:
    await make.execute(engine, "INSERT INTO study_topics (id, user_id) VALUES (987654, 1)")
    # Its questions are elsewhere by now, and hold it no longer.
    await make.execute(engine, "UPDATE study_questions SET study_topic_id = 987654")
    topic = asked[0].topic_id
    await _refused(engine, "DELETE FROM study_topics WHERE id = :id", id=topic)
    await _refused(engine, "UPDATE study_topics SET id = 9 WHERE id = :id", id=topic)
    await make.execute(engine, "TRUNCATE study_quiz_sessions, study_question_attempts")
    await make.execute(engine, "DELETE FROM study_topics WHERE id = :id", id=topic)


async def test_a_statement_that_writes_nothing_is_fine(
    engine: AsyncEngine, asked: list[Published]
) -> None:
    nothing = _COPY_OF_ATTEMPTS.format(question="1", session=f"'{_NOBODY}'") + " WHERE false"
    await make.execute(engine, nothing)
    await make.execute(engine, "UPDATE study_question_attempts SET user_id = 9 WHERE false")


async def test_a_question_stays_while_an_attempt_refers_to_it(
    engine: AsyncEngine, asked: list[Published]
) -> None:
    first, second, third = [question.question_id for question in asked]
    one = "FROM study_questions WHERE id = :id"
    await _refused(engine, f"DELETE {one}", id=first)
    await _refused(engine, "DELETE FROM study_questions")
    await _refused(engine, "UPDATE study_questions SET id = 987654 WHERE id = :id", id=second)
    await _refused(engine, "TRUNCATE study_questions")
    # What changes nothing about it, and whoever has none, may.
    await make.execute(engine, "UPDATE study_questions SET id = id, correct_choice = 2")
    await make.execute(engine, "UPDATE study_questions SET id = 987654 WHERE id = :id", id=third)
    await make.execute(engine, f"DELETE {one}", id=987654)
    await make.execute(engine, "DELETE FROM study_question_attempts")
    await make.execute(engine, "DELETE FROM study_questions")


async def test_a_session_stays_while_an_attempt_refers_to_it(
    engine: AsyncEngine, asked: list[Published]
) -> None:
    await _refused(engine, "DELETE FROM study_quiz_sessions")
    await _refused(engine, "UPDATE study_quiz_sessions SET id = :id", id=_NOBODY)
    await _refused(engine, "TRUNCATE study_quiz_sessions")
    await make.execute(engine, "UPDATE study_quiz_sessions SET id = id, voided_at = now()")
    await make.execute(engine, "TRUNCATE study_quiz_sessions, study_question_attempts")
    assert await make.count(engine, "study_quiz_sessions") == 0


async def test_a_question_that_goes_while_an_attempt_comes_in_waits_and_stays(
    engine: AsyncEngine, asked: list[Published]
) -> None:
    delete = "DELETE FROM study_questions WHERE id = :id"
    async with engine.begin() as writing:
        copy = _COPY_OF_ATTEMPTS.format(question=asked[2].question_id, session="quiz_session_id")
        await writing.execute(text(copy))
        deleting = asyncio.create_task(make.execute(engine, delete, id=asked[2].question_id))
        await make.blocked(engine, 1)
    with pytest.raises(IntegrityError):
        await deleting
    assert await make.count(engine, "study_questions") == 3


async def test_a_batch_that_comes_in_while_a_question_goes_waits_and_tells_without_it(
    engine: AsyncEngine, asked: list[Published]
) -> None:
    gone = asked[2]
    async with engine.begin() as deleting:
        await deleting.execute(
            text("DELETE FROM study_questions WHERE id = :id"), {"id": gone.question_id}
        )
        ingesting = asyncio.create_task(_ingest(engine, asked[0], gone))
        await make.blocked(engine, 1)
    with pytest.raises(
        ForeignKeyViolationError, match=f"not in study_questions: {gone.question_id}$"
    ):
        await ingesting
    assert await make.count(engine, "study_question_attempts") == 2
    # As the worker does: the next try finds what there is now.
    (done,) = await _ingest(engine, asked[0], gone)
    assert isinstance(done, Ingested)
    skipped = (await make.told(engine))[-1].skipped
    assert [each.reason for each in skipped] == ["question_deleted"]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_nothing_goes_where_an_attempt_that_just_came_in_would_not_be_seen(
    engine: AsyncEngine, asked: list[Published], level: str
) -> None:
    async with engine.connect() as other:
        await other.execution_options(isolation_level=level)
        await other.execute(text("SELECT count(*) FROM study_questions"))  # its snapshot is taken
        (done,) = await _ingest(engine, asked[2])
        assert isinstance(done, Ingested)
        with pytest.raises(DBAPIError, match="can only go at READ COMMITTED"):
            await other.execute(
                text("DELETE FROM study_questions WHERE id = :id"), {"id": asked[2].question_id}
            )
    assert await make.count(engine, "study_questions") == 3
