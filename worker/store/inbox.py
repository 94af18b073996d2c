"""The inbox: one row for each ingested batch, the uniqueness wall of the whole system."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.ingest_result import IngestResult


class Known(NamedTuple):
    """An ingested batch: its content's digest, its principal and what its viewer was told."""

    content_digest: bytes
    user_id: int
    told: IngestResult


class Claim(NamedTuple):
    """A batch about to be ingested."""

    client_session_uuid: UUID
    content_digest: bytes
    user_id: int


_KNOWN: Final = text(
    "SELECT client_session_uuid, content_digest, user_id, CAST(summary AS text) FROM ingest_inbox"
    " WHERE client_session_uuid = ANY(CAST(:uuids AS uuid[]))"
)

# In the order of the uuids, so that two groups that share some wait for each other, never
# crosswise. A uuid that another transaction is claiming is waited for.
_CLAIM: Final = text(
    "INSERT INTO ingest_inbox (client_session_uuid, content_digest, user_id)"
    " SELECT * FROM unnest(CAST(:uuids AS uuid[]), CAST(:digests AS bytea[]),"
    " CAST(:users AS bigint[])) AS claim (client_session_uuid, content_digest, user_id)"
    " ORDER BY client_session_uuid"
    " ON CONFLICT (client_session_uuid) DO NOTHING"
    " RETURNING client_session_uuid, received_at"
)


async def known(connection: AsyncConnection, uuids: Iterable[UUID]) -> dict[UUID, Known]:
    """The committed rows among `uuids`."""
    rows = await connection.execute(_KNOWN, {"uuids": list(uuids)})
    return {
        uuid: Known(digest, user_id, IngestResult.model_validate_json(told))
        for uuid, digest, user_id, told in rows
    }


async def claim(connection: AsyncConnection, claims: Sequence[Claim]) -> dict[UUID, datetime]:
    """Takes the uuids for this transaction; returns the time of receipt of each that was free.

    A uuid that is not in the answer has been committed by another transaction.
    """
    rows = await connection.execute(
        _CLAIM,
        {
            "uuids": [claim.client_session_uuid for claim in claims],
            "digests": [claim.content_digest for claim in claims],
            "users": [claim.user_id for claim in claims],
        },
    )
    return {row[0]: row[1] for row in rows}
