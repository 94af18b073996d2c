"""The audit: one row for each action of an operator, written in the transaction of that action, or
right after it where the action is the broker's.

A row names a subject and counts what changed. It never repeats what anybody answered.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class By(NamedTuple):
    """Who acts, and why."""

    actor: str
    reason: str


class Entry(NamedTuple):
    """One action as it is on record. `effect` contains counts, or the old and the new value."""

    happened_at: datetime
    actor: str
    operation: str
    subject: str
    reason: str
    effect: dict[str, Any]


_RECORD: Final = text(
    "INSERT INTO ours.ingest_audit (actor, operation, subject, reason, effect)"
    " VALUES (:actor, :operation, :subject, :reason, CAST(:effect AS jsonb)) RETURNING id"
)
_AMEND: Final = text("UPDATE ours.ingest_audit SET effect = CAST(:effect AS jsonb) WHERE id = :id")


def counted(words: Iterable[str | None]) -> dict[str, int]:
    """An effect: how often each word comes."""
    return dict(Counter(word for word in words if word is not None))


async def record(
    connection: AsyncConnection, by: By, operation: str, subject: str, effect: Mapping[str, object]
) -> int:
    """Adds one row, and returns its id. `effect` contains counts, or the old and the new value."""
    id = await connection.scalar(
        _RECORD,
        {
            "actor": by.actor,
            "operation": operation,
            "subject": subject,
            "reason": by.reason,
            "effect": json.dumps(dict(effect)),
        },
    )
    return int(id)


async def amend(connection: AsyncConnection, id: int, effect: Mapping[str, object]) -> None:
    """Replaces the effect of an action that takes many transactions, in each of them."""
    await connection.execute(_AMEND, {"id": id, "effect": json.dumps(dict(effect))})


_ENTRIES: Final = text(
    "SELECT happened_at, actor, operation, subject, reason, effect FROM ours.ingest_audit"
    " WHERE (CAST(:operation AS text) IS NULL OR operation = :operation)"
    " AND (CAST(:actor AS text) IS NULL OR actor = :actor)"
    " AND (CAST(:subject AS text) IS NULL OR subject = :subject)"
    " AND (CAST(:since AS timestamptz) IS NULL OR happened_at >= :since)"
    " ORDER BY id DESC LIMIT :limit"
)


async def entries(
    connection: AsyncConnection,
    *,
    operation: str | None,
    actor: str | None,
    subject: str | None,
    since: datetime | None,
    limit: int,
) -> list[Entry]:
    """The newest actions that match, the newest first. None matches everything."""
    wanted = {"operation": operation, "actor": actor, "subject": subject, "since": since}
    return [Entry(*row) for row in await connection.execute(_ENTRIES, wanted | {"limit": limit})]
