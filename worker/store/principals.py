"""The lock of a principal: every transaction that changes a user's history holds it until it
commits.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

from asyncpg import LockNotAvailableError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.errors import PrincipalInUse
from worker.store.driver import fetch

_LOCK: Final = text(
    "SELECT pg_advisory_xact_lock(key) FROM"
    " (SELECT key FROM unnest(CAST(:keys AS bigint[])) AS key ORDER BY key) AS sorted"
)


# An attempt never waits, so there is no deadlock, whatever the order.
_LOCK_FREE: Final = text(
    "SELECT key FROM unnest(CAST(:keys AS bigint[])) AS key WHERE pg_try_advisory_xact_lock(key)"
)


async def lock(connection: AsyncConnection, user_ids: Iterable[int]) -> None:
    """Waits for the locks of all `user_ids`, always in the same order, so there is no deadlock.

    Raises `PrincipalInUse` if another transaction does not release one within the lock timeout.
    """
    keys = sorted({_key(user_id) for user_id in user_ids})
    try:
        await fetch(connection, _LOCK, {"keys": keys})
    except LockNotAvailableError as error:
        raise PrincipalInUse(
            "Another transaction held a user's history for longer than INGEST_LOCK_TIMEOUT:"
            " run it again later."
        ) from error


async def lock_free(connection: AsyncConnection, user_ids: Iterable[int]) -> set[int]:
    """Takes those locks of `user_ids` that nobody else holds, and returns these users."""
    wanted = {_key(user_id): user_id for user_id in user_ids}
    free = await fetch(connection, _LOCK_FREE, {"keys": list(wanted)})
    return {wanted[key] for (key,) in free}


def _key(user_id: int) -> int:
    # Hashed, to avoid collisions with other uses of advisory locks in the same database.
    digest = hashlib.blake2b(b"study-ingest principal %d" % user_id, digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
