"""Statements that the driver sends itself, and several writes as one of them."""

import pytest
from asyncpg import CheckViolationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from worker.store.driver import Write, write
from worker.store.engine import transaction

TOPIC = text("INSERT INTO study_topics (id, user_id) VALUES (CAST(:topic AS bigint), 1)")
QUESTION = text(
    "INSERT INTO study_questions (user_id, study_topic_id, correct_choice)"
    " VALUES (1, CAST(:topic AS bigint), CAST(:choice AS integer))"
)
PUBLICATION = text(
    "INSERT INTO published (pub_id, kind, source_id) VALUES (CAST(:name AS text), 'question', 1)"
)


async def test_writes_that_refer_to_each_other_are_carried_out_together(
    engine: AsyncEngine,
) -> None:
    async with transaction(engine) as connection:
        await write(
            connection,
            [Write(TOPIC, {"topic": 7}), Write(QUESTION, {"topic": 7, "choice": 2})],
        )
        await write(connection, [Write(QUESTION, {"topic": 7, "choice": 3})])
    found = await make.rows(engine, "SELECT * FROM study_questions ORDER BY correct_choice")
    assert [(row["study_topic_id"], row["correct_choice"]) for row in found] == [(7, 2), (7, 3)]


async def test_no_writes_do_nothing(engine: AsyncEngine) -> None:
    before = await make.contents(engine)
    async with transaction(engine) as connection:
        await write(connection, [])
    assert await make.contents(engine) == before


async def test_one_that_is_refused_takes_the_others_along(engine: AsyncEngine) -> None:
    with pytest.raises(CheckViolationError):
        async with transaction(engine) as connection:
            await write(connection, [Write(TOPIC, {"topic": 7}), Write(PUBLICATION, {"name": ""})])
    assert await make.count(engine, "study_topics") == 0
