"""Deletes a user's rows, and leaves the tombstones that prevent them from coming back.

A tombstone is an inbox row that has only the uuid. A viewer that publishes that batch again gets
the result that it was ingested, and nothing is stored.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class Erased(NamedTuple):
    """The number of deleted rows of each kind. `batches` are now tombstones."""

    attempts: int
    sessions: int
    progress: int
    batches: int
    messages: int


_ATTEMPTS_OF_USER: Final = (
    "ours.study_question_attempts WHERE quiz_session_id IN"
    " (SELECT id FROM ours.study_quiz_sessions WHERE user_id = :user_id)"
)

_COUNT: Final = text(
    f"SELECT (SELECT count(*) FROM {_ATTEMPTS_OF_USER}),"
    " (SELECT count(*) FROM ours.ingest_inbox WHERE user_id = :user_id)"
)

# In the order of the uuids, like ingest, so that there is no deadlock.
_BURY: Final = text(
    "INSERT INTO ours.ingest_inbox (client_session_uuid, erased_at)"
    " SELECT uuid, now() FROM unnest(CAST(:uuids AS uuid[])) AS uuid ORDER BY uuid"
    " ON CONFLICT (client_session_uuid) DO NOTHING"
)

_MESSAGES: Final = text(
    "DELETE FROM ours.outbox WHERE headers ->> 'client-session-uuid' IN"
    " (SELECT CAST(client_session_uuid AS text) FROM ours.ingest_inbox WHERE user_id = :user_id"
    " UNION SELECT CAST(uuid AS text) FROM unnest(CAST(:uuids AS uuid[])) AS uuid"
    # A letter may have the uuid of somebody else's batch, who still gets its result.
    " WHERE NOT EXISTS (SELECT FROM ours.ingest_inbox WHERE client_session_uuid = uuid"
    " AND user_id <> :user_id))"
    " OR (exchange = 'study.followups' AND CAST(body AS jsonb) ->> 'user_id' = :user)"
)

_ATTEMPTS: Final = text(f"DELETE FROM {_ATTEMPTS_OF_USER}")
_SESSIONS: Final = text("DELETE FROM ours.study_quiz_sessions WHERE user_id = :user_id")
_PROGRESS: Final = text("DELETE FROM ours.study_question_progress WHERE user_id = :user_id")

_INBOX: Final = text(
    "UPDATE ours.ingest_inbox SET content_digest = NULL, user_id = NULL, viewer = NULL,"
    " summary = NULL, received_at = now(), erased_at = now() WHERE user_id = :user_id"
)

_TOLD: Final = text(
    "SELECT client_session_uuid, viewer FROM ours.ingest_inbox"
    " WHERE user_id = :user_id AND viewer IS NOT NULL ORDER BY received_at"
)

_OWNER_OF_BATCH: Final = text(
    "SELECT user_id FROM ours.ingest_inbox WHERE client_session_uuid = :uuid"
)


_SINCE: Final = text(
    "SELECT count(*) FROM ours.ingest_inbox WHERE user_id = :user_id AND received_at > :since"
)


async def ingested_since(connection: AsyncConnection, user_id: int, since: datetime) -> int:
    """The number of the user's batches that were received after this moment."""
    found = await connection.scalar(_SINCE, {"user_id": user_id, "since": since})
    return int(found or 0)


async def count(connection: AsyncConnection, user_id: int) -> tuple[int, int]:
    """The number of attempts and of ingested batches of the user."""
    attempts, batches = (await connection.execute(_COUNT, {"user_id": user_id})).one()
    return attempts, batches


async def owner_of_batch(connection: AsyncConnection, client_session_uuid: UUID) -> int | None:
    """The principal of an ingested batch. None if the batch is unknown or erased."""
    found = await connection.scalar(_OWNER_OF_BATCH, {"uuid": client_session_uuid})
    return None if found is None else int(found)


async def told(connection: AsyncConnection, user_id: int) -> list[tuple[UUID, str]]:
    """The user's ingested batches whose viewer is known, and that viewer."""
    rows = await connection.execute(_TOLD, {"user_id": user_id})
    return [(uuid, viewer) for uuid, viewer in rows]


async def bury(connection: AsyncConnection, client_session_uuids: Collection[UUID]) -> None:
    """Adds tombstones for uuids that were never ingested. Hold the user's lock, because everybody
    else who writes to the inbox locks a principal first.
    """
    await connection.execute(_BURY, {"uuids": list(client_session_uuids)})


async def erase(
    connection: AsyncConnection, user_id: int, client_session_uuids: Collection[UUID]
) -> Erased:
    """Deletes everything that ingest ever wrote for the user. Hold the user's lock.

    `client_session_uuids` are batches that were never ingested. Nobody gets results about them
    either.
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
