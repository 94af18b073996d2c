"""A browser without JavaScript, on a real PostgreSQL.

QUIZ_TEST_DATABASE_URL names a database for the tests. What is in its tables is deleted.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["QUIZ_DATABASE_URL"] = os.environ["QUIZ_TEST_DATABASE_URL"]
sys.path.insert(0, str(Path(__file__).parents[1]))

from fastapi.testclient import TestClient
from quiz import database
from quiz.main import app
from quiz.models import Answer, Question, Round, Topic, User
from quiz.seed import questions
from sqlalchemy import delete


@pytest.fixture(scope="session", autouse=True)
def tables() -> None:
    subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=Path(__file__).parents[1],
        check=True,
    )


async def _fill() -> None:
    async with database.sessions() as session, session.begin():
        for model in (Answer, Round, Question, Topic, User):
            await session.execute(delete(model))
        session.add_all(questions())
    await database.engine.dispose()


@pytest.fixture
def client() -> Iterator[TestClient]:
    asyncio.run(_fill())
    with TestClient(app) as browser:
        yield browser
        assert browser.portal is not None
        browser.portal.call(database.engine.dispose)
