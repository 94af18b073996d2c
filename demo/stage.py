"""The demo's own databases and vhost, on the servers of the environment. They are created again
each time.
"""

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import asyncpg
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from demo import DATABASE
from worker.broker.management import Management
from worker.errors import DatabaseAway
from worker.settings import Settings

_VHOST: Final = "study-demo"


async def with_database(settings: Settings, name: str) -> Settings:
    """Creates the database `name` again, empty. Returns settings for it.

    Raises `DatabaseAway` if the server is unreachable or refuses.
    """
    server = make_url(settings.database_url.get_secret_value())
    try:
        connection = await asyncpg.connect(server.render_as_string(hide_password=False))
        try:
            await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
    except (asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
        raise DatabaseAway(
            f"Another demo makes the database {name!r} on {server.host}:{server.port} right now:"
            " wait until it has ended."
        ) from None
    except (OSError, asyncpg.PostgresError) as error:
        raise DatabaseAway(
            f"The database {name!r} can't be made on {server.host}:{server.port}: {error}."
        ) from None
    url = server.set(database=name).render_as_string(hide_password=False)
    return settings.model_copy(update={"database_url": SecretStr(url)})


async def with_vhost(settings: Settings) -> Settings:
    """Creates the demo's vhost again. Returns settings for it.

    Raises `BrokerAway` or `TopologyError` if the broker is unreachable or refuses.
    """
    async with Management(settings) as management:
        await management.delete_vhost(_VHOST)
        await management.create_vhost(_VHOST)
    url = urlsplit(settings.amqp_url.get_secret_value())._replace(path=f"/{_VHOST}").geturl()
    return settings.model_copy(update={"amqp_url": SecretStr(url)})


def of_the_last(settings: Settings) -> Settings:
    """Settings for the database and the vhost that the last demo has left."""
    database = make_url(settings.database_url.get_secret_value()).set(database=DATABASE)
    vhost = urlsplit(settings.amqp_url.get_secret_value())._replace(path=f"/{_VHOST}")
    return settings.model_copy(
        update={
            "database_url": SecretStr(database.render_as_string(hide_password=False)),
            "amqp_url": SecretStr(vhost.geturl()),
        }
    )


async def grant(settings: Settings, viewers: Sequence[str], user_id: int) -> None:
    """Lets the viewers have the user's progress, which no viewer gets without a grant."""
    connection = await asyncpg.connect(settings.database_url.get_secret_value())
    try:
        await connection.executemany(
            "INSERT INTO viewer_grants (viewer, user_id) VALUES ($1, $2)",
            [(viewer, user_id) for viewer in viewers],
        )
    finally:
        await connection.close()


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings in the form in which a worker process reads them.

    The demo is local: its viewers share one login, and most have no grants. So identity is off,
    and its workers warn about that. Create real viewers with `study-ingest viewer add`.
    """
    variables = {
        "INGEST_REQUIRE_USER_ID": "false",
        "INGEST_DATABASE_URL": settings.database_url.get_secret_value(),
        "INGEST_AMQP_URL": settings.amqp_url.get_secret_value(),
    }
    if settings.management_url is not None:
        variables["INGEST_MANAGEMENT_URL"] = settings.management_url.get_secret_value()
    return variables
