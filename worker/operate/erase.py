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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.attempt_batch import AttemptBatch
from schemas.ingest_result import IngestResult
from schemas.words import Status
from worker.broker.copies import named_principal
from worker.domain.records import OnChange
from worker.ingest import messages
from worker.operate.dead.letters import OnProgress, batch_in, properties_of
from worker.store import audit, erasures, outbox, principals, publications
from worker.store.audit import By
from worker.store.driver import write
from worker.store.engine import transaction
from worker.store.operate import dead, grants
from worker.store.operate import erase as stored
from worker.store.operate.dead import Letter, Wanted
from worker.store.operate.erase import Erased

_NAMED: Final = re.compile(rb'"question_pub_id"\s*:\s*("(?:[^"\\]|\\.){1,800}")')
_PUB_ID_MAX: Final = 128
_TOLD_AT_ONCE: Final = 1_000
"""The results in one statement."""
_AT_ONCE: Final = 200
"""Dead letters that are looked at together."""


@dataclass(slots=True)
class Survey:
    """What exists of a user before the erasure."""

    attempts: int
    batches: int
    letters: set[int] = field(default_factory=set)
    """Ids of the dead letters that name a question of the user."""
    uuids: set[UUID] = field(default_factory=set)
    """The uuids of the batches in those letters."""
    unattributed: int = 0
    """The number of dead letters that name no known question, so that their user is unknown."""


async def survey(engine: AsyncEngine, user_id: int, progress: OnProgress) -> Survey:
    """Looks for everything of the user, and changes nothing.

    Raises `DatabaseAway`.
    """
    async with transaction(engine) as connection:
        found = Survey(*await stored.count(connection, user_id))
        letters = await dead.count(connection, Wanted())
        granted = await grants.all_of(connection)
    seen, after = 0, None
    while True:
        async with transaction(engine) as connection:
            page = await dead.page(connection, Wanted(), after, _AT_ONCE)
            owners = await _owners(connection, page, granted)
        if not page:
            return found
        for letter, whose in zip(page, owners, strict=True):
            found.unattributed += not whose
            if user_id in whose:
                found.letters.add(letter.brief.id)
                if letter.brief.client_session_uuid is not None:
                    found.uuids.add(letter.brief.client_session_uuid)
        seen, after = seen + len(page), (page[-1].brief.died_at, page[-1].brief.id)
        progress(seen, max(seen, letters))


async def erase(
    engine: AsyncEngine,
    user_id: int,
    found: Survey,
    by: By,
    on_change: OnChange = lambda *_: None,
    *,
    at: datetime | None = None,
    before_commit: Callable[[datetime], object] = lambda _: None,
) -> tuple[Erased, int]:
    """Erases what `survey` found, in one transaction; returns the rows gone, and the dead letters
    gone.

    `at` is the moment of an earlier erasure that a restored database has forgotten. `before_commit`
    is called with the moment. Dead letters that came after the survey are looked for afterwards.
    """
    async with transaction(engine) as connection:
        await principals.lock(connection, [user_id])
        erased_at, mark = await erasures.remember(connection, user_id, at)
        told = await stored.told(connection, user_id)
        await stored.bury(connection, found.uuids)
        erased = await stored.erase(connection, user_id, found.uuids)
        await _tell(connection, told, erased_at)
        letters = await dead.discard(connection, found.letters)
        # Also if nothing was found: from now on, nothing from before is stored.
        effect = erased._asdict() | {"dead_letters": len(found.letters)}
        await audit.record(connection, by, "erase", f"user {user_id}", effect)
        before_commit(erased_at)
    on_change(user_id, mark)
    return erased, letters + await _discard_late(engine, user_id, by)


async def _discard_late(engine: AsyncEngine, user_id: int, by: By) -> int:
    """Discards the user's letters that were kept since the survey, and returns their number. Those
    whose transactions committed first did not know of the erasure.
    """
    discarded = 0
    while (late := await survey(engine, user_id, lambda *_: None)).letters:
        async with transaction(engine) as connection:
            await principals.lock(connection, [user_id])
            await stored.bury(connection, late.uuids)
            gone = await dead.discard(connection, late.letters)
            if not gone:  # somebody else has just taken them away
                break
            await audit.record(connection, by, "erase", f"user {user_id}", {"dead_letters": gone})
        discarded += gone
    return discarded


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


async def _owners(
    connection: AsyncConnection, letters: Sequence[Letter], granted: Mapping[str, list[int]]
) -> list[set[int]]:
    """Everybody whose questions each letter names; failing that, whose batch has its uuid, or for
    whom its viewer answered shared questions.
    """
    named = [_named(letter) for letter in letters]
    behind = await publications.behind(connection, {each for some in named for each in some})
    found = []
    for letter, names in zip(letters, named, strict=True):
        known = {behind[name][1] for name in names if name in behind}
        owners = {owner for owner in known if owner is not None}
        uuid = letter.brief.client_session_uuid
        if not owners and uuid is not None:
            owner = await stored.owner_of_batch(connection, uuid)
            owners = set() if owner is None else {owner}
        if not owners and known:
            owners = _meant(letter, granted)
        found.append(owners)
    return found


def _meant(letter: Letter, granted: Mapping[str, list[int]]) -> set[int]:
    """The user that the letter's viewer names, or the only one that it may write for."""
    named = named_principal(properties_of(letter).get("headers"))
    if named is not None:
        return {named}
    users = granted.get(letter.brief.viewer or "", [])
    return {*users} if len(users) == 1 else set()


def _named(letter: Letter) -> set[str]:
    """The published ids in the body, also where it is no batch that can be read."""
    batch = batch_in(letter)
    if isinstance(batch, AttemptBatch):
        return {attempt.question_pub_id for attempt in batch.attempts}
    named = set()
    for quoted in _NAMED.findall(letter.body):
        try:
            pub_id = json.loads(quoted)
        except ValueError:
            continue
        if len(pub_id) <= _PUB_ID_MAX and "\0" not in pub_id and pub_id.isprintable():
            named.add(pub_id)
    return named
