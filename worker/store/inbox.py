"""The inbox: one row for each ingested batch, the uniqueness wall of the whole system."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.ingest_result import IngestResult
from schemas.words import Status
from worker.store.driver import fetch


class Known(NamedTuple):
    """An ingested batch: its content's digest, its principal and what its viewer was told.

    Of an erased one neither is left, and nothing is told but that it was ingested.
    """

    content_digest: bytes | None
    user_id: int | None
    told: IngestResult


class Claim(NamedTuple):
    """A batch about to be ingested."""

    client_session_uuid: UUID
    content_digest: bytes
    user_id: int
    viewer: str | None


_KNOWN: Final = text(
    "SELECT client_session_uuid, content_digest, user_id, CAST(summary AS text), received_at"
    " FROM ingest_inbox"
    " WHERE client_session_uuid = ANY(CAST(:uuids AS uuid[]))"
)

# In the order of the uuids, so that two groups that share some wait for each other, never
# crosswise. A uuid that another transaction is claiming is waited for.
_CLAIM: Final = text(
    "INSERT INTO ingest_inbox (client_session_uuid, content_digest, user_id, viewer)"
    " SELECT * FROM unnest(CAST(:uuids AS uuid[]), CAST(:digests AS bytea[]),"
    " CAST(:users AS bigint[]), CAST(:viewers AS text[]))"
    " AS claim (client_session_uuid, content_digest, user_id, viewer)"
    " ORDER BY client_session_uuid"
    " ON CONFLICT (client_session_uuid) DO NOTHING"
    " RETURNING client_session_uuid, received_at"
)


async def known(connection: AsyncConnection, uuids: Iterable[UUID]) -> dict[UUID, Known]:
    """The committed rows among `uuids`."""
    rows = await fetch(connection, _KNOWN, {"uuids": list(uuids)})
    return {
        uuid: Known(digest, user_id, _told(uuid, told, received_at))
        for uuid, digest, user_id, told, received_at in rows
    }


def _told(uuid: UUID, told: str | None, received_at: datetime) -> IngestResult:
    if told is not None:
        return IngestResult.model_validate_json(told)
    return IngestResult(
        client_session_uuid=uuid, status=Status.ALREADY_INGESTED, received_at=received_at
    )


async def claim(connection: AsyncConnection, claims: Sequence[Claim]) -> dict[UUID, datetime]:
    """Takes the uuids for this transaction; returns the time of receipt of each that was free.

    A uuid that is not in the answer has been committed by another transaction.
    """
    rows = await fetch(
        connection,
        _CLAIM,
        {
            "uuids": [claim.client_session_uuid for claim in claims],
            "digests": [claim.content_digest for claim in claims],
            "users": [claim.user_id for claim in claims],
            "viewers": [claim.viewer for claim in claims],
        },
    )
    return {row[0]: row[1] for row in rows}
