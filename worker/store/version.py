"""Where the schema's version is on record: in the table `study_ingest_version`.

`alembic_version` is the application's. Version 0.1.0 used it as well: a migration moves what it
left there, and moves it back on the way down to a schema of 0.1.0.
"""

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, text

from worker.errors import SchemaError
from worker.store.ours import schema_of

TABLE: Final = "study_ingest_version"

_ALEMBIC: Final = "alembic_version"
_NEWEST_IN_ALEMBIC: Final = "0007"
"""The schema of version 0.1.0."""

# Not to_regclass, which may answer from before the wait for another migration.
_THERE: Final = text(
    "SELECT EXISTS (SELECT FROM pg_class WHERE relname = :name"
    " AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = :schema))"
)
_READ: Final = text(f"SELECT version_num FROM ours.{TABLE}")
_IN_ALEMBIC: Final = text(f"SELECT version_num FROM ours.{_ALEMBIC}")


def read(connection: Connection, ours: Collection[str]) -> str | None:
    """The version of the schema; None if nothing was migrated. `ours` are all that we know."""
    if _is_there(connection, TABLE):
        found: str | None = connection.scalar(_READ)
        return found
    return _in_alembic(connection, ours)


def take_over(connection: Connection, ours: Collection[str]) -> None:
    """Moves a version of ours out of `alembic_version`. Whoever may read the one may read the
    other.
    """
    if not _is_there(connection, TABLE) and _in_alembic(connection, ours) is not None:
        _rename(connection, _ALEMBIC, TABLE)


def hand_back(connection: Connection) -> None:
    """Moves the version to where the program of this schema looks for it.

    Raises `SchemaError` if the application has the table that 0.1.0 needs.
    """
    if not _is_there(connection, TABLE):  # there was nothing to do, and nothing to remember
        return
    at = connection.scalar(_READ)
    if at is None:
        connection.execute(text(f"DROP TABLE ours.{TABLE}"))
    elif at <= _NEWEST_IN_ALEMBIC:
        if _is_there(connection, _ALEMBIC):
            raise SchemaError(
                f"The program of schema {at} keeps its version in {_ALEMBIC}, and the application"
                " has a table of that name",
                f"choose a version after {_NEWEST_IN_ALEMBIC}, or base.",
            )
        _rename(connection, TABLE, _ALEMBIC)


def _is_there(connection: Connection, table: str) -> bool:
    values = {"name": table, "schema": schema_of(connection)}
    return bool(connection.scalar(_THERE, values))


def _in_alembic(connection: Connection, ours: Collection[str]) -> str | None:
    """The version of ours in `alembic_version`. Without our tables, that table is not even read:
    an application's versions may have the same names.
    """
    if not (_is_there(connection, "ingest_inbox") and _is_there(connection, _ALEMBIC)):
        return None
    found = connection.scalars(_IN_ALEMBIC).all()
    return found[0] if len(found) == 1 and found[0] in ours else None


def _rename(connection: Connection, table: str, name: str) -> None:
    connection.execute(text(f"ALTER TABLE ours.{table} RENAME TO {name}"))
    connection.execute(text(f"ALTER TABLE ours.{name} RENAME CONSTRAINT {table}_pkc TO {name}_pkc"))
