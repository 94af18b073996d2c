"""The pause: one row, which all workers obey and which survives all restarts."""

from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store import audit
from worker.store.audit import By


class Pause(NamedTuple):
    """When, by whom and why ingest was paused."""

    paused_at: datetime
    actor: str
    reason: str


_FIND: Final = text("SELECT paused_at, actor, reason FROM ours.ingest_pause")

# The first pause stays, so that a second one does not overwrite who paused, and why.
_PAUSE: Final = text(
    "INSERT INTO ours.ingest_pause (actor, reason) VALUES (:actor, :reason)"
    " ON CONFLICT (single) DO NOTHING"
)

_RESUME: Final = text("DELETE FROM ours.ingest_pause RETURNING paused_at, actor, reason")


async def find(connection: AsyncConnection) -> Pause | None:
    """The pause that is in force. None while workers may ingest."""
    row = (await connection.execute(_FIND)).one_or_none()
    return None if row is None else Pause(*row)


async def is_paused(connection: AsyncConnection) -> bool:
    """Whether an operator has paused ingest."""
    return await find(connection) is not None


async def pause(connection: AsyncConnection, by: By) -> tuple[Pause, bool]:
    """Pauses ingest. Returns the pause in force, and whether this call started it."""
    done = await connection.execute(_PAUSE, {"actor": by.actor, "reason": by.reason})
    now = await find(connection)
    assert now is not None
    if done.rowcount:
        await audit.record(connection, by, "pause", "ingest", {})
    return now, bool(done.rowcount)


async def resume(connection: AsyncConnection, by: By) -> Pause | None:
    """Resumes ingest. Returns the pause that has ended, or None if there was none."""
    row = (await connection.execute(_RESUME)).one_or_none()
    if row is None:
        return None
    ended = Pause(*row)
    await audit.record(connection, by, "resume", "ingest", {"since": ended.paused_at.isoformat()})
    return ended
