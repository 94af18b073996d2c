"""The ingest transaction: a group of batches, all of their effects, one commit.

Reads as its own table of contents. Knows SQL only through `worker.store`, and nothing of the
broker: deliveries come in as `Incoming`, and what became of each goes out as a `Disposition`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.attempt_batch import AttemptBatch
from schemas.errors import Rejection
from schemas.ingest_result import IngestResult
from schemas.words import RejectReason, Status
from worker import messages
from worker.domain.dispositions import Busy, Disposition, Duplicate, Ingested, Rejected
from worker.domain.patterns import Thresholds
from worker.errors import UuidTaken
from worker.finalize import Finalized, finalize, late_questions, score
from worker.resolve import Incoming, Plan, plan
from worker.store import attempts, inbox, outbox, principals, progress, publications
from worker.store.driver import write
from worker.store.engine import transaction
from worker.store.inbox import Known, Receipt
from worker.store.outbox import Message


class Ingest:
    """Ingests groups of deliveries.

    With `default_deny` a viewer without any grant may write for nobody; otherwise for anybody.
    `on_commit` is called after each commit: there may be something to relay.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        thresholds: Thresholds,
        *,
        default_deny: bool = False,
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._thresholds = thresholds
        self._default_deny = default_deny
        self._on_commit = on_commit

    async def __call__(self, group: Sequence[Incoming]) -> list[Disposition | Busy]:
        """What became of each delivery, in order, once all of it is committed.

        `Busy` is one that can come again, and whose principal another transaction has. Raises
        `DatabaseAway` when the database can't be reached (also in the middle of the commit:
        calling again tells which batches made it, as duplicates), `TransientFault` when the group
        failed in a way that may pass, and whatever else a fault of ours raises; then nothing of
        the transaction that failed is stored.
        """
        dispositions: list[Disposition | Busy] = []
        for once in _rounds(group):
            dispositions += await self._decide(once)
        return dispositions

    async def _decide(self, group: Sequence[Incoming]) -> list[Disposition | Busy]:
        """Goes on with those whose principals are free, and leaves the others to come again.

        Waits for those others where one of them can't come again, or where nobody's is free. A
        lone batch holds nobody up, and waits at once.
        """
        decided = await self._commit(dict(enumerate(group)), wait=len(group) == 1)
        busy = {place: each for place, each in enumerate(group) if place not in decided}
        if busy and not (decided and all(each.can_come_again for each in busy.values())):
            decided |= await self._commit(busy, wait=True)
        return [decided.get(place, Busy()) for place in range(len(group))]

    async def _commit(self, group: Mapping[int, Incoming], *, wait: bool) -> dict[int, Disposition]:
        try:
            decided = await self._transact(group, wait=wait)
        except UuidTaken:  # by another user's session, and committed: now it can be seen
            decided = await self._transact(group, wait=wait)
        self._on_commit()
        return decided

    async def _transact(
        self, group: Mapping[int, Incoming], *, wait: bool
    ) -> dict[int, Disposition]:
        async with transaction(self._engine) as connection:
            return await transact(
                connection, group, self._thresholds, self._default_deny, wait=wait
            )


def _rounds(group: Sequence[Incoming]) -> Iterable[list[Incoming]]:
    """Cuts the group where a uuid comes again, so that each is decided after the one before it."""
    once: list[Incoming] = []
    seen: set[UUID] = set()
    for incoming in group:
        if isinstance(incoming.content, AttemptBatch):
            uuid = incoming.content.client_session_uuid
            if uuid in seen:
                yield once
                once, seen = [], set()
            seen.add(uuid)
        once.append(incoming)
    if once:
        yield once


async def transact(
    connection: AsyncConnection,
    group: Mapping[int, Incoming],
    thresholds: Thresholds,
    default_deny: bool,
    *,
    wait: bool = True,
) -> dict[int, Disposition]:
    """All that ingest does inside one transaction; no uuid may come twice in `group`.

    Returns what became of each delivery, by its key in `group`. Without `wait` one is missing
    where another transaction holds its principal: nothing was done about it.
    """
    batches = {
        incoming.content.client_session_uuid: (incoming, incoming.content)
        for incoming in group.values()
        if isinstance(incoming.content, AttemptBatch)
    }
    plans, rejections = await _resolve(connection, batches, default_deny)
    held = await _lock(connection, plans, wait=wait)
    received_at, known = await inbox.look(connection, batches)
    fresh = [plan for uuid, plan in held.items() if uuid not in known]
    done = await _finalize(connection, fresh, received_at, thresholds)
    busy = plans.keys() - held.keys() - known.keys()
    verdicts = {
        place: _verdict(incoming, incoming.content, known, rejections, received_at, done)
        for place, incoming in group.items()
        if incoming.client_session_uuid not in busy
    }
    await inbox.record(connection, [_receipt(plan, done) for plan in fresh])
    await write(
        connection,
        [
            *attempts.inserting(done.sessions),
            *progress.saving(done.progress),
            *outbox.recording([message for _, told in verdicts.values() for message in told]),
        ],
    )
    return {place: disposition for place, (disposition, _) in verdicts.items()}


async def _resolve(
    connection: AsyncConnection,
    batches: Mapping[UUID, tuple[Incoming, AttemptBatch]],
    default_deny: bool,
) -> tuple[dict[UUID, Plan], dict[UUID, Rejection]]:
    plans: dict[UUID, Plan] = {}
    rejections: dict[UUID, Rejection] = {}
    if batches:
        questions, granted = await publications.resolve(
            connection,
            {each.question_pub_id for _, batch in batches.values() for each in batch.attempts},
            {incoming.viewer for incoming, _ in batches.values() if incoming.viewer},
        )
        for uuid, (incoming, batch) in batches.items():
            try:
                plans[uuid] = plan(incoming, batch, questions, granted, default_deny=default_deny)
            except Rejection as rejection:
                rejections[uuid] = rejection
    return plans, rejections


async def _lock(
    connection: AsyncConnection, plans: Mapping[UUID, Plan], *, wait: bool
) -> dict[UUID, Plan]:
    """The plans whose principals are ours until the commit: all of them, with `wait`."""
    if not plans:
        return {}
    users = {plan.user_id for plan in plans.values()}
    if wait:
        await principals.lock(connection, users)
    else:
        users = await principals.lock_free(connection, users)
    return {uuid: plan for uuid, plan in plans.items() if plan.user_id in users}


async def _finalize(
    connection: AsyncConnection,
    plans: Sequence[Plan],
    received_at: datetime,
    thresholds: Thresholds,
) -> Finalized:
    if not plans:
        return Finalized()
    standing = await progress.standing(
        connection, {question.question_id for plan in plans for _, _, question in plan.answered}
    )
    scored = [score(plan, received_at, standing) for plan in plans]
    late = late_questions(scored, standing)
    histories = await attempts.histories(connection, late) if late else {}
    return finalize(scored, standing, histories, thresholds)


def _receipt(plan: Plan, done: Finalized) -> Receipt:
    uuid = plan.client_session_uuid
    viewer = plan.incoming.viewer
    return Receipt(uuid, plan.batch.digest(), plan.user_id, viewer, done.told[uuid])


def _verdict(
    incoming: Incoming,
    content: AttemptBatch | Rejection,
    known: Mapping[UUID, Known],
    rejections: Mapping[UUID, Rejection],
    received_at: datetime,
    done: Finalized,
) -> tuple[Disposition, list[Message]]:
    """What became of one delivery, and the messages that it causes."""
    if isinstance(content, Rejection):
        return _rejected(incoming, incoming.client_session_uuid, content)
    uuid = content.client_session_uuid
    if uuid in done.told:
        return Ingested(received_at), done.messages[uuid]
    if uuid not in known:
        return _rejected(incoming, uuid, rejections[uuid])
    # An erased batch left no digest: it is acked like a duplicate, for parking it would keep it.
    if known[uuid].content_digest not in (None, content.digest()):
        return _rejected(incoming, uuid, _REUSED)
    again = known[uuid].told.model_copy(update={"status": Status.ALREADY_INGESTED})
    return Duplicate(), messages.result(incoming, again)


_REUSED: Final = Rejection(
    RejectReason.UUID_REUSED,
    "Another batch with this client_session_uuid was ingested before, and its content is not"
    " this one's: a session must have a uuid of its own.",
)


def _rejected(
    incoming: Incoming, uuid: UUID | None, rejection: Rejection
) -> tuple[Disposition, list[Message]]:
    answer: list[Message] = []
    if uuid is not None:
        answer = messages.result(
            incoming,
            IngestResult(
                client_session_uuid=uuid,
                status=Status.REJECTED,
                received_at=datetime.now(UTC),
                reason=rejection.reason,
                detail=rejection.detail,
            ),
        )
    return Rejected(rejection.reason, rejection.detail), answer
