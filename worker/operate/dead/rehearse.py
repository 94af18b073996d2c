"""`dead replay --dry-run`: a letter goes through today's code, and all of it is rolled back.

The transaction is the real one, with its locks; it ends in a rollback to a savepoint, so that
the state before and the state after are both seen from the inside.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.broker.copies import Replayed, envelope_of
from worker.consume import intake
from worker.domain.dispositions import Disposition, Ingested, Rejected
from worker.domain.policy import Policy
from worker.domain.records import Stored
from worker.errors import DatabaseAway
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import transact
from worker.settings import Settings
from worker.store import progress
from worker.store.engine import transaction
from worker.store.operate import rehearse as stored
from worker.store.operate.dead import Letter
from worker.store.operate.rehearse import AttemptWritten, MessageWritten, SessionWritten


@dataclass(frozen=True, slots=True)
class ProgressChange:
    """A progress row as it is, and as it would be; None for no row."""

    question_id: int
    before: Stored | None
    after: Stored | None


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a replay would do: `ingested`, `duplicate`, `rejected`, or `failed` with a fault."""

    disposition: str
    reason: str | None = None
    detail: str | None = None
    sessions: tuple[SessionWritten, ...] = ()
    attempts: tuple[AttemptWritten, ...] = ()
    progress: tuple[ProgressChange, ...] = ()
    messages: tuple[MessageWritten, ...] = ()


def replayed(letter: Letter, settings: Settings) -> Incoming:
    """What today's code would read from it, were it replayed."""
    brief = letter.brief
    envelope = envelope_of(
        letter.properties,
        viewer=brief.viewer,
        routing_key=brief.routing_key,
        client_session_uuid=brief.client_session_uuid,
    )
    _, incoming = intake.understand(Replayed(letter.body, envelope), settings)
    return incoming


async def rehearse(engine: AsyncEngine, incoming: Incoming, policy: Policy) -> Rehearsal:
    """Runs the ingest transaction on one delivery and keeps nothing of it.

    Raises `DatabaseAway` alone: whatever else goes wrong is what the rehearsal is for, and comes
    back as `failed`.
    """
    try:
        async with transaction(engine) as connection:
            savepoint = await connection.begin_nested()
            last = await stored.last_message(connection)
            decided = await transact(connection, {0: incoming}, policy)
            disposition = decided[0]
            seen = await _written(connection, incoming.client_session_uuid, last, disposition)
            after = await _progress(connection, seen)
            await savepoint.rollback()
            before = await _progress(connection, seen)
    except DatabaseAway:
        raise
    except Exception as fault:  # noqa: BLE001  # to be shown, not to end the rehearsal of others
        return Rehearsal("failed", type(fault).__name__, str(fault).partition("\n")[0])
    changes = tuple(
        ProgressChange(question_id, before.get(question_id), after.get(question_id))
        for question_id in sorted(before.keys() | after.keys())
        if before.get(question_id) != after.get(question_id)
    )
    return Rehearsal(
        disposition=type(disposition).__name__.lower(),
        reason=disposition.reason if isinstance(disposition, Rejected) else None,
        detail=disposition.detail if isinstance(disposition, Rejected) else None,
        sessions=seen.sessions,
        attempts=seen.attempts,
        progress=changes,
        messages=seen.messages,
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    sessions: tuple[SessionWritten, ...] = ()
    attempts: tuple[AttemptWritten, ...] = ()
    messages: tuple[MessageWritten, ...] = ()


async def _written(
    connection: AsyncConnection, uuid: UUID | None, last: int, disposition: Disposition
) -> _Seen:
    if uuid is None:
        return _Seen()
    messages = await stored.messages(connection, uuid, last)
    if not isinstance(disposition, Ingested):
        return _Seen(messages=tuple(messages))
    return _Seen(
        tuple(await stored.sessions(connection, uuid)),
        tuple(await stored.attempts(connection, uuid)),
        tuple(messages),
    )


async def _progress(connection: AsyncConnection, seen: _Seen) -> dict[int, Stored]:
    if not seen.sessions:
        return {}
    return await progress.of_user(
        connection, seen.sessions[0].user_id, {each.question_id for each in seen.attempts}
    )
