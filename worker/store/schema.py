"""The schema's version: brought up to date, and checked before any work.

Runs the migrations; knows no table.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

import migrations
from worker.errors import SchemaError
from worker.store.engine import transaction


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The version this program works on."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


async def current(engine: AsyncEngine) -> str | None:
    """The version the database is at; None when nothing was ever migrated."""
    async with transaction(engine) as connection:
        return await connection.run_sync(
            lambda sync: MigrationContext.configure(sync).get_current_revision()
        )


async def check(engine: AsyncEngine) -> None:
    """Raises `SchemaError`, with the mend, when the database is at any other version."""
    found, wanted = await current(engine), head()
    if found == wanted:
        return
    if found is None:
        raise SchemaError("The database has no schema: run `study-ingest migrate`.")
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found in known:
        raise SchemaError(
            f"The database's schema {found} is older than this program's {wanted}:"
            " run `study-ingest migrate`."
        )
    raise SchemaError(
        f"The database's schema {found} is newer than this program's {wanted}:"
        " run a newer study-ingest."
    )


async def migrate(engine: AsyncEngine, target: str = "head") -> tuple[str | None, str | None]:
    """Moves the schema to `target` ("head", "base" or a version); returns (before, after)."""
    before = await current(engine)
    async with engine.connect() as connection:
        await connection.run_sync(_run, target)
        await connection.commit()
    return before, await current(engine)


def _run(connection: Connection, target: str) -> None:
    config = _config(connection)
    at = MigrationContext.configure(connection).get_current_revision()
    older = ScriptDirectory.from_config(config).iterate_revisions(at, "base") if at else ()
    if target == "base" or target in {script.revision for script in older} - {at}:
        command.downgrade(config, target)
    else:
        command.upgrade(config, target)
