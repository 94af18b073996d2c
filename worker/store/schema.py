"""The version of the schema: migrating it, and checking it before any work."""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

import migrations
from worker.errors import DatabaseAway, SchemaError
from worker.store import version
from worker.store.engine import behind_a_pooler, transaction
from worker.store.prepare import prepared

_ROW_SECURITY: Final = text("SHOW row_security")
_NO_TABLE: Final = "42P01"
_REFUSED: Final = {
    "55P03": "Another session has locked a table for longer than INGEST_LOCK_TIMEOUT: run `migrate`"
    " again when that backup or report has ended, or raise the timeout (workers wait as long).",
    "40P01": "The migration and another session waited for each other: run `migrate` again.",
    "42501": "The login in INGEST_DATABASE_URL may not change the schema: use its owner's.",
}
"""What an operator can do about a migration that failed, by SQLSTATE. Nothing is changed then."""


_MIGRATIONS: Final = Path(migrations.__file__).parent


def versions(since: str = "") -> list[str]:
    """All versions from `since` on, the oldest first. A migration's file begins with its version,
    as v0001_.
    """
    found = sorted(file.name[1:5] for file in _MIGRATIONS.glob("versions/v[0-9]*.py"))
    return [version for version in found if version >= since]


def head() -> str:
    """The version that this program needs."""
    return versions()[-1]


async def current(engine: AsyncEngine) -> str | None:
    """The version of the database. None if nothing was ever migrated."""
    try:
        async with transaction(engine) as connection:
            return await connection.run_sync(version.read, versions())
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _NO_TABLE:
            raise
    # A migration moved the version to another table in between, which happens once.
    async with transaction(engine) as connection:
        return await connection.run_sync(version.read, versions())


async def check(engine: AsyncEngine) -> None:
    """Raises `SchemaError`, which says what to do, if the database has any other version, and
    `BehindPooler` if a connection pooler drops what sessions should begin with.
    """
    async with transaction(engine) as connection:
        if await connection.scalar(_ROW_SECURITY) != "off":
            raise behind_a_pooler("row_security is on")
    found, wanted = await current(engine), head()
    if found == wanted:
        return
    if found is None:
        raise SchemaError(
            "The database has no schema",
            "run `study-ingest migrate`.",
        )
    if found in versions():
        raise SchemaError(
            f"The database's schema {found} is older than this program's {wanted}",
            "run `study-ingest migrate`.",
        )
    raise _newer(found)


def _newer(found: str) -> SchemaError:
    return SchemaError(
        f"The database's schema {found} is newer than this program's {head()}",
        "run a newer study-ingest.",
    )


async def migrate(engine: AsyncEngine, target: str = "head") -> tuple[str | None, str | None]:
    """Moves the schema to `target` ("head", "base" or a version). Returns (before, after).

    Raises `DatabaseAway`, or `SchemaError` if an operator can remove the obstacle. If it raises,
    the schema is unchanged.
    """
    if target not in {"head", "base", *versions()}:
        raise SchemaError(
            f"There is no version {target!r}",
            f"use head, base or one of {', '.join(versions())}.",
        )
    await _check_encoding(engine)
    before = await current(engine)
    if before is not None and before not in versions():
        raise _newer(before)
    try:
        async with prepared(engine, before, target), engine.connect() as plain:
            connection = await plain.execution_options(isolation_level="READ COMMITTED")
            # Otherwise Alembic begins a transaction of its own, and commits it.
            await connection.begin()
            await connection.run_sync(_run, before, target)
            # Before the commit, because another migration may follow at once.
            after = await connection.run_sync(version.read, versions())
            await connection.commit()
    except DBAPIError as error:
        if said := _REFUSED.get(getattr(error.orig, "sqlstate", None) or ""):
            raise SchemaError(said) from error
        if error.connection_invalidated:
            raise DatabaseAway(
                "The connection to the database was lost",
                "run `migrate` again.",
            ) from error
        raise
    return before, after


async def _check_encoding(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        encoding = await connection.scalar(text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise SchemaError(
            f"The database's encoding is {encoding}, which can't store every id and name",
            "create one with ENCODING 'UTF8', move the data there with pg_dump, and migrate that.",
        )


def _run(connection: Connection, at: str | None, target: str) -> None:
    # Every command checks the schema. Only a migration has to wait for Alembic to be imported.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes.update(connection=connection, target=target)
    if target == "base" or (at is not None and target < at):
        command.downgrade(config, target)
    else:
        command.upgrade(config, target)
