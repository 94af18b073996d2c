"""The transactional outbox: messages that are published if, and only if, their cause is committed.

Rows wait in the order of their ids within a routing key, which names the viewer for results. The
transaction that publishes a row deletes it, so it is gone once the broker has confirmed it.
"""

import json
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas import amqp
from worker.domain.records import Message
from worker.store.driver import Write, fetch
from worker.store.literals import as_text, texts


class Waiting(NamedTuple):
    """A row of the outbox."""

    id: int
    message: Message
    created_at: datetime


class Backlog(NamedTuple):
    """The number of waiting rows (100,000 means that or more), and the age in seconds of the oldest
    row and of the oldest result.
    """

    messages: int
    oldest_age: float
    oldest_result_age: float


class KindBacklog(NamedTuple):
    """What waits of one kind of follow-up jobs: how many (100,000 means that or more), and since
    when.
    """

    kind: str
    jobs: int
    since: datetime


_RECORD: Final = text(
    "INSERT INTO ours.outbox (message_id, exchange, routing_key, type, headers, body)"
    " SELECT message_id, exchange, routing_key, type, headers, body FROM unnest("
    f"CAST(:message_ids AS uuid[]), {as_text('exchanges', 'text')}, {as_text('keys', 'text')},"
    f" {as_text('types', 'text')}, CAST(:headers AS jsonb[]), CAST(:bodies AS text[]))"
    " WITH ORDINALITY AS message (message_id, exchange, routing_key, type, headers, body, place)"
    " ORDER BY place"
)

_IS_JOB: Final = f"exchange <> '{amqp.RESULTS_EXCHANGE}'"

# Each step finds the next one in the index, however many rows there are of each.
_KINDS: Final = (
    f"kind (routing_key) AS (SELECT min(routing_key) FROM ours.outbox WHERE {_IS_JOB}"
    f" UNION ALL SELECT (SELECT min(outbox.routing_key) FROM ours.outbox WHERE {_IS_JOB}"
    " AND outbox.routing_key > kind.routing_key) FROM kind WHERE kind.routing_key IS NOT NULL)"
)

# The oldest results and the oldest jobs of each kind, without those that are held, so that none
# waits for another that can't be published. This statement's snapshot may still contain rows that
# another relay has just published, although their key's lock is free. The DELETE skips those rows,
# because they are gone.
_TAKE: Final = text(
    f"WITH RECURSIVE {_KINDS}, oldest AS MATERIALIZED ("
    f"(SELECT id, routing_key FROM ours.outbox WHERE exchange = '{amqp.RESULTS_EXCHANGE}'"
    " AND routing_key <> ALL(CAST(:held AS text[])) ORDER BY id LIMIT :results) UNION ALL"
    " (SELECT job.id, kind.routing_key FROM kind CROSS JOIN LATERAL"
    f" (SELECT id FROM ours.outbox WHERE {_IS_JOB} AND outbox.routing_key = kind.routing_key"
    " ORDER BY outbox.routing_key, id LIMIT :jobs) AS job"
    " WHERE kind.routing_key <> ALL(CAST(:held AS text[])) ORDER BY job.id LIMIT :jobs)),"
    " locked AS MATERIALIZED ("
    "SELECT routing_key FROM (SELECT DISTINCT routing_key FROM oldest) AS waiting"
    " WHERE pg_try_advisory_xact_lock(hashtextextended('study-ingest outbox ' || routing_key, 0)))"
    " DELETE FROM ours.outbox WHERE id = ANY(ARRAY("
    "SELECT oldest.id FROM oldest JOIN locked ON locked.routing_key = oldest.routing_key))"
    " RETURNING id, message_id, exchange, routing_key, type, CAST(headers AS text), body,"
    " created_at"
)


def _age(rows: str) -> str:
    return (
        " coalesce(CAST(extract(epoch FROM clock_timestamp() - (SELECT min(created_at) FROM"
        f" (SELECT created_at FROM ours.outbox {rows} ORDER BY id LIMIT 1000) AS first))"
        " AS double precision), 0)"
    )


# The count is limited, because beyond that nobody needs the exact number.
_BACKLOG: Final = text(
    "SELECT (SELECT count(*) FROM (SELECT FROM ours.outbox LIMIT 100000) AS counted),"
    + _age("")
    + ","
    + _age(f"WHERE exchange = '{amqp.RESULTS_EXCHANGE}'")
)

_KIND_BACKLOGS: Final = text(
    f"WITH RECURSIVE {_KINDS} SELECT kind.routing_key,"
    f" (SELECT count(*) FROM (SELECT FROM ours.outbox WHERE {_IS_JOB}"
    " AND outbox.routing_key = kind.routing_key LIMIT 100000) AS counted),"
    f" (SELECT min(created_at) FROM (SELECT created_at FROM ours.outbox WHERE {_IS_JOB}"
    " AND outbox.routing_key = kind.routing_key ORDER BY outbox.routing_key, id LIMIT 1000)"
    " AS first) FROM kind WHERE kind.routing_key IS NOT NULL ORDER BY kind.routing_key"
)

_DELETE: Final = text("DELETE FROM ours.outbox WHERE id = ANY(CAST(:ids AS bigint[]))")

_WITHDRAW: Final = text("DELETE FROM ours.outbox WHERE message_id = ANY(CAST(:ids AS uuid[]))")


def recording(messages: Sequence[Message]) -> list[Write]:
    """The writes that add the messages, in order, for `write`."""
    if not messages:
        return []
    ids, exchanges, keys, types, headers, bodies = zip(*messages, strict=True)
    parameters = {
        "message_ids": ids,
        "exchanges": texts(exchanges),
        "keys": texts(keys),
        "types": texts(types),
        "headers": [to_json(each).decode() for each in headers],
        "bodies": bodies,
    }
    return [Write(_RECORD, parameters)]


async def take(
    connection: AsyncConnection, *, results: int, jobs: int, held: Collection[str] = ()
) -> list[Waiting]:
    """Takes up to this many results and follow-up jobs from the outbox, in order. Results come
    first, because somebody waits for them. Messages with a routing key in `held` stay.

    This transaction holds their routing keys until it ends, so that no other relay can overtake it.
    If it is rolled back, the rows are there again.
    """
    wanted = {"results": results, "jobs": jobs, "held": list(held)}
    found = await fetch(connection, _TAKE, wanted)
    taken = [
        Waiting(row[0], Message(row[1], row[2], row[3], row[4], json.loads(row[5]), row[6]), row[7])
        for row in found
    ]
    return sorted(taken, key=lambda row: (row.message.is_job, row.id))


async def backlog(connection: AsyncConnection) -> Backlog:
    """What waits in the outbox."""
    return Backlog(*(await connection.execute(_BACKLOG)).one())


async def kind_backlogs(connection: AsyncConnection) -> list[KindBacklog]:
    """What waits of each kind of follow-up jobs, by kind. A kind of which none waits is left
    out.
    """
    return [KindBacklog(*row) for row in await connection.execute(_KIND_BACKLOGS)]


async def delete(connection: AsyncConnection, ids: Collection[int]) -> None:
    """Deletes rows that the broker has confirmed."""
    await fetch(connection, _DELETE, {"ids": list(ids)})


async def withdraw(connection: AsyncConnection, message_ids: Collection[UUID]) -> None:
    """Deletes messages that are not published yet. Published ones can't be taken back."""
    await connection.execute(_WITHDRAW, {"ids": list(message_ids)})
