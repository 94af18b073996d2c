"""A migrated PostgreSQL database of its own for each test that asks for one.

One template is migrated in each test process; a test's database is a copy of it (about 40 ms).
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.settings import Settings
from worker.store import schema
from worker.store.engine import make_engine


def _server_url() -> str:
    url = os.environ.get("INGEST_DATABASE_URL")
    if url is None:
        pytest.fail("INGEST_DATABASE_URL is not set: run the tests with ./dev test.")
    return url


def _named(database: str) -> str:
    return make_url(_server_url()).set(database=database).render_as_string(hide_password=False)


async def _administer(*statements: str) -> None:
    connection = await asyncpg.connect(_server_url())
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def _settings(database_url: str) -> Settings:
    # The broker's URL is required too; tests of the store alone never use it.
    return Settings(database_url=database_url, amqp_url="amqp://unused")  # type: ignore[arg-type]


_TEMPLATE = f"test_template_{uuid4().hex[:12]}"
_template_made = False


async def _template() -> str:
    global _template_made
    if not _template_made:
        await _administer(f"CREATE DATABASE {_TEMPLATE}")
        engine = make_engine(_settings(_named(_TEMPLATE)), connections=1, name="tests")
        await schema.migrate(engine)
        await engine.dispose()
        _template_made = True
    return _TEMPLATE


@pytest.fixture(scope="session", autouse=True)
def _drop_template() -> Iterator[None]:
    yield
    if _template_made:
        asyncio.run(_administer(f"DROP DATABASE IF EXISTS {_TEMPLATE} WITH (FORCE)"))


@asynccontextmanager
async def _database(origin: str = "") -> AsyncIterator[str]:
    name = f"test_{uuid4().hex[:16]}"
    await _administer(f"CREATE DATABASE {name} {origin}")
    yield _named(name)
    await _administer(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def empty_database_url() -> AsyncIterator[str]:
    """The URL of a database without any schema."""
    async with _database() as url:
        yield url


@pytest.fixture
async def database_url() -> AsyncIterator[str]:
    """The URL of a migrated database of the test's own."""
    async with _database(f"TEMPLATE {await _template()}") as url:
        yield url


@pytest.fixture
async def other_engine() -> AsyncIterator[AsyncEngine]:
    """A pool on another migrated database."""
    async with _database(f"TEMPLATE {await _template()}") as url:
        engine = make_engine(_settings(url), connections=4, name="tests")
        yield engine
        await engine.dispose()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """A pool of ten connections to the test's database, with the default settings."""
    engine = make_engine(_settings(database_url), connections=10, name="tests")
    yield engine
    await engine.dispose()
