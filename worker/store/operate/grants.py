"""Grants: the principals for which each viewer may write."""

from collections.abc import Collection, Mapping
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_ADD: Final = text(
    "INSERT INTO ours.viewer_grants (viewer, user_id)"
    " SELECT :viewer, user_id FROM unnest(CAST(:users AS bigint[])) AS user_id"
    " ON CONFLICT DO NOTHING"
)

_ADD_ALL: Final = text(
    "INSERT INTO ours.viewer_grants (viewer, user_id)"
    " SELECT viewer, user_id FROM unnest(CAST(:viewers AS text[]), CAST(:users AS bigint[]))"
    " AS wanted (viewer, user_id) ORDER BY viewer, user_id"
    " ON CONFLICT DO NOTHING RETURNING viewer, user_id"
)

_REMOVE: Final = text(
    "DELETE FROM ours.viewer_grants WHERE viewer = :viewer"
    " AND (CAST(:users AS bigint[]) IS NULL OR user_id = ANY(CAST(:users AS bigint[])))"
)

_ALL: Final = text("SELECT viewer, user_id FROM ours.viewer_grants ORDER BY viewer, user_id")

_OF_VIEWER: Final = text(
    "SELECT user_id FROM ours.viewer_grants WHERE viewer = :viewer ORDER BY user_id LIMIT :limit"
)

_VIEWERS_OF: Final = text(
    "SELECT viewer FROM ours.viewer_grants WHERE user_id = :user_id ORDER BY viewer LIMIT :limit"
)


async def add(connection: AsyncConnection, viewer: str, users: Collection[int]) -> bool:
    """Allows `viewer` to write for `users`. Existing grants make no difference. Returns whether
    there is a new one.
    """
    done = await connection.execute(_ADD, {"viewer": viewer, "users": list(users)})
    return done.rowcount > 0


async def add_all(
    connection: AsyncConnection, wanted: Mapping[str, Collection[int]]
) -> dict[str, list[int]]:
    """Allows each viewer to write for its users. Returns the grants that are new."""
    pairs = [(viewer, user_id) for viewer, users in wanted.items() for user_id in users]
    values = {"viewers": [each for each, _ in pairs], "users": [each for _, each in pairs]}
    added: dict[str, list[int]] = {}
    for viewer, user_id in await connection.execute(_ADD_ALL, values):
        added.setdefault(viewer, []).append(user_id)
    return added


async def remove(connection: AsyncConnection, viewer: str, users: Collection[int] | None) -> bool:
    """Revokes the grants for `users`, or all if it is None. Returns whether there was one of
    them.
    """
    wanted = None if users is None else list(users)
    done = await connection.execute(_REMOVE, {"viewer": viewer, "users": wanted})
    return done.rowcount > 0


async def all_of(connection: AsyncConnection) -> dict[str, list[int]]:
    """The principals granted to each viewer, in order."""
    granted: dict[str, list[int]] = {}
    for viewer, user_id in await connection.execute(_ALL):
        granted.setdefault(viewer, []).append(user_id)
    return granted


async def of_viewer(connection: AsyncConnection, viewer: str, limit: int) -> list[int]:
    """The principals granted to one viewer, in order."""
    found = await connection.scalars(_OF_VIEWER, {"viewer": viewer, "limit": limit})
    return [*found]


async def viewers_of(connection: AsyncConnection, user_id: int, limit: int) -> list[str]:
    """The viewers that may write for the principal, by name."""
    return [*await connection.scalars(_VIEWERS_OF, {"user_id": user_id, "limit": limit})]
