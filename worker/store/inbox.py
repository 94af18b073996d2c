"""The inbox: one row for each ingested batch. Its unique key guarantees a single ingest."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from asyncpg import UniqueViolationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.ingest_result import IngestResult
from schemas.words import Status
from worker.domain.records import Mark
from worker.errors import UuidTaken
from worker.store.driver import fetch
from worker.store.versions import EPOCH, NEXT


class Known(NamedTuple):
    """An ingested batch: the digest of its content, its principal, and the result that its viewer
    got.

    An erased batch has no digest and no principal. Its result, and one that is pruned, only says
    that it was ingested.
    """

    content_digest: bytes | None
    user_id: int | None
    told: IngestResult


class Look(NamedTuple):
    """What the decision about a group depends on, besides its questions."""

    received_at: datetime
    """The time of the transaction."""
    mark: Mark
    """The version that the transaction gives to the progress that it changes."""
    known: Mapping[UUID, Known]
    erased_at: Mapping[int, datetime]
    """The time of the last erasure of each user. Users who were never erased are left out."""


class Receipt(NamedTuple):
    """What is kept of a batch that was ingested. `told` is its result as JSON.

    All but the uuid is None of a batch whose every answer is erased.
    """

    client_session_uuid: UUID
    content_digest: bytes | None = None
    user_id: int | None = None
    viewer: str | None = None
    told: str | None = None


# At least one row, for the time. The version is drawn once, because the subquery gives one row.
_LOOK: Final = text(
    "SELECT now(), erased_users, erased_times, epoch, drawn, client_session_uuid, content_digest,"
    " user_id, CAST(summary AS text), received_at, erased_at FROM"
    " (SELECT array_agg(user_id) AS erased_users, array_agg(erased_at) AS erased_times,"
    f" {EPOCH} AS epoch, {NEXT} AS drawn"
    " FROM ours.ingest_erasures WHERE user_id = ANY(CAST(:users AS bigint[]))) AS once"
    " LEFT JOIN ours.ingest_inbox ON client_session_uuid = ANY(CAST(:uuids AS uuid[]))"
)

# In the order of the uuids, so that two groups with common uuids can't deadlock. The time of
# receipt is the column's default, which is the time of the transaction.
_RECORD: Final = text(
    "INSERT INTO ours.ingest_inbox (client_session_uuid, content_digest, user_id, viewer, summary,"
    " erased_at) SELECT receipt.*, CASE WHEN content_digest IS NULL THEN now() END"
    " FROM unnest(CAST(:uuids AS uuid[]), CAST(:digests AS bytea[]),"
    " CAST(:users AS bigint[]), CAST(:viewers AS text[]), CAST(:summaries AS jsonb[]))"
    " AS receipt (client_session_uuid, content_digest, user_id, viewer, summary)"
    " ORDER BY client_session_uuid"
)
_WALL: Final = "ingest_inbox_pkey"

_RETELL: Final = text(
    "UPDATE ours.ingest_inbox AS inbox SET summary = told.summary"
    " FROM unnest(CAST(:uuids AS uuid[]), CAST(:summaries AS jsonb[])) AS told (uuid, summary)"
    " WHERE inbox.client_session_uuid = told.uuid"
)


async def look(connection: AsyncConnection, uuids: Iterable[UUID], user_ids: Iterable[int]) -> Look:
    """The time of the transaction, a new version, the committed rows among `uuids`, and the erasure
    times of `user_ids`. Hold the locks of these users.
    """
    rows = await fetch(connection, _LOOK, {"uuids": list(uuids), "users": list(user_ids)})
    now, users, times, epoch, drawn = rows[0][:5]
    known = {
        uuid: Known(digest, user_id, _told(uuid, told, received_at, erased_at))
        for *_, uuid, digest, user_id, told, received_at, erased_at in rows
        if uuid is not None
    }
    return Look(now, Mark(epoch, drawn), known, dict(zip(users or (), times or (), strict=True)))


def _told(
    uuid: UUID, told: str | None, received_at: datetime, erased_at: datetime | None
) -> IngestResult:
    if told is not None:
        return IngestResult.model_validate_json(told)
    return IngestResult(
        client_session_uuid=uuid,
        status=Status.ALREADY_INGESTED,
        received_at=received_at,
        erased_at=erased_at,
        pruned=True if erased_at is None else None,
    )


async def add(connection: AsyncConnection, receipts: Sequence[Receipt]) -> None:
    """Records batches as received in this transaction, at its time, before anything else is
    written.

    It waits for another transaction that is receiving one of the uuids, and raises `UuidTaken` if
    that transaction commits.
    """
    if not receipts:
        return
    uuids, digests, users, viewers, summaries = zip(*receipts, strict=True)
    try:
        await fetch(
            connection,
            _RECORD,
            {
                "uuids": uuids,
                "digests": digests,
                "users": users,
                "viewers": viewers,
                "summaries": summaries,
            },
        )
    except UniqueViolationError as error:
        if error.constraint_name != _WALL:
            raise
        raise UuidTaken(
            "Another worker has ingested a batch with the same uuid in the meantime."
        ) from error


async def retell(connection: AsyncConnection, told: Mapping[UUID, str]) -> None:
    """Replaces the results (as JSON) that are sent when these batches arrive again."""
    await fetch(connection, _RETELL, {"uuids": list(told), "summaries": list(told.values())})
