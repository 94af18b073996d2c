"""The audit: one row for each action of an operator, written in the transaction of that action.

A row names a subject and counts what changed. It never repeats what anybody answered.
"""

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class By(NamedTuple):
    """Who acts, and why."""

    actor: str
    reason: str


_RECORD: Final = text(
    "INSERT INTO ingest_audit (actor, operation, subject, reason, effect)"
    " VALUES (:actor, :operation, :subject, :reason, CAST(:effect AS jsonb))"
)


async def record(
    connection: AsyncConnection, by: By, operation: str, subject: str, effect: Mapping[str, object]
) -> None:
    """Adds one row. `effect` contains counts, or the old and the new value."""
    await connection.execute(
        _RECORD,
        {
            "actor": by.actor,
            "operation": operation,
            "subject": subject,
            "reason": by.reason,
            "effect": json.dumps(dict(effect)),
        },
    )
