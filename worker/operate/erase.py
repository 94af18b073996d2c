"""`erase`: deletes everything about a user, except for one record in the audit.

Nothing that the user answered before comes back afterwards, wherever it is now: the moment of the
erasure is kept, and ingest skips answers from before it. The viewers learn of it, and delete what
they keep.

It deletes attempts, sessions, progress, the content of the inbox, messages that are not published
yet, and dead letters about the user's questions. The uuid of an ingested batch stays as a
tombstone: if the batch is delivered again, it is acked with the result `already_ingested`. It is
not rejected, because a rejected message is kept, and that would keep what was to be erased. The
study application's own rows (questions, publications, grants) are not touched. In particular, a
viewer's last grant must stay, because a viewer without grants may write for everybody.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.attempt_batch import AttemptBatch
from schemas.ingest_result import IngestResult
from schemas.words import Status
from worker.broker.dead_queue import open_dead_queue
from worker.ingest import messages
from worker.operate.dead.discard import discard
from worker.operate.dead.letters import Letter, Progress, Wanted, letters
from worker.settings import Settings
from worker.store import audit, erasures, outbox, principals, publications
from worker.store.audit import By
from worker.store.driver import write
from worker.store.engine import transaction
from worker.store.operate import erase as stored
from worker.store.operate.erase import Erased

_NAMED: Final = re.compile(rb'"question_pub_id"\s*:\s*("(?:[^"\\]|\\.){1,800}")')
_PUB_ID_MAX: Final = 128
_TOLD_AT_ONCE: Final = 1_000
"""The results in one statement."""


@dataclass(slots=True)
class Found:
    """What exists of a user before the erasure."""

    attempts: int
    batches: int
    letters: set[bytes] = field(default_factory=set)
    """The keys of the dead letters that name a question of the user."""
    uuids: set[UUID] = field(default_factory=set)
    """The uuids of the batches in those letters."""
    unattributed: int = 0
    """The number of dead letters that name no known question, so that their user is unknown."""


async def survey(
    engine: AsyncEngine, settings: Settings, user_id: int, progress: Progress
) -> Found:
    """Finds everything about the user, and changes nothing.

    It does not see dead letters that another command holds at the moment.

    Raises `DatabaseAway`, `BrokerAway` and `TopologyError`.
    """
    async with transaction(engine) as connection:
        found = Found(*await stored.count(connection, user_id))
    async with open_dead_queue(settings) as queue:
        async for letter in letters(queue, settings, Wanted(), progress):
            owners = await _owners(engine, letter)
            found.unattributed += not owners
            if user_id in owners:
                found.letters.add(letter.key)
                if letter.client_session_uuid is not None:
                    found.uuids.add(letter.client_session_uuid)
    return found


async def erase(
    engine: AsyncEngine, settings: Settings, user_id: int, found: Found, by: By, progress: Progress
) -> tuple[Erased, int]:
    """Erases what `survey` found. Returns the numbers of deleted rows and deleted dead letters.

    It erases the database first, in one transaction. If the command is killed before it has deleted
    the letters, run it again, and it finds them.
    """
    async with transaction(engine) as connection:
        await principals.lock(connection, [user_id])
        erased_at = await erasures.remember(connection, user_id)
        told = await stored.told(connection, user_id)
        await stored.bury(connection, found.uuids)
        erased = await stored.erase(connection, user_id, found.uuids)
        await _tell(connection, told, erased_at)
        if any(erased) or found.letters:
            effect = erased._asdict() | {"dead_letters": len(found.letters)}
            await audit.record(connection, by, "erase", f"user {user_id}", effect)
    return erased, await discard(settings, found.letters, progress)


async def _tell(
    connection: AsyncConnection, told: Sequence[tuple[UUID, str]], erased_at: datetime
) -> None:
    """Sends results to the viewers, so that they delete their copies of these batches as well."""
    for start in range(0, len(told), _TOLD_AT_ONCE):
        results = [
            message
            for uuid, viewer in told[start : start + _TOLD_AT_ONCE]
            for message in messages.result_for(
                viewer,
                None,
                IngestResult(
                    client_session_uuid=uuid,
                    status=Status.ALREADY_INGESTED,
                    received_at=erased_at,
                    erased_at=erased_at,
                ),
            )
        ]
        await write(connection, outbox.recording(results))


async def _owners(engine: AsyncEngine, letter: Letter) -> set[int]:
    """The owners of the questions that the letter names, or else the owner of the batch with its
    uuid.
    """
    async with transaction(engine) as connection:
        behind = await publications.behind(connection, _named(letter))
        owners = {user_id for _, user_id in behind.values()}
        if not owners and letter.client_session_uuid is not None:
            owner = await stored.owner_of_batch(connection, letter.client_session_uuid)
            owners = set() if owner is None else {owner}
        return owners


def _named(letter: Letter) -> set[str]:
    """The published ids in the body, even if the body is not a valid batch."""
    batch = letter.batch()
    if isinstance(batch, AttemptBatch):
        return {attempt.question_pub_id for attempt in batch.attempts}
    named = set()
    for quoted in _NAMED.findall(letter.delivery.body):
        try:
            pub_id = json.loads(quoted)
        except ValueError:
            continue
        if len(pub_id) <= _PUB_ID_MAX and "\0" not in pub_id and pub_id.isprintable():
            named.add(pub_id)
    return named
