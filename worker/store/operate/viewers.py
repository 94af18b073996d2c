"""What is known of each viewer: when it was last heard of, and what was rejected of it."""

from collections.abc import Collection
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

LATELY_DAYS: Final = 7
REJECTED_MAX: Final = 1_000


class Trace(NamedTuple):
    """What a viewer has left. None: nothing, as far as is known.

    `app` published its last batch. `asked_at` is when it last asked for progress.
    `rejected_lately` counts dead letters of the last 7 days, and 1,000 means that or more.
    """

    last_batch_at: datetime | None = None
    app: str | None = None
    asked_at: datetime | None = None
    last_rejected_at: datetime | None = None
    rejected_lately: int = 0

    @property
    def heard_at(self) -> datetime | None:
        """When it was last heard of."""
        known = [self.last_batch_at, self.asked_at, self.last_rejected_at]
        return max(filter(None, known), default=None)


_LAST: Final = (
    "LEFT JOIN LATERAL (SELECT received_at, client_session_uuid FROM ours.ingest_inbox AS inbox"
    " WHERE inbox.viewer = named.viewer ORDER BY received_at DESC LIMIT 1) AS last ON true"
)
_TRACES: Final = text(
    "SELECT named.viewer, last.received_at,"
    " (SELECT apps[array_position(client_session_uuids, last.client_session_uuid)]"
    " FROM ours.ingest_groups AS noted WHERE noted.received_at = last.received_at"
    " AND last.client_session_uuid = ANY(client_session_uuids) LIMIT 1),"
    " (SELECT max(asked_at) FROM ours.viewer_grants AS granted"
    " WHERE granted.viewer = named.viewer),"
    " letters.newest, letters.lately"
    f" FROM unnest(CAST(:viewers AS text[])) AS named (viewer) {_LAST}"
    " CROSS JOIN LATERAL (SELECT max(died_at) AS newest, count(*) FILTER"
    f" (WHERE died_at > now() - interval '{LATELY_DAYS} days') AS lately FROM"
    " (SELECT died_at FROM ours.ingest_dead_letters AS letter"
    " WHERE letter.viewer = named.viewer"
    f" ORDER BY died_at DESC LIMIT {REJECTED_MAX}) AS bounded) AS letters"
)


async def traces(connection: AsyncConnection, viewers: Collection[str]) -> dict[str, Trace]:
    """What is known of each of these viewers. It costs a few lookups for each."""
    found = await connection.execute(_TRACES, {"viewers": list(viewers)})
    return {row[0]: Trace(*row[1:]) for row in found}
