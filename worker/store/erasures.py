"""Who was erased, and when, so that older answers are not stored again.

A row stays for ever, because a phone may come back after years. It has a user id and a time.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.domain.records import Mark
from worker.store.driver import fetch
from worker.store.versions import EPOCH

_OF_USERS: Final = text(
    "SELECT user_id, erased_at FROM ours.ingest_erasures WHERE user_id = ANY(CAST(:users AS"
    " bigint[]))"
)

_SINCE: Final = text(
    "SELECT user_id, erased_at FROM ours.ingest_erasures"
    " WHERE CAST(:since AS timestamptz) IS NULL OR erased_at >= :since ORDER BY erased_at, user_id"
)

_REMEMBER: Final = text(
    "INSERT INTO ours.ingest_erasures (user_id, erased_at)"
    " VALUES (:user_id, coalesce(CAST(:at AS timestamptz), clock_timestamp()))"
    " ON CONFLICT (user_id) DO UPDATE SET"
    " erased_at = greatest(ingest_erasures.erased_at, excluded.erased_at)"
    f" RETURNING erased_at, {EPOCH}, version"
)


async def of_users(
    connection: AsyncConnection, user_ids: Collection[int]
) -> dict[int | None, datetime]:
    """The time at which each user was erased. Users who never were are left out."""
    rows = await fetch(connection, _OF_USERS, {"users": list(user_ids)})
    return {row[0]: row[1] for row in rows}


async def since(connection: AsyncConnection, then: datetime | None) -> list[tuple[int, datetime]]:
    """The users who were erased since, and when, by time. None means ever."""
    return [(row[0], row[1]) for row in await connection.execute(_SINCE, {"since": then})]


async def remember(
    connection: AsyncConnection, user_id: int, at: datetime | None = None
) -> tuple[datetime, Mark]:
    """Records that the user is erased now, or was `at` a moment before. Returns the time, and the
    version of the erasure. Hold the user's lock.
    """
    row = (await connection.execute(_REMEMBER, {"user_id": user_id, "at": at})).one()
    erased_at, epoch, version = row
    return erased_at, Mark(epoch, version)
