"""Replays that were asked for: outbox rows of their own kind, each pointing at a dead letter.

The letter is taken away by the transaction that publishes it, so for good once the broker has
confirmed it. They are not in the outbox, because a relay of an older version would publish them as
follow-up jobs.
"""

from collections.abc import Collection
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store.driver import fetch


class Replay(NamedTuple):
    """A letter to publish once more. `message_id` is the same however often it is published."""

    message_id: UUID
    letter_id: int
    viewer: str | None
    routing_key: bytes
    client_session_uuid: UUID | None
    properties: bytes
    body: bytes


_AT_ONCE: Final = 100
_AT_ONCE_BYTES: Final = 8 * 1024**2
"""Of bodies that are taken together: at least one, however large it is."""

# One relay at a time.
_LOCK: Final = text(
    "SELECT pg_try_advisory_xact_lock(hashtextextended('study-ingest replays', 0))"
    " WHERE EXISTS (SELECT FROM ours.ingest_replays)"
)

_TAKE: Final = text(
    "SELECT message_id, letter_id, nullif(viewer, ''), routing_key, client_session_uuid,"
    " properties, body FROM (SELECT message_id, letter_id, replay.id,"
    " sum(coalesce(letter.body_bytes, 0)) OVER (ORDER BY replay.id) AS bytes,"
    " row_number() OVER (ORDER BY replay.id) AS place"
    " FROM (SELECT * FROM ours.ingest_replays ORDER BY id LIMIT :most) AS replay"
    " JOIN ours.ingest_dead_letters AS letter ON letter.id = replay.letter_id) AS oldest"
    " JOIN ours.ingest_dead_letters AS letter ON letter.id = oldest.letter_id"
    " WHERE bytes <= :bytes OR place = 1 ORDER BY oldest.id"
)

# Whose letter was discarded meanwhile. Only of the next ones: a hundred thousand may wait.
_FORGET: Final = text(
    "DELETE FROM ours.ingest_replays WHERE id IN (SELECT replay.id"
    " FROM (SELECT id, letter_id FROM ours.ingest_replays ORDER BY id LIMIT :most) AS replay"
    " LEFT JOIN ours.ingest_dead_letters AS letter ON letter.id = replay.letter_id"
    " WHERE letter.id IS NULL)"
)

_DONE: Final = text(
    "WITH gone AS (DELETE FROM ours.ingest_dead_letters WHERE id = ANY(CAST(:letters AS bigint[])))"
    " DELETE FROM ours.ingest_replays WHERE letter_id = ANY(CAST(:letters AS bigint[]))"
)

_CANCEL: Final = text(
    "DELETE FROM ours.ingest_replays WHERE letter_id = ANY(CAST(:letters AS bigint[]))"
)


async def take(connection: AsyncConnection) -> list[Replay]:
    """The replays that are to be published next, in their order; none while another relay has them.

    They are this transaction's until it ends.
    """
    locked = await fetch(connection, _LOCK, {})
    if not locked or not locked[0][0]:
        return []
    await fetch(connection, _FORGET, {"most": _AT_ONCE})
    rows = await fetch(connection, _TAKE, {"most": _AT_ONCE, "bytes": _AT_ONCE_BYTES})
    return [Replay(*row) for row in rows]


async def done(connection: AsyncConnection, letter_ids: Collection[int]) -> None:
    """Takes away replays that the broker has confirmed, and their letters."""
    await fetch(connection, _DONE, {"letters": list(letter_ids)})


async def cancel(connection: AsyncConnection, letter_ids: Collection[int]) -> None:
    """Takes away replays that the broker will never take; their letters stay."""
    await fetch(connection, _CANCEL, {"letters": list(letter_ids)})
