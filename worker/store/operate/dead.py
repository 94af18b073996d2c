"""Dead letters as an operator asks for them: by reason, viewer, batch and age; oldest first.

Each statement finds its rows by an index or reads the table once; no letter changes by being looked
at.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.words import RejectReason


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters are meant: those that fit everything that is given."""

    ids: frozenset[int] = frozenset()
    reasons: frozenset[str] = frozenset()
    viewers: frozenset[str] = frozenset()
    uuids: frozenset[UUID] = frozenset()
    older_than: timedelta | None = None
    newer_than: timedelta | None = None
    details: frozenset[str] = frozenset()

    @property
    def is_everything(self) -> bool:
        return self == Wanted()


class Brief(NamedTuple):
    """A letter without its content."""

    id: int
    died_at: datetime
    reason: str
    detail: str
    viewer: str | None
    routing_key: bytes
    client_session_uuid: UUID | None
    body_bytes: int
    is_whole: bool
    """Whether the whole body is kept; if not, the letter can't be replayed."""
    is_leaving: bool
    """Whether a replay was asked for, and has not left yet."""


class Letter(NamedTuple):
    """A letter with its content; `properties` are an AMQP field table."""

    brief: Brief
    properties: bytes
    body: bytes
    body_sha256: bytes | None


class Group(NamedTuple):
    """Letters that died of the same, from the same viewer; `example` is the id of the oldest."""

    reason: str
    detail: str
    viewer: str | None
    letters: int
    first: datetime
    last: datetime
    example: int


class Overview(NamedTuple):
    """All dead letters together, counted up to `COUNTED_MAX`."""

    by_reason: dict[str, int]
    oldest: datetime | None
    leaving: int
    """Replays that were asked for, and have not left yet, counted as far."""

    @property
    def letters(self) -> int:
        """How many there are."""
        return sum(self.by_reason.values())


class Asked(NamedTuple):
    """A replay that was asked for."""

    message_id: UUID
    client_session_uuid: UUID | None
    is_reused: bool
    """Whether another batch was ingested under its uuid: so the inbox tells nothing about it."""


COUNTED_MAX: Final = 100_000
"""Letters after which an overview stops counting: `dead list` counts all of them."""

Place = tuple[datetime, int]
"""Where a letter stands among all others: when it died, and its id."""

_BRIEF: Final = (
    "id, died_at, reason, detail, nullif(viewer, ''), routing_key, client_session_uuid, body_bytes,"
    " body_sha256 IS NULL, EXISTS (SELECT FROM ours.ingest_replays WHERE letter_id = letter.id)"
)
_FROM: Final = "FROM ours.ingest_dead_letters AS letter"
# An engine's plans are for finding few rows by their keys.
_READ_ALL: Final = text("SET LOCAL enable_seqscan = on")


def _where(wanted: Wanted, *more: str) -> tuple[str, dict[str, Any]]:
    conditions, values = [*more], dict[str, Any]()
    if wanted.ids:
        conditions.append("id = ANY(CAST(:ids AS bigint[]))")
        values["ids"] = sorted(wanted.ids)
    if wanted.reasons:
        conditions.append("reason = ANY(CAST(:reasons AS text[]))")
        values["reasons"] = sorted(wanted.reasons)
    if wanted.viewers:
        conditions.append("viewer = ANY(CAST(:viewers AS text[]))")
        values["viewers"] = sorted(wanted.viewers)
    if wanted.details:
        conditions.append("detail = ANY(CAST(:details AS text[]))")
        values["details"] = sorted(wanted.details)
    if wanted.uuids:
        conditions.append("client_session_uuid = ANY(CAST(:uuids AS uuid[]))")
        values["uuids"] = list(wanted.uuids)
    if wanted.older_than is not None:
        conditions.append("died_at < now() - CAST(:older AS interval)")
        values["older"] = wanted.older_than
    if wanted.newer_than is not None:
        conditions.append("died_at > now() - CAST(:newer AS interval)")
        values["newer"] = wanted.newer_than
    return (f"WHERE {' AND '.join(conditions)}" if conditions else ""), values


async def overview(connection: AsyncConnection) -> Overview:
    """How many letters there are, why, and since when. It is asked every few seconds."""
    counts = await connection.execute(
        text(
            f"SELECT reason, count(*) FROM (SELECT reason {_FROM} LIMIT {COUNTED_MAX}) AS counted"
            " GROUP BY reason ORDER BY count(*) DESC, reason"
        )
    )
    by_reason = {row[0]: row[1] for row in counts}
    oldest = await connection.scalar(text("SELECT min(died_at) FROM ours.ingest_dead_letters"))
    leaving = await connection.scalar(
        text(
            f"SELECT count(*) FROM (SELECT FROM ours.ingest_replays LIMIT {COUNTED_MAX}) AS counted"
        )
    )
    return Overview(by_reason, oldest, int(leaving or 0))


async def groups(connection: AsyncConnection, wanted: Wanted, limit: int) -> list[Group]:
    """The largest groups of the letters that are wanted."""
    where, values = _where(wanted)
    await connection.execute(_READ_ALL)
    found = await connection.execute(
        text(
            "SELECT reason, detail, nullif(viewer, ''), count(*), min(died_at), max(died_at),"
            f" min(id) {_FROM} {where} GROUP BY reason, detail, viewer"
            " ORDER BY count(*) DESC, min(died_at), reason, detail, viewer LIMIT :limit"
        ),
        values | {"limit": limit},
    )
    return [Group(*row) for row in found]


async def count(connection: AsyncConnection, wanted: Wanted) -> int:
    """How many letters are wanted."""
    where, values = _where(wanted)
    return int(await connection.scalar(text(f"SELECT count(*) {_FROM} {where}"), values) or 0)


async def by_hour(connection: AsyncConnection, hours: int) -> list[int]:
    """How many letters died in each of the last `hours`, the oldest first, of the newest letters up
    to `COUNTED_MAX`.
    """
    found = await connection.execute(
        text(
            "SELECT CAST(extract(epoch FROM now() - died_at) AS bigint) / 3600 AS ago, count(*)"
            f" FROM (SELECT died_at {_FROM} WHERE died_at > now() - make_interval(hours => :hours)"
            f" ORDER BY died_at DESC LIMIT {COUNTED_MAX}) AS counted GROUP BY ago"
        ),
        {"hours": hours},
    )
    counts = {row[0]: row[1] for row in found}
    return [counts.get(ago, 0) for ago in reversed(range(hours))]


async def about(connection: AsyncConnection, user_id: int, limit: int) -> list[Brief]:
    """The newest letters that may be the user's: from viewers that may write for the user, and
    those that were rejected because the viewer may not.
    """
    found = await connection.execute(
        text(
            f"SELECT {_BRIEF} {_FROM} WHERE viewer IN (SELECT viewer FROM ours.viewer_grants"
            " WHERE user_id = :user_id) OR reason = :reason AND detail LIKE :names"
            " ORDER BY died_at DESC, id DESC LIMIT :limit"
        ),
        {
            "user_id": user_id,
            "reason": RejectReason.PRINCIPAL_NOT_GRANTED,
            "names": f"The viewer may not write for user {user_id}:%",
            "limit": limit,
        },
    )
    return [Brief(*row) for row in found]


async def briefs(connection: AsyncConnection, wanted: Wanted, limit: int) -> list[Brief]:
    """The oldest letters that are wanted."""
    where, values = _where(wanted)
    found = await connection.execute(
        text(f"SELECT {_BRIEF} {_FROM} {where} ORDER BY died_at, id LIMIT :limit"),
        values | {"limit": limit},
    )
    return [Brief(*row) for row in found]


async def page(
    connection: AsyncConnection, wanted: Wanted, after: Place | None, limit: int
) -> list[Letter]:
    """The oldest letters that are wanted, whole; those behind the place `after`."""
    where, values = _where(
        wanted, *(["(died_at, id) > (CAST(:at AS timestamptz), :id)"] if after else [])
    )
    if after is not None:
        values |= {"at": after[0], "id": after[1]}
    found = await connection.execute(
        text(
            f"SELECT {_BRIEF}, properties, body, body_sha256 {_FROM} {where}"
            " ORDER BY died_at, id LIMIT :limit"
        ),
        values | {"limit": limit},
    )
    return [Letter(Brief(*row[:-3]), *row[-3:]) for row in found]


async def ids(
    connection: AsyncConnection, wanted: Wanted, *, replayable: bool = False, limit: int | None
) -> dict[int, str]:
    """The reasons of the oldest letters that are wanted, by their ids."""
    only = (
        "body_sha256 IS NULL",
        "NOT EXISTS (SELECT FROM ours.ingest_replays WHERE letter_id = letter.id)",
    )
    where, values = _where(wanted, *(only if replayable else ()))
    found = await connection.execute(
        text(f"SELECT id, reason {_FROM} {where} ORDER BY died_at, id LIMIT :limit"),
        values | {"limit": limit},
    )
    return {row[0]: row[1] for row in found}


_ASK: Final = text(
    "WITH asked AS (INSERT INTO ours.ingest_replays (letter_id, message_id)"
    " SELECT letter.id, gen_random_uuid() FROM unnest(CAST(:ids AS bigint[]))"
    " WITH ORDINALITY AS wanted (id, place) JOIN ours.ingest_dead_letters AS letter"
    " ON letter.id = wanted.id WHERE letter.body_sha256 IS NULL ORDER BY place"
    " ON CONFLICT (letter_id) DO NOTHING RETURNING letter_id, message_id)"
    " SELECT message_id, client_session_uuid, reason = :reused AND EXISTS (SELECT"
    " FROM ours.ingest_inbox AS inbox WHERE inbox.client_session_uuid = letter.client_session_uuid)"
    " FROM asked JOIN ours.ingest_dead_letters AS letter ON letter.id = asked.letter_id"
)

_OUTCOMES: Final = text(
    "SELECT CASE WHEN replay.id IS NOT NULL THEN 'leaving' WHEN letter.id IS NOT NULL THEN"
    " 'rejected: ' || letter.reason WHEN inbox.client_session_uuid IS NOT NULL THEN 'ingested'"
    " ELSE 'in the queue' END AS outcome, count(*)"
    " FROM unnest(CAST(:message_ids AS uuid[]), CAST(:uuids AS uuid[])) AS asked (message_id, uuid)"
    " LEFT JOIN ours.ingest_replays AS replay ON replay.message_id = asked.message_id"
    " LEFT JOIN ours.ingest_dead_letters AS letter ON letter.replay_id = asked.message_id"
    " LEFT JOIN ours.ingest_inbox AS inbox ON inbox.client_session_uuid = asked.uuid"
    " GROUP BY outcome ORDER BY outcome"
)

_DISCARD: Final = text(
    "WITH gone AS (DELETE FROM ours.ingest_dead_letters WHERE id = ANY(CAST(:ids AS bigint[]))"
    " RETURNING id), replays AS (DELETE FROM ours.ingest_replays"
    " WHERE letter_id = ANY(CAST(:ids AS bigint[]))) SELECT count(*) FROM gone"
)


async def ask_for_replay(connection: AsyncConnection, letter_ids: Sequence[int]) -> list[Asked]:
    """Asks for the replay of these letters, in this order; of those that are whole and still there,
    and whose replay was not asked for before.
    """
    found = await connection.execute(
        _ASK, {"ids": list(letter_ids), "reused": RejectReason.UUID_REUSED}
    )
    return [Asked(*row) for row in found]


async def outcomes(connection: AsyncConnection, asked: Sequence[Asked]) -> dict[str, int]:
    """What became of replays: how many are `leaving` or `in the queue`, were `ingested`, or
    `rejected: <reason>` again.
    """
    found = await connection.execute(
        _OUTCOMES,
        {
            "message_ids": [each.message_id for each in asked],
            "uuids": [None if each.is_reused else each.client_session_uuid for each in asked],
        },
    )
    return {row[0]: row[1] for row in found}


async def discard(connection: AsyncConnection, letter_ids: Collection[int]) -> int:
    """Takes the letters away for good, with replays that have not left; returns how many."""
    return int(await connection.scalar(_DISCARD, {"ids": list(letter_ids)}) or 0)
