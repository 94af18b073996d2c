"""Dead letters: messages that were not ingested, each kept once with its reason.

Written by the transaction that rejects, as its last rows, and in the order of their keys: two
transactions that reject the same message wait for each other's end at most, and never crosswise.
Knows bytes and words; may not know what makes a letter.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.words import RejectReason
from worker.domain.policy import Policy
from worker.domain.records import DeadLetter
from worker.store.driver import fetch

HOPELESS: Final = (
    RejectReason.MALFORMED,
    RejectReason.TOO_LARGE,
    RejectReason.UNIDENTIFIED_PUBLISHER,
)
"""Reasons that no later change can make good."""

BEGINNING_BYTES: Final = 4_096
"""Of a body that nobody will ever ingest, where its viewer has too many of them."""

_AT_ONCE_BYTES: Final = 16 * 1024**2
"""Of bodies in one statement: a bound on memory, here and in the database."""

# Whose letters are too many is as of this statement's snapshot: nobody is locked for a count.
_KEEP: Final = text(
    "WITH crowded AS MATERIALIZED (SELECT viewer FROM unnest(CAST(:crowds AS text[])) AS viewer"
    " WHERE (SELECT count(*) FROM (SELECT FROM ours.ingest_dead_letters AS letter"
    " WHERE letter.viewer = viewer.viewer LIMIT CAST(:bound AS bigint)) AS counted)"
    " >= CAST(:bound AS bigint)),"
    " letter AS (SELECT *, reason = ANY(CAST(:hopeless AS text[]))"
    " AND viewer IN (SELECT viewer FROM crowded) AS is_cut"
    " FROM unnest(CAST(:keys AS bytea[]), CAST(:died_ats AS timestamptz[]),"
    " CAST(:reasons AS text[]), CAST(:details AS text[]), CAST(:viewers AS text[]),"
    " CAST(:routing_keys AS bytea[]), CAST(:uuids AS uuid[]), CAST(:replays AS uuid[]),"
    " CAST(:properties AS bytea[]), CAST(:bodies AS bytea[]), CAST(:lengths AS bigint[]),"
    " CAST(:digests AS bytea[])) AS letter (key, died_at, reason, detail, viewer, routing_key,"
    " client_session_uuid, replay_id, properties, body, body_bytes, body_sha256))"
    " INSERT INTO ours.ingest_dead_letters (key, died_at, reason, detail, viewer, routing_key,"
    " client_session_uuid, replay_id, properties, body, body_bytes, body_sha256)"
    " SELECT key, coalesce(died_at, now()), reason, detail, viewer, routing_key,"
    " client_session_uuid, replay_id,"
    f" CASE WHEN is_cut AND length(properties) > {BEGINNING_BYTES} THEN :no_properties"
    " ELSE properties END,"
    f" CASE WHEN is_cut THEN substring(body FOR {BEGINNING_BYTES}) ELSE body END, body_bytes,"
    f" CASE WHEN is_cut AND length(body) > {BEGINNING_BYTES} THEN coalesce(body_sha256,"
    " sha256(body)) ELSE body_sha256 END"
    " FROM letter ORDER BY key ON CONFLICT (key) DO NOTHING RETURNING key"
)
_NO_PROPERTIES: Final = bytes(4)

_VIEWERS_SEEN: Final = 2_000

# Steps from viewer to viewer in the index, and counts each one's letters up to a bound. Of viewers
# there may be many more than are named in the end.
_WAITING: Final = text(
    "WITH RECURSIVE step (viewer) AS ("
    "(SELECT viewer FROM ours.ingest_dead_letters ORDER BY viewer LIMIT 1) UNION ALL"
    " SELECT (SELECT letter.viewer FROM ours.ingest_dead_letters AS letter"
    " WHERE letter.viewer > step.viewer ORDER BY letter.viewer LIMIT 1)"
    " FROM step WHERE step.viewer IS NOT NULL)"
    " SELECT viewer, (SELECT count(*) FROM (SELECT FROM ours.ingest_dead_letters AS letter"
    " WHERE letter.viewer = step.viewer LIMIT CAST(:bound AS bigint)) AS counted) AS letters"
    f" FROM (SELECT viewer FROM step WHERE viewer IS NOT NULL LIMIT {_VIEWERS_SEEN}) AS step"
    " ORDER BY letters DESC, viewer LIMIT CAST(:viewers AS bigint)"
)


async def keep(
    connection: AsyncConnection, letters: Sequence[DeadLetter], policy: Policy
) -> set[bytes]:
    """Keeps the letters that are not kept yet, and returns their keys; nothing that a transaction
    does later may wait for another one.

    Waits for another transaction that keeps or takes away one of them just now.
    """
    kept: set[bytes] = set()
    for some in _portions(sorted(letters, key=lambda letter: letter.key)):
        rows = [letter._replace(viewer=letter.viewer or "") for letter in some]
        (
            keys,
            died_ats,
            reasons,
            details,
            viewers,
            routing_keys,
            uuids,
            replays,
            properties,
            bodies,
            lengths,
            digests,
        ) = zip(*rows, strict=True)
        new = await fetch(
            connection,
            _KEEP,
            {
                "crowds": list({each.viewer for each in rows if _may_be_cut(each)}),
                "bound": policy.dead_letters_per_viewer,
                "hopeless": list(HOPELESS),
                "no_properties": _NO_PROPERTIES,
                "keys": keys,
                "died_ats": died_ats,
                "reasons": reasons,
                "details": details,
                "viewers": viewers,
                "routing_keys": routing_keys,
                "uuids": uuids,
                "replays": replays,
                "properties": properties,
                "bodies": bodies,
                "lengths": lengths,
                "digests": digests,
            },
        )
        kept.update(row[0] for row in new)
    return kept


async def waiting(connection: AsyncConnection, *, bound: int, viewers: int) -> dict[str, int]:
    """The number of letters by viewer, for the `viewers` that have most.

    Each count stops at `bound`. The viewer of letters without one is "". Locks no row.
    """
    rows = await fetch(connection, _WAITING, {"bound": bound, "viewers": viewers})
    return {row[0]: row[1] for row in rows}


def _may_be_cut(letter: DeadLetter) -> bool:
    size = max(len(letter.body), len(letter.properties))
    return letter.reason in HOPELESS and size > BEGINNING_BYTES


def _portions(letters: Sequence[DeadLetter]) -> Iterator[list[DeadLetter]]:
    portion: list[DeadLetter] = []
    size = 0
    for letter in letters:
        if portion and size + len(letter.body) > _AT_ONCE_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(letter)
        size += len(letter.body)
    if portion:
        yield portion
