"""A user's rows taken away for good, and the tombstones that keep them from coming back.

A tombstone is an inbox row of nothing but the uuid: whoever publishes that batch again is told
that it was ingested, and nothing is stored.
"""

from collections.abc import Collection
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class Erased(NamedTuple):
    """How many rows of each kind are gone; `batches` are tombstones now."""

    attempts: int
    sessions: int
    progress: int
    batches: int
    messages: int


_ATTEMPTS_OF_USER: Final = (
    "study_question_attempts WHERE quiz_session_id IN"
    " (SELECT id FROM study_quiz_sessions WHERE user_id = :user_id)"
)

_COUNT: Final = text(
    f"SELECT (SELECT count(*) FROM {_ATTEMPTS_OF_USER}),"
    " (SELECT count(*) FROM ingest_inbox WHERE user_id = :user_id)"
)

# In the order of the uuids, as receipts are: two that want the same ones wait, never crosswise.
_BURY: Final = text(
    "INSERT INTO ingest_inbox (client_session_uuid, erased_at)"
    " SELECT uuid, now() FROM unnest(CAST(:uuids AS uuid[])) AS uuid ORDER BY uuid"
    " ON CONFLICT (client_session_uuid) DO NOTHING"
)

_MESSAGES: Final = text(
    "DELETE FROM outbox WHERE headers ->> 'client-session-uuid' IN"
    " (SELECT CAST(client_session_uuid AS text) FROM ingest_inbox WHERE user_id = :user_id"
    " UNION SELECT CAST(uuid AS text) FROM unnest(CAST(:uuids AS uuid[])) AS uuid)"
    " OR (exchange = 'study.followups' AND CAST(body AS jsonb) ->> 'user_id' = :user)"
)

_ATTEMPTS: Final = text(f"DELETE FROM {_ATTEMPTS_OF_USER}")
_SESSIONS: Final = text("DELETE FROM study_quiz_sessions WHERE user_id = :user_id")
_PROGRESS: Final = text("DELETE FROM study_question_progress WHERE user_id = :user_id")

_INBOX: Final = text(
    "UPDATE ingest_inbox SET content_digest = NULL, user_id = NULL, viewer = NULL,"
    " summary = NULL, received_at = now(), erased_at = now() WHERE user_id = :user_id"
)

_OWNER_OF_BATCH: Final = text("SELECT user_id FROM ingest_inbox WHERE client_session_uuid = :uuid")


async def count(connection: AsyncConnection, user_id: int) -> tuple[int, int]:
    """How many attempts and ingested batches the user has."""
    attempts, batches = (await connection.execute(_COUNT, {"user_id": user_id})).one()
    return attempts, batches


async def owner_of_batch(connection: AsyncConnection, client_session_uuid: UUID) -> int | None:
    """The principal of an ingested batch; None for one that is unknown or erased."""
    found = await connection.scalar(_OWNER_OF_BATCH, {"uuid": client_session_uuid})
    return None if found is None else int(found)


async def bury(connection: AsyncConnection, client_session_uuids: Collection[UUID]) -> None:
    """Makes tombstones of uuids that were never ingested; under the user's lock, as whoever else
    writes to the inbox has a principal's first.
    """
    await connection.execute(_BURY, {"uuids": list(client_session_uuids)})


async def erase(
    connection: AsyncConnection, user_id: int, client_session_uuids: Collection[UUID]
) -> Erased:
    """Takes away all that ingest ever wrote for the user, under the user's lock.

    `client_session_uuids` are batches that never were ingested: of them too nobody is told.
    """
    user = {"user_id": user_id}
    messages = await connection.execute(
        _MESSAGES, user | {"user": str(user_id), "uuids": list(client_session_uuids)}
    )
    attempts = await connection.execute(_ATTEMPTS, user)
    sessions = await connection.execute(_SESSIONS, user)
    progress = await connection.execute(_PROGRESS, user)
    batches = await connection.execute(_INBOX, user)
    return Erased(
        attempts.rowcount,
        sessions.rowcount,
        progress.rowcount,
        batches.rowcount,
        messages.rowcount,
    )
