"""The audit: one line for each thing an operator did, written with it or not at all.

A line names a subject and counts what changed; it never repeats what anybody answered.
"""

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class By(NamedTuple):
    """Who does something, and why."""

    actor: str
    reason: str


_RECORD: Final = text(
    "INSERT INTO ingest_audit (actor, operation, subject, reason, effect)"
    " VALUES (:actor, :operation, :subject, :reason, CAST(:effect AS jsonb))"
)


async def record(
    connection: AsyncConnection, by: By, operation: str, subject: str, effect: Mapping[str, object]
) -> None:
    """Adds one line; `effect` is counts, or what a value was and is."""
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
