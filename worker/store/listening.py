"""Which viewers ask for a user's progress, by the grants that allow it."""

from collections.abc import Collection
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store.driver import fetch

# Two are enough to know that there are several.
_MAY_READ: Final = text(
    "WITH granted AS (SELECT user_id FROM ours.viewer_grants WHERE viewer = :viewer"
    " AND (CAST(:user_id AS bigint) IS NULL OR user_id = :user_id) LIMIT 2),"
    " noted AS (UPDATE ours.viewer_grants AS known SET asked_at = now() FROM granted"
    " WHERE (SELECT count(*) FROM granted) = 1"
    " AND known.viewer = :viewer AND known.user_id = granted.user_id"
    " AND (known.asked_at IS NULL OR known.asked_at < now() - interval '5 minutes'))"
    " SELECT user_id FROM granted"
)

_LISTENERS: Final = text(
    "SELECT user_id, viewer FROM ours.viewer_grants"
    " WHERE user_id = ANY(CAST(:user_ids AS bigint[])) AND asked_at IS NOT NULL"
    " AND asked_at > now() - interval '1 hour'"
)


async def may_read(connection: AsyncConnection, viewer: str, user_id: int | None) -> list[int]:
    """The user, if the viewer is granted it; without one, up to two of its users.

    If there is exactly one, it is noted that the viewer asks for it: after the commit it is among
    the `listeners`.
    """
    rows = await fetch(connection, _MAY_READ, {"viewer": viewer, "user_id": user_id})
    return [row[0] for row in rows]


async def listeners(
    connection: AsyncConnection, user_ids: Collection[int]
) -> list[tuple[int, str]]:
    """(user, viewer) for each viewer that has asked for the user's progress in the last hour."""
    rows = await fetch(connection, _LISTENERS, {"user_ids": list(user_ids)})
    return [(row[0], row[1]) for row in rows]
