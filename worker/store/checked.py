"""Which of a viewer's batches the server has. Viewers ask when another server has taken over."""

from collections.abc import Collection
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.errors import DatabaseAway
from worker.store.driver import fetch
from worker.store.versions import EPOCH

# A tombstone belongs to nobody. Otherwise a viewer learns nothing about what is not its own.
_CHECK: Final = text(
    f"SELECT {EPOCH}, ARRAY(SELECT client_session_uuid FROM ours.ingest_inbox AS inbox"
    " WHERE client_session_uuid = ANY(CAST(:uuids AS uuid[])) AND (erased_at IS NOT NULL"
    " OR viewer = CAST(:viewer AS text) OR EXISTS (SELECT FROM ours.viewer_grants AS granted"
    " WHERE granted.viewer = CAST(:viewer AS text) AND granted.user_id = inbox.user_id))"
    " UNION SELECT client_session_uuid FROM ours.ingest_dead_letters"
    " WHERE client_session_uuid = ANY(CAST(:uuids AS uuid[]))"
    " AND viewer = CAST(:viewer AS text))"
)


async def check(
    connection: AsyncConnection, viewer: str, client_session_uuids: Collection[UUID]
) -> tuple[str, set[UUID]]:
    """The epoch, and those of the batches that are ingested, erased, or kept as dead letters, and
    are the viewer's or those of a user that it is granted.

    Raises `DatabaseAway` on a standby, which may lag behind what viewers have been told.
    """
    wanted = {"viewer": viewer, "uuids": list(client_session_uuids)}
    ((epoch, found),) = await fetch(connection, _CHECK, wanted)
    if epoch is None:
        raise DatabaseAway("The database only reads: it is a standby.")
    return epoch, {*found}
