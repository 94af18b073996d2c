"""The ingest transaction: a group of batches, all of their effects, and one commit.

`transact` reads like a table of contents. SQL is only used through `worker.store`. Deliveries come
in as `Incoming`, and the decision about each goes out as a `Disposition`.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.attempt_batch import AttemptBatch
from schemas.errors import Rejection
from schemas.ingest_result import IngestResult
from schemas.words import RejectReason, Status
from worker.domain.dispositions import Busy, Disposition, Duplicate, Ingested, Rejected
from worker.domain.history import History
from worker.domain.policy import Policy
from worker.domain.records import (
    Change,
    DeadLetter,
    Mark,
    Message,
    Resolved,
    Standings,
    UserQuestion,
)
from worker.errors import NoTurn, PrincipalInUse, SessionStale, TransientFault, UuidTaken
from worker.ingest import messages
from worker.ingest.finalize import (
    Finalized,
    ScoredBatch,
    finalize,
    in_one_transaction,
    not_reached,
    score,
)
from worker.ingest.letters import dead_letter
from worker.ingest.recent import Recent
from worker.ingest.resolve import Incoming, Plan, erased_throughout, find_principal, may_write, plan
from worker.store import (
    attempts,
    dead_letters,
    erasures,
    inbox,
    keys,
    moments,
    outbox,
    principals,
    progress,
    publications,
)
from worker.store.driver import write
from worker.store.engine import transaction
from worker.store.inbox import Known, Receipt
from worker.store.moments import Published

_FOLDED_AT_ONCE: Final = 100_000
"""The most stored attempts that one transaction folds again because of late batches: half a second
and 40 MB. A single batch may need more.
"""
_FOLDED_INLINE: Final = 5_000
"""The most attempts that are folded without giving other tasks a chance to run: 10 ms."""

Batches = Mapping[UUID, tuple[Incoming, AttemptBatch]]
"""The batches to decide about, by idempotency key."""


class Ingest:
    """Ingests groups of deliveries.

    `turns` is the most groups that are ingested at once, by all workers that are given the same
    number; None means no bound. `worker` is the name under which commits are noted; without one,
    none are. `on_commit` is called after each commit, when there may be
    something to relay, and `on_change` with what it changed.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        policy: Policy,
        *,
        turns: int | None = None,
        worker: str | None = None,
        on_commit: Callable[[], None] = lambda: None,
        on_change: Callable[[Sequence[Change]], None] = lambda changes: None,
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._turns = turns
        self._worker = worker
        self._on_commit = on_commit
        self._on_change = on_change
        self._recent = Recent()

    async def __call__(self, group: Sequence[Incoming]) -> list[Disposition | Busy]:
        """Ingests a group, and returns the decision about each delivery, in order, after the
        commit.

        `Busy` stands for a delivery about which nothing was done: it can come again.

        Raises `DatabaseAway` if the database is unreachable. If that happens during the commit,
        call again: the batches that were committed are then duplicates. Raises `PrincipalInUse` if
        other transactions held the principals of all of them for too long. Raises `TransientFault`
        if the group failed and may succeed later, and whatever a bug raises. Nothing of a failed
        transaction is stored.
        """
        dispositions: list[Disposition | Busy] = []
        for once in _rounds(group):
            dispositions += await self._decide(once)
        return dispositions

    async def _decide(self, group: Sequence[Incoming]) -> list[Disposition | Busy]:
        """Processes the batches whose principals are free, and leaves the others to come again.

        It waits for the others if one of them can't come again, or if no principal is free. A
        single batch holds nobody up, so it waits at once. Batches also come again if they are more
        than one transaction should fold.
        """
        left = dict(enumerate(group))
        decided: dict[int, Disposition] = {}
        wait = len(group) == 1
        while left:
            try:
                decided |= await self._commit(left, wait=wait)
            except PrincipalInUse:
                if not decided:
                    raise
                break
            left = {place: each for place, each in left.items() if place not in decided}
            if decided and all(each.can_come_again for each in left.values()):
                break
            wait = True
        return [decided.get(place, Busy()) for place in range(len(group))]

    async def _commit(self, group: Mapping[int, Incoming], *, wait: bool) -> dict[int, Disposition]:
        try:
            decided = await self._transact(group, wait, self._turns)
        except (UuidTaken, SessionStale):
            # Another user's session has committed the uuid, so now it is visible.
            decided = await self._transact(group, wait, self._turns)
        except NoTurn:
            # Perhaps a worker stands still with its turn. The bound is for speed only.
            decided = await self._transact(group, wait, None)
        self._on_commit()
        self._on_change(
            [
                each.change
                for each in decided.values()
                if isinstance(each, Ingested) and each.change is not None
            ]
        )
        return decided

    async def _transact(
        self, group: Mapping[int, Incoming], wait: bool, turns: int | None
    ) -> dict[int, Disposition]:
        async with transaction(self._engine) as connection:
            return await transact(
                connection,
                group,
                self._policy,
                wait=wait,
                turns=turns,
                worker=self._worker,
                recent=self._recent,
            )


def _rounds(group: Sequence[Incoming]) -> Iterable[list[Incoming]]:
    """Cuts the group where a uuid is repeated, so that each is decided after the one before it."""
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
    policy: Policy,
    *,
    wait: bool = True,
    turns: int | None = None,
    worker: str | None = None,
    recent: Recent | None = None,
) -> dict[int, Disposition]:
    """Everything that ingest does inside one transaction. No uuid may occur twice in `group`.

    Returns the decision about each delivery, by its key in `group`. Deliveries are missing, and
    nothing was done about them, if one transaction should not fold them too; without `wait` also if
    another transaction holds their principal. With `wait` at least one is decided. Raises
    `PrincipalInUse` if the wait is too long.
    """
    batches = {
        incoming.content.client_session_uuid: (incoming, incoming.content)
        for incoming in group.values()
        if isinstance(incoming.content, AttemptBatch)
    }
    resolved, principal_of = await _resolve(connection, batches, policy)
    is_shared = None in resolved.owners.values()
    held = await _lock(
        connection, {*principal_of.values()}, wait=wait, turns=turns, is_shared=is_shared
    )
    received_at, mark, known, erased_at = await inbox.look(connection, batches, held)
    busy = {uuid for uuid, user_id in principal_of.items() if user_id not in held} - known.keys()
    new = {uuid: each for uuid, each in batches.items() if uuid not in known and uuid not in busy}
    standing = await _standing(connection, new, resolved, principal_of, is_shared=is_shared)
    planned, rejections = _plan(
        new, resolved, standing, principal_of, policy, received_at, erased_at
    )
    plans = [each for each in planned if each.answered]
    buried = {
        each.client_session_uuid: each.erased_at for each in planned if not each.answered
    } | await _erased(connection, new, rejections, resolved.granted, received_at, policy)
    scored = [score(plan, received_at, policy) for plan in plans]
    chosen = in_one_transaction(scored, standing, _FOLDED_AT_ONCE)
    recent = Recent() if recent is None else recent
    histories = await _histories(connection, chosen, recent.among(standing, mark.epoch))
    done = await _finalize(chosen, standing, histories, policy, mark)
    recent.keep(done.histories, mark)
    undecided = busy | {each.plan.client_session_uuid for each in scored} - done.told.keys()
    verdicts = {
        place: _verdict(incoming, incoming.content, known, rejections, received_at, buried, done)
        for place, incoming in group.items()
        if incoming.client_session_uuid not in undecided
    }
    receipts = [*[_receipt(each.plan, done) for each in chosen], *map(Receipt, buried)]
    await inbox.add(connection, receipts)
    await write(
        connection,
        [
            *attempts.inserting(done.sessions),
            *progress.saving(done.progress, mark.version),
            *outbox.recording([message for _, told in verdicts.values() for message in told]),
            *(() if worker is None else moments.noting(worker, len(verdicts), _published(chosen))),
        ],
    )
    decided = {place: disposition for place, (disposition, _) in verdicts.items()}
    letters = [
        _letter(group[place], rejected, policy)
        for place, rejected in decided.items()
        if isinstance(rejected, Rejected) and not group[place].by_operator
    ]
    await dead_letters.keep(connection, letters, policy)
    return decided


async def _resolve(
    connection: AsyncConnection, batches: Batches, policy: Policy
) -> tuple[Resolved, Mapping[UUID, int]]:
    """The questions behind the published ids, and the principal of each batch, to be locked. A
    batch that is certain to be rejected has no principal here.

    The final decision uses only what is read under that lock.
    """
    if not batches:
        return Resolved({}, set(), {}, {}), {}
    resolved = await publications.resolve(
        connection,
        {each.question_pub_id for _, batch in batches.values() for each in batch.attempts},
        # One question of each batch is usually enough.
        {batch.attempts[0].question_pub_id for _, batch in batches.values()},
        {incoming.viewer for incoming, _ in batches.values() if incoming.viewer},
    )
    owners = dict(resolved.owners)
    granted = await _granted(connection, batches, owners, resolved.granted)
    if others := {
        each.question_pub_id
        for incoming, batch in batches.values()
        if find_principal(incoming, batch, owners, granted) is None
        for each in batch.attempts
    }:
        more = await publications.owners(connection, others)
        owners |= more
        granted = await _granted(connection, batches, more, granted)
    return resolved._replace(owners=owners, granted=granted), {
        uuid: principal
        for uuid, (incoming, batch) in batches.items()
        if (principal := find_principal(incoming, batch, owners, granted)) is not None
        and may_write(incoming, principal, granted, policy)
    }


async def _granted(
    connection: AsyncConnection,
    batches: Batches,
    owners: Mapping[str, int | None],
    granted: Mapping[str, set[int]],
) -> Mapping[str, set[int]]:
    """The grants, with those that matter of viewers that have more than were read: for the users
    that the batches name, and for the owners of their questions.
    """
    crowded = {viewer for viewer, users in granted.items() if len(users) > publications.GRANTS_READ}
    if not crowded:
        return granted
    pairs = {
        (incoming.viewer, user_id)
        for incoming, batch in batches.values()
        if incoming.viewer in crowded
        for user_id in (
            incoming.principal,
            *[owners.get(each.question_pub_id) for each in batch.attempts],
        )
        if user_id is not None and user_id not in granted[incoming.viewer]
    }
    found = await publications.granted(connection, pairs) if pairs else {}
    return {viewer: users | found.get(viewer, set()) for viewer, users in granted.items()}


async def _lock(
    connection: AsyncConnection, users: set[int], *, wait: bool, turns: int | None, is_shared: bool
) -> set[int]:
    """Locks the users' histories until the commit, and returns the users that are locked.

    With `is_shared` it then also holds up who corrects the key of a shared question.
    """
    if not users:
        return users
    if wait:
        await principals.lock(connection, users)
        held = users
    else:
        held = await principals.lock_free(connection, users, turns)
    if is_shared:
        await keys.hold(connection)
    return held


async def _standing(
    connection: AsyncConnection,
    batches: Batches,
    resolved: Resolved,
    principal_of: Mapping[UUID, int],
    *,
    is_shared: bool,
) -> Standings:
    """The questions of the batches as they are now, and their users' progress on them."""
    published = resolved.questions
    wanted = {
        (principal_of.get(uuid), question_id)
        for uuid, (_, batch) in batches.items()
        for each in batch.attempts
        if (question_id := published.get(each.question_pub_id)) is not None
    }
    if not wanted:
        return {}
    standing = await progress.standing(connection, wanted)
    if not is_shared and any(each.owner_id is None for each in standing.values()):
        # Shared questions among a user's own, which were not looked up before. Their keys must not
        # change any more, and may just have.
        await keys.hold(connection)
        standing = await progress.standing(connection, wanted)
    return standing


def _plan(
    batches: Batches,
    resolved: Resolved,
    standing: Standings,
    principal_of: Mapping[UUID, int],
    policy: Policy,
    received_at: datetime,
    erased_at: Mapping[int, datetime],
) -> tuple[list[Plan], dict[UUID, Rejection]]:
    """Plans each batch, or rejects it.

    Raises `TransientFault` if the questions of a batch have changed their owner since the lookup.
    """
    plans: list[Plan] = []
    rejections: dict[UUID, Rejection] = {}
    for uuid, (incoming, batch) in batches.items():
        user_id = principal_of.get(uuid)
        try:
            planned = plan(
                incoming, batch, resolved, standing, user_id, policy, received_at, erased_at
            )
        except Rejection as rejection:
            if rejection.reason is RejectReason.PRINCIPAL_NOT_GRANTED and user_id is not None:
                # The grant of that user was found, so the questions have another owner by now.
                raise _owner_changed(uuid) from None
            rejections[uuid] = rejection
            continue
        if planned.user_id != user_id:
            raise _owner_changed(uuid)
        plans.append(planned)
    return plans, rejections


def _owner_changed(uuid: UUID) -> TransientFault:
    return TransientFault(f"The questions of batch {uuid} have just changed their owner.")


async def _erased(
    connection: AsyncConnection,
    batches: Batches,
    rejections: Mapping[UUID, Rejection],
    granted: Mapping[str, set[int]],
    received_at: datetime,
    policy: Policy,
) -> dict[UUID, datetime | None]:
    """The rejected batches that contain only answers of an erased user, with the time of the
    erasure.

    They do not become dead letters, because a dead letter keeps the whole batch, and its questions
    may be withdrawn because its user is gone.
    """
    rejected = {uuid: batches[uuid] for uuid in rejections}
    if not rejected:
        return {}
    behind = await publications.behind(
        connection,
        {each.question_pub_id for _, batch in rejected.values() for each in batch.attempts},
    )
    if not behind:
        return {}  # Questions that nobody knows have no user.
    owners = {pub_id: owner for pub_id, (_, owner) in behind.items()}
    users = {
        uuid: find_principal(incoming, batch, owners, granted)
        for uuid, (incoming, batch) in rejected.items()
    }
    wanted = {*owners.values(), *users.values()}
    moments = await erasures.of_users(connection, [each for each in wanted if each is not None])
    found: dict[UUID, datetime | None] = {}
    for uuid, (_, batch) in rejected.items():
        erased = {
            pub_id: moments.get(users[uuid] if owner is None else owner)
            for pub_id, owner in owners.items()
        }
        if (moment := erased_throughout(batch, erased, received_at, policy)) is not None:
            found[uuid] = moment
    return found


async def _histories(
    connection: AsyncConnection,
    batches: Sequence[ScoredBatch],
    remembered: Mapping[UserQuestion, History],
) -> Mapping[UserQuestion, History]:
    """What is remembered, and the histories of the late questions beside it, from the database."""
    wanted = not_reached(batches, remembered)
    if not wanted:
        return remembered
    read = await attempts.histories(connection, wanted)
    return {**remembered, **{each: History(None, log) for each, log in read.items()}}


async def _finalize(
    batches: Sequence[ScoredBatch],
    standing: Standings,
    histories: Mapping[UserQuestion, History],
    policy: Policy,
    mark: Mark,
) -> Finalized:
    new = sum([len(each.plan.answered) for each in batches])
    if new + sum([len(each.attempts) for each in histories.values()]) > _FOLDED_INLINE:
        # Heartbeats and other lanes continue meanwhile. finalize is pure, so it can run in a
        # thread.
        return await asyncio.to_thread(finalize, batches, standing, histories, policy, mark)
    return finalize(batches, standing, histories, policy, mark)


def _receipt(plan: Plan, done: Finalized) -> Receipt:
    uuid = plan.client_session_uuid
    viewer = plan.incoming.viewer
    return Receipt(uuid, plan.batch.digest(), plan.user_id, viewer, done.told[uuid])


def _published(batches: Sequence[ScoredBatch]) -> list[Published]:
    plans = [each.plan for each in batches]
    return [
        Published(plan.client_session_uuid, plan.incoming.published_at, plan.incoming.app)
        for plan in plans
    ]


def _verdict(
    incoming: Incoming,
    content: AttemptBatch | Rejection,
    known: Mapping[UUID, Known],
    rejections: Mapping[UUID, Rejection],
    received_at: datetime,
    buried: Mapping[UUID, datetime | None],
    done: Finalized,
) -> tuple[Disposition, list[Message]]:
    """The decision about one delivery, and the messages that it causes."""
    if isinstance(content, Rejection):
        return _rejected(incoming, incoming.client_session_uuid, content)
    uuid = content.client_session_uuid
    if uuid in done.told:
        return done.ingested[uuid], done.messages[uuid]
    if uuid in buried:
        return Duplicate(), messages.result(
            incoming,
            IngestResult(
                client_session_uuid=uuid,
                status=Status.ALREADY_INGESTED,
                received_at=received_at,
                erased_at=buried[uuid],
            ),
        )
    if uuid not in known:
        return _rejected(incoming, uuid, rejections[uuid])
    # An erased batch has no digest. It is acked like a duplicate, because a dead letter would keep
    # it.
    if known[uuid].content_digest not in (None, content.digest()):
        return _rejected(incoming, uuid, _REUSED)
    again = known[uuid].told.model_copy(update={"status": Status.ALREADY_INGESTED})
    return Duplicate(), messages.result(incoming, again)


def _letter(incoming: Incoming, rejected: Rejected, policy: Policy) -> DeadLetter:
    if incoming.original is None:
        raise ValueError("A delivery that is rejected must come with its original, to be kept.")
    return dead_letter(
        incoming.original,
        incoming.viewer,
        incoming.client_session_uuid,
        rejected.reason,
        rejected.detail,
        body_bytes_max=policy.dead_body_bytes,
    )


_REUSED: Final = Rejection(
    RejectReason.UUID_REUSED,
    "A batch with this client_session_uuid and other content was ingested before: give each session"
    " a uuid of its own.",
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
