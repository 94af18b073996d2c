"""What only the moment knows: which worker committed a batch, when it was published, and when its
viewer was told. It is kept for 30 days (`worker.store.prune`).

One row tells it of a whole group, and one of the results that a relay took together, so that it
costs ingest next to nothing. Rows are found by the time of receipt of their batches, in whose order
they are written. Workers of older versions write none.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store.driver import Write, fetch


class Published(NamedTuple):
    """What a viewer said of a batch when it published it. None is not known."""

    client_session_uuid: UUID
    at: datetime | None
    app: str | None


class Told(NamedTuple):
    """A result that is published. That of a first ingest was written at its batch's time of
    receipt.
    """

    written_at: datetime
    client_session_uuid: str


# The time of receipt is that of the transaction, as in the inbox.
_GROUP: Final = text(
    "INSERT INTO ours.ingest_groups (received_at, worker, deliveries, milliseconds,"
    " client_session_uuids, published_at, apps) VALUES (now(), CAST(:moment_worker AS text),"
    " CAST(:moment_deliveries AS integer),"
    " extract(epoch FROM clock_timestamp() - now()) * 1000, CAST(:moment_uuids AS uuid[]),"
    " CAST(:moment_times AS timestamptz[]), CAST(:moment_apps AS text[]))"
)

_TELL: Final = text(
    "INSERT INTO ours.ingest_told (received_at, told_at, client_session_uuids)"
    " SELECT written_at, clock_timestamp(), array_agg(uuid)"
    " FROM unnest(CAST(:times AS timestamptz[]), CAST(:uuids AS uuid[])) AS told (written_at, uuid)"
    " GROUP BY written_at"
)


def noting(worker: str, deliveries: int, batches: Sequence[Published]) -> list[Write]:
    """The writes that note who commits these batches, in a group of so many deliveries, for
    `write`.
    """
    if not batches:
        return []
    uuids, times, apps = zip(*batches, strict=True)
    parameters = {
        "moment_worker": worker,
        "moment_deliveries": deliveries,
        "moment_uuids": uuids,
        "moment_times": times,
        "moment_apps": apps,
    }
    return [Write(_GROUP, parameters)]


async def tell(connection: AsyncConnection, told: Collection[Told]) -> None:
    """Notes that the broker has these results now."""
    if not told:
        return
    times, uuids = zip(*told, strict=True)
    await fetch(connection, _TELL, {"times": times, "uuids": uuids})
