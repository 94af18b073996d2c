"""`void`: takes a session's attempts out of the fold. They stay on record.

It is for a session that should not have counted: a child with the phone, a test, a broken viewer.
The inbox keeps its uuid and digest, so that a redelivery is a duplicate and changes nothing.
"""

from typing import NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.domain.policy import Policy
from worker.domain.records import Mark, OnChange
from worker.errors import IngestError
from worker.ingest import messages
from worker.ingest.followups import FOLLOWUPS, VoidedSessions
from worker.operate.repair import put_right
from worker.operate.retelling import again, due_now
from worker.store import audit, inbox, outbox, principals, versions
from worker.store.audit import By
from worker.store.driver import write
from worker.store.engine import transaction
from worker.store.operate import void as stored


class VoidCounts(NamedTuple):
    """What a void changed. All zero if the session was already void."""

    user_id: int
    sessions: int
    attempts: int
    progress: int


async def void(
    engine: AsyncEngine,
    client_session_uuid: UUID,
    policy: Policy,
    by: By,
    on_change: OnChange = lambda *_: None,
) -> VoidCounts:
    """Voids all quiz sessions of one batch, in one transaction.

    Raises `IngestError` if no such batch is on record.
    """
    async with transaction(engine) as connection:
        user_id = await stored.principal(connection, client_session_uuid)
        if user_id is None:
            raise IngestError(
                f"No session {client_session_uuid} is on record",
                "it was never ingested, or its user is erased.",
            )
        await principals.lock(connection, [user_id])
        mark = await versions.draw(connection)
        voided = await stored.void(connection, client_session_uuid)
        changed = await put_right(connection, user_id, policy, mark, voided.question_ids)
        gone = [each.question_id for each in changed if each.expected is None]
        # Jobs that are not published yet, and that nobody needs any more.
        sessions = VoidedSessions(user_id, voided.quiz_session_ids, gone)
        await outbox.withdraw(
            connection, [id for followup in FOLLOWUPS for id in followup.on_void(sessions)]
        )
        if voided.quiz_session_ids:
            await _tell(connection, user_id, client_session_uuid, mark)
        effect = VoidCounts(user_id, len(voided.quiz_session_ids), voided.attempts, len(changed))
        if effect.sessions:
            await audit.record(
                connection, by, "void", f"session {client_session_uuid}", effect._asdict()
            )
    if effect.progress:
        on_change(user_id, mark)
    return effect


async def _tell(
    connection: AsyncConnection, user_id: int, client_session_uuid: UUID, mark: Mark
) -> None:
    """Tells the viewer that the session does not count, and when its questions are due now."""
    known = await stored.told(connection, client_session_uuid)
    if known is None:
        return
    told, viewer, voided_at = known
    (due,) = await due_now(connection, user_id, [told])
    told = told.model_copy(
        update={
            "sessions": (),
            "due": due,
            "progress": messages.progress_mark(user_id, mark),
            "voided_at": voided_at,
        }
    )
    await inbox.retell(connection, {client_session_uuid: told.model_dump_json(exclude_none=True)})
    await write(connection, outbox.recording(again(told, viewer)))
