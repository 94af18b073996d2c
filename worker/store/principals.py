"""The lock of a principal: every transaction that changes a user's history holds it until it
commits. And the turns of ingest: how many transactions hold such locks at once.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

from asyncpg import LockNotAvailableError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.errors import NoTurn, PrincipalInUse
from worker.store.driver import fetch
from worker.store.ours import PUBLIC, schema_of

_LOCK: Final = text(
    "SELECT pg_advisory_xact_lock(key) FROM"
    " (SELECT key FROM unnest(CAST(:keys AS bigint[])) AS key ORDER BY key) AS sorted"
)


_TURNS: Final = 0x7374_7564
"""The class of the advisory locks that are turns. A lock of two numbers is never a principal's."""

# A free turn, or the wait for one of them: once for each statement, before any other lock. After
# that, an attempt never waits, so there is no deadlock, whatever the order.
_LOCK_FREE: Final = text(
    "SELECT key FROM unnest(CAST(:keys AS bigint[])) AS key WHERE CASE WHEN (SELECT coalesce("
    "(SELECT TRUE FROM generate_series(1, CAST(:turns AS integer)) AS turn"
    " WHERE pg_try_advisory_xact_lock(CAST(:class AS integer), turn) LIMIT 1),"
    " pg_advisory_xact_lock(CAST(:class AS integer), 1 + floor(random() * :turns)::integer)"
    " IS NOT NULL))"
    " THEN pg_try_advisory_xact_lock(key) END"
)
# Without a turn.
_LOCK_FREE_NOW: Final = text(
    "SELECT key FROM unnest(CAST(:keys AS bigint[])) AS key WHERE pg_try_advisory_xact_lock(key)"
)


async def lock(connection: AsyncConnection, user_ids: Iterable[int]) -> None:
    """Waits for the locks of all `user_ids`, always in the same order, so there is no deadlock.

    Raises `PrincipalInUse` if another transaction does not release one within the lock timeout.
    """
    schema = schema_of(connection)
    keys = sorted({_key(user_id, schema) for user_id in user_ids})
    try:
        await fetch(connection, _LOCK, {"keys": keys})
    except LockNotAvailableError as error:
        raise PrincipalInUse(
            "Another transaction held a user's history for longer than INGEST_LOCK_TIMEOUT:"
            " run it again later."
        ) from error


async def lock_free(
    connection: AsyncConnection, user_ids: Iterable[int], turns: int | None
) -> set[int]:
    """Takes those locks of `user_ids` that nobody else holds, and returns these users.

    With `turns` it first waits until fewer than that many transactions hold a turn, and takes one
    until the commit. Raises `NoTurn` if it waits for longer than the lock timeout.
    """
    schema = schema_of(connection)
    wanted = {_key(user_id, schema): user_id for user_id in user_ids}
    keys = list(wanted)
    try:
        free = (
            await fetch(connection, _LOCK_FREE_NOW, {"keys": keys})
            if turns is None
            else await fetch(
                connection, _LOCK_FREE, {"keys": keys, "turns": turns, "class": _class(schema)}
            )
        )
    except LockNotAvailableError as error:
        raise NoTurn("Other ingest transactions held all turns for too long.") from error
    return {wanted[key] for (key,) in free}


def _class(schema: str) -> int:
    """The class of the turns of one installation."""
    if schema == PUBLIC:
        return _TURNS
    digest = hashlib.blake2b(f"study-ingest {schema} turns".encode(), digest_size=4).digest()
    return int.from_bytes(digest, signed=True)


def _key(user_id: int, schema: str) -> int:
    # Hashed, to avoid collisions with other uses of advisory locks in the same database.
    name = "principal" if schema == PUBLIC else f"{schema} principal"
    digest = hashlib.blake2b(f"study-ingest {name} {user_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
