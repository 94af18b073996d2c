"""The outbox's tables inside the viewer's own SQLite file, and their versions.

It sets no journal mode and no other pragma, because the file belongs to the viewer.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from study_viewer.errors import OutboxTooNew

ERASED: Final = b""
"""The digest of a batch that has lost answers."""

# SQLite has one writer at a time and numbers a new row after all others, so `seq` is the order of
# the viewer's commits. Times are seconds since 1970 in UTC.
_VERSION_1: Final = (
    """
    CREATE TABLE study_outbox (
        seq INTEGER PRIMARY KEY,
        client_session_uuid TEXT NOT NULL UNIQUE,
        digest BLOB NOT NULL,
        body BLOB NOT NULL,
        traceparent TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'pending'
            CHECK (state IN ('pending', 'confirmed', 'settled')),
        recorded_at REAL NOT NULL,
        confirmed_at REAL,
        confirms INTEGER NOT NULL DEFAULT 0,
        problem TEXT,
        settled_at REAL,
        status TEXT,
        result TEXT,
        CHECK ((state = 'settled') = (result IS NOT NULL))
    )
    """,
    "CREATE INDEX study_outbox_state ON study_outbox (state, seq)",
)

# It has no version of its own, because older libraries, which leave it alone, must still open the
# file.
_CHECKS: Final = (
    "ALTER TABLE study_outbox ADD COLUMN unchecked INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX study_outbox_unchecked ON study_outbox (seq) WHERE unchecked = 1",
    "CREATE TABLE study_outbox_server (epoch TEXT NOT NULL)",
)

VERSIONS: Final = (_VERSION_1,)
"""The statements that lead from each version to the next. Append to them, and never edit them."""


def upgrade(connection: sqlite3.Connection, path: Path) -> None:
    """Creates or upgrades the tables, in one transaction of its own.

    `connection` must be in autocommit mode. Raises `OutboxTooNew` if a newer version of this
    library has upgraded them.
    """
    if _version(connection) == len(VERSIONS) and _exists(connection, "study_outbox_server"):
        return
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS study_outbox_version (version INTEGER NOT NULL)"
        )
        # Read it again, because another process may have upgraded while this one waited for the
        # lock.
        found = _version(connection)
        if found > len(VERSIONS):
            raise OutboxTooNew(path, found, len(VERSIONS))
        for statements in VERSIONS[found:]:
            for statement in statements:
                connection.execute(statement)
        if not _exists(connection, "study_outbox_server"):
            for statement in _CHECKS:
                connection.execute(statement)
        connection.execute("DELETE FROM study_outbox_version")
        connection.execute("INSERT INTO study_outbox_version VALUES (?)", (len(VERSIONS),))


@contextmanager
def transaction(
    connection: sqlite3.Connection, one_at_a_time: AbstractContextManager[object]
) -> Iterator[sqlite3.Connection]:
    """A transaction that writes, while no other thread uses the connection.

    `connection` must be in autocommit mode. Raises sqlite3.OperationalError if the file is locked.
    """
    with one_at_a_time:
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            yield connection


def _version(connection: sqlite3.Connection) -> int:
    """The version in the file. It is 0 if there are no tables yet."""
    if not _exists(connection, "study_outbox_version"):
        return 0
    row = connection.execute("SELECT version FROM study_outbox_version").fetchone()
    return int(row[0]) if row else 0


def _exists(connection: sqlite3.Connection, table: str) -> bool:
    found = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)
    ).fetchone()
    return found is not None
