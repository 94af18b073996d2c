"""Which viewers have fallen silent: a broken application looks like this, and like a holiday."""

from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store.driver import fetch

_WEEKS: Final = 3

# The server of an application may have a million grants, of which this reads one.
_VIEWERS: Final = (
    "WITH RECURSIVE named (viewer) AS ("
    "(SELECT viewer FROM ours.viewer_grants ORDER BY viewer LIMIT 1) UNION ALL"
    " SELECT (SELECT its.viewer FROM ours.viewer_grants AS its"
    " WHERE its.viewer > named.viewer ORDER BY its.viewer LIMIT 1)"
    " FROM named WHERE named.viewer IS NOT NULL)"
)
# It published in each of the weeks before its last batch, which are looked up one by one.
_WEEKLY: Final = " AND ".join(
    "EXISTS (SELECT FROM ours.ingest_inbox AS inbox WHERE inbox.viewer = named.viewer"
    f" AND inbox.received_at < last.received_at - interval '{7 * week} days'"
    f" AND inbox.received_at >= last.received_at - interval '{7 * (week + 1)} days')"
    for week in range(_WEEKS)
)
_FALLEN_SILENT: Final = text(
    f"{_VIEWERS} SELECT named.viewer FROM named CROSS JOIN LATERAL"
    " (SELECT received_at FROM ours.ingest_inbox AS inbox"
    " WHERE inbox.viewer = named.viewer ORDER BY received_at DESC LIMIT 1) AS last"
    " WHERE last.received_at < now() - interval '7 days'"
    f" AND last.received_at > now() - interval '21 days' AND {_WEEKLY} ORDER BY 1"
)


async def fallen_silent(connection: AsyncConnection) -> list[str]:
    """The viewers with a grant that published in each of three weeks, and nothing for one to three
    weeks since. It costs a few lookups for each viewer.
    """
    return [row[0] for row in await fetch(connection, _FALLEN_SILENT, {})]
