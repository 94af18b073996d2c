"""Versions of progress, and the epoch in which they can be compared.

A transaction draws a version after it has locked the users that it changes, and before it writes.
The locks are held to the commit, so what is visible of a user never gets a row with a version
below the highest one that was visible before. A rolled back transaction leaves a gap.
"""

from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.domain.records import Mark
from worker.store.driver import fetch

NEXT: Final = "nextval('ours.ingest_versions')"
"""SQL for a new version. It must be evaluated once for each transaction."""

EPOCH: Final = (
    "CASE WHEN NOT pg_is_in_recovery() THEN left(encode(sha256(convert_to(concat_ws('/',"
    " (SELECT system_identifier FROM pg_control_system()),"
    " left(pg_walfile_name(pg_current_wal_lsn()), 8),"
    " (SELECT oid FROM pg_database WHERE datname = current_database()),"
    " CAST(CAST('ours.ingest_versions' AS regclass) AS oid)), 'UTF8')), 'hex'), 12) END"
)
"""SQL for the epoch: the server, the timeline that it writes to, the database and the sequence,
which is another one where a dump was restored into the same database.

On a standby it is null, and no error: there the refusal to draw a version (25006) must come first,
because it ends the sessions on that server.
"""

_EPOCH: Final = text(f"SELECT {EPOCH}")
_KNOWN: Final = "study-ingest epoch"
"""Where a session keeps it."""

_DRAW: Final = text(f"SELECT {EPOCH}, {NEXT}")


async def epoch(connection: AsyncConnection) -> str | None:
    """The epoch, which is read once for each session with the server: it can't change while a
    session lasts that may write. None on a standby.
    """
    known: str | None = connection.info.get(_KNOWN)
    if known is None:
        ((known,),) = await fetch(connection, _EPOCH, {})
        connection.info[_KNOWN] = known
    return known


async def draw(connection: AsyncConnection) -> Mark:
    """A new version. Hold the locks of the users whose progress gets it."""
    (row,) = await fetch(connection, _DRAW, {})
    return Mark(*row)
