"""The benchmark's own databases and vhosts, on the servers that the environment names."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import asyncpg
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from bench.workload import CHOICES, Shape
from worker.broker import topology
from worker.broker.management import Management
from worker.settings import Settings
from worker.store import schema
from worker.store.engine import make_engine

PREFIX: Final = "study_bench"
"""The prefix of every database and vhost. The benchmark may drop everything with this prefix."""


def _fill(shape: Shape) -> tuple[str, ...]:
    per_user, per_topic = shape.questions_per_user, shape.questions_per_topic
    return (
        "INSERT INTO study_topics (id, user_id)"
        f" SELECT topic, (topic - 1) / {shape.topics_per_user} + 1"
        f" FROM generate_series(1, {shape.users * shape.topics_per_user}) AS topic",
        "INSERT INTO study_questions (id, user_id, study_topic_id, correct_choice)"
        f" SELECT id, (id - 1) / {per_user} + 1, (id - 1) / {per_topic} + 1, id % {CHOICES} + 1"
        f" FROM generate_series(1, {shape.questions}) AS id",
        "INSERT INTO published (pub_id, kind, source_id)"
        f" SELECT 'q-' || md5(id::text), 'question', id FROM generate_series(1, {shape.questions})"
        " AS id",
    )


class Stage:
    """Makes what contenders run on."""

    def __init__(self, settings: Settings, prefix: str = PREFIX) -> None:
        self.settings = settings
        self._prefix = prefix

    def on_database(self, name: str) -> Settings:
        """The settings, pointed at our database `name`."""
        server = make_url(self.settings.database_url.get_secret_value())
        url = server.set(database=self._database(name)).render_as_string(hide_password=False)
        return self.settings.model_copy(update={"database_url": SecretStr(url)})

    async def connect(self, name: str) -> asyncpg.Connection:
        """A plain connection to our database `name`."""
        return await asyncpg.connect(self.on_database(name).database_url.get_secret_value())

    async def world(self, name: str, shape: Shape) -> None:
        """Makes a migrated database with every question published, and no attempt."""
        await self.copy(name, None)
        engine = make_engine(self.on_database(name), connections=1, name="bench")
        await schema.migrate(engine)
        await engine.dispose()
        connection = await self.connect(name)
        try:
            for statement in _fill(shape):
                await connection.execute(statement)
        finally:
            await connection.close()
        await self.settle(name)

    async def settle(self, name: str) -> None:
        """Brings statistics and visibility up to date, and the log's debts to the disk."""
        connection = await self.connect(name)
        try:
            # Not of empty tables: their statistics would say that they stay empty, and each
            # backend would then look references up by reading the whole growing table.
            tables = await connection.fetchval(
                "SELECT string_agg(quote_ident(relname), ', ') FROM pg_class"
                " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
                " AND pg_relation_size(oid) > 0"
            )
            await connection.execute(f"VACUUM (ANALYZE) {tables}")
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()

    async def copy(self, name: str, template: str | None) -> None:
        """Makes the database `name` anew, as a copy of another of ours."""
        source = (
            "" if template is None else f" TEMPLATE {self._database(template)} STRATEGY FILE_COPY"
        )
        await self._administer(
            f"DROP DATABASE IF EXISTS {self._database(name)} WITH (FORCE)",
            f"CREATE DATABASE {self._database(name)}{source}",
        )

    async def drop(self) -> None:
        """Drops every database and vhost of ours."""
        connection = await asyncpg.connect(self.settings.database_url.get_secret_value())
        try:
            names = await connection.fetch(
                "SELECT datname FROM pg_database WHERE starts_with(datname, $1)",
                f"{self._prefix}__",
            )
            for row in names:
                await connection.execute(f"DROP DATABASE IF EXISTS {row[0]} WITH (FORCE)")
        finally:
            await connection.close()
        async with Management(self.settings) as management:
            for vhost in await management.vhosts():
                if vhost["name"].startswith(f"{self._prefix}--"):
                    await management.delete_vhost(vhost["name"])

    @asynccontextmanager
    async def vhost(self, name: str, settings: Settings) -> AsyncIterator[Settings]:
        """A vhost with the project's topology, while the block runs."""
        full = f"{self._prefix}--{name}"
        url = urlsplit(settings.amqp_url.get_secret_value())._replace(path=f"/{full}").geturl()
        inside = settings.model_copy(update={"amqp_url": SecretStr(url)})
        async with Management(self.settings) as management:
            await management.delete_vhost(full)
            await management.create_vhost(full)
        async with Management(inside) as management:
            await topology.apply(management, inside)
        try:
            yield inside
        finally:
            async with Management(self.settings) as management:
                await management.delete_vhost(full)

    def _database(self, name: str) -> str:
        return f"{self._prefix}__{name}"

    async def _administer(self, *statements: str) -> None:
        connection = await asyncpg.connect(self.settings.database_url.get_secret_value())
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings as another process reads them."""
    variables = {
        "INGEST_DATABASE_URL": settings.database_url.get_secret_value(),
        "INGEST_AMQP_URL": settings.amqp_url.get_secret_value(),
    }
    if settings.management_url is not None:
        variables["INGEST_MANAGEMENT_URL"] = settings.management_url.get_secret_value()
    return variables
