"""The step *resolve*: from published ids to questions, and from questions to the principal.

Pure: the questions behind the ids, and the viewer's grants, come in as values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from schemas import amqp
from schemas.attempt_batch import Attempt, AttemptBatch
from schemas.errors import Rejection
from schemas.ingest_result import Skipped
from schemas.words import RejectReason, SkipReason
from worker.domain.policy import Policy
from worker.domain.records import Original, Resolved, Standing, Standings
from worker.domain.times import was_before


@dataclass(frozen=True, slots=True)
class Incoming:
    """One delivery, as the transaction sees it."""

    viewer: str | None
    """The viewer that sent it. None if that is unknown, and then nobody gets a result."""
    content: AttemptBatch | Rejection
    client_session_uuid: UUID | None
    """The uuid of the batch. For a rejected message, the uuid that it seems to be about, so that
    its viewer gets a result.
    """
    traceparent: str | None = None
    principal: int | None = None
    """The user that the viewer names, if it names one. It chooses among the viewer's grants."""
    by_operator: bool = False
    """Whether an operator brings it in, who needs no grant to write for `principal`. If it is
    rejected, that is told to the operator, and no dead letter is kept.
    """
    can_come_again: bool = False
    """Whether it may be handed in again, instead of waiting, if its principal is busy."""
    published_at: datetime | None = None
    """When its viewer published it, by the viewer's clock. None if that is not known."""
    app: str | None = None
    """The program that published it, as it says."""
    original: Original | None = field(default=None, compare=False)
    """What is kept of it should it be rejected; nothing that can be may come without."""


Answered = tuple[int, Attempt, Standing]
"""An attempt that counts: its position, the attempt, and the question that it answers."""


class Plan(NamedTuple):
    """A batch that can be ingested."""

    incoming: Incoming
    batch: AttemptBatch
    user_id: int
    answered: tuple[Answered, ...]
    skipped: tuple[Skipped, ...]
    erased_at: datetime | None
    """When the user was erased, if some of the attempts are skipped for that reason. `answered` may
    then be empty: only the uuid of such a batch is kept.
    """

    @property
    def client_session_uuid(self) -> UUID:
        """The batch's idempotency key."""
        return self.batch.client_session_uuid


def find_principal(
    incoming: Incoming,
    batch: AttemptBatch,
    owners: Mapping[str, int | None],
    granted: Mapping[str, set[int]],
) -> int | None:
    """The batch's principal, unless the batch is rejected: the owner, in `owners`, of the first of
    its questions that has one; if all of these are shared, the user whom the viewer may and does
    mean. None if there is no such user.
    """
    is_known = False
    for attempt in batch.attempts:
        pub_id = attempt.question_pub_id
        if pub_id in owners:
            if (owner := owners[pub_id]) is not None:
                return owner
            is_known = True
    return _meant(incoming, granted) if is_known else None


def _meant(incoming: Incoming, granted: Mapping[str, set[int]]) -> int | None:
    """The user among the viewer's grants whom it names, or the only one."""
    if incoming.by_operator:
        return incoming.principal
    users = granted.get(incoming.viewer or "", set())
    if incoming.principal is not None:
        return incoming.principal if incoming.principal in users else None
    return min(users) if len(users) == 1 else None


def may_write(
    incoming: Incoming, user_id: int, granted: Mapping[str, set[int]], policy: Policy
) -> bool:
    """Whether the batch's viewer may write for the user.

    A viewer that is not in `granted` may write for nobody with `default_deny`, and for everybody
    without it.
    """
    if incoming.by_operator:
        return True
    allowed = None if incoming.viewer is None else granted.get(incoming.viewer)
    return not policy.default_deny if allowed is None else user_id in allowed


def plan(
    incoming: Incoming,
    batch: AttemptBatch,
    resolved: Resolved,
    standing: Standings,
    user_id: int | None,
    policy: Policy,
    received_at: datetime,
    erased_at: Mapping[int, datetime],
) -> Plan:
    """Divides the batch's attempts into those that count and those that are skipped.

    `user_id` is the user whose lock is held, or None. A published id that is not in `resolved` is
    unknown, and a question that is not in `standing` for this user is deleted. Raises `Rejection`
    with `nothing_resolved`, `mixed_principals`, `principal_ambiguous`, `principal_not_granted` or
    `nothing_to_score`.
    """
    owners: set[int | None] = set()
    answered: list[Answered] = []
    skipped: list[Skipped] = []
    erased: datetime | None = None
    gone_at = None if user_id is None else erased_at.get(user_id)
    for position, attempt in enumerate(batch.attempts):
        question = _question(attempt.question_pub_id, resolved, standing, user_id)
        if isinstance(question, SkipReason):
            skipped.append(_skipped(position, attempt, question))
            continue
        owners.add(question.owner_id)
        if gone_at is not None and _is_before(batch, position, gone_at, received_at, policy):
            erased = gone_at
            skipped.append(_skipped(position, attempt, SkipReason.ERASED))
            continue
        if attempt.selected_choice is None and not attempt.is_unsure:
            skipped.append(_skipped(position, attempt, SkipReason.NO_ANSWER))
        else:
            answered.append((position, attempt, question))
    principal = _single(incoming, owners, resolved.granted, len(batch.attempts))
    if not may_write(incoming, principal, resolved.granted, policy):
        raise Rejection(
            RejectReason.PRINCIPAL_NOT_GRANTED,
            f"The viewer may not write for user {principal}: grant that, or discard the batch.",
        )
    if not answered and erased is None:
        raise Rejection(
            RejectReason.NOTHING_TO_SCORE,
            "No attempt on a published question contains an answer.",
        )
    return Plan(incoming, batch, principal, tuple(answered), tuple(skipped), erased)


def _question(
    pub_id: str, resolved: Resolved, standing: Standings, user_id: int | None
) -> Standing | SkipReason:
    """The question that a published id stands for, or why there is none."""
    question_id = resolved.questions.get(pub_id)
    if question_id is None:
        return SkipReason.UNKNOWN_PUBLICATION
    if pub_id in resolved.withdrawn:
        return SkipReason.WITHDRAWN
    return standing.get((user_id, question_id)) or SkipReason.QUESTION_DELETED


def erased_throughout(
    batch: AttemptBatch,
    behind: Mapping[str, datetime | None],
    received_at: datetime,
    policy: Policy,
) -> datetime | None:
    """When the user of a batch that is to be rejected was erased, if all its answers are from
    before; None if they are not. `behind` has when the users of its questions were erased.

    A rejected batch is kept as a dead letter, and that must not keep what was erased.
    """
    found = {
        position: behind[each.question_pub_id]
        for position, each in enumerate(batch.attempts)
        if each.question_pub_id in behind
    }
    moments = [
        at
        for position, at in found.items()
        if at is not None and _is_before(batch, position, at, received_at, policy)
    ]
    return max(moments) if moments and len(moments) == len(found) else None


def _is_before(
    batch: AttemptBatch, position: int, erased_at: datetime, received_at: datetime, policy: Policy
) -> bool:
    sent_at = batch.sent_times.at[position]
    return was_before(sent_at, erased_at, received_at, policy.earliest_answer, policy.erase_memory)


def _single(
    incoming: Incoming,
    all_owners: set[int | None],
    granted: Mapping[str, set[int]],
    attempts: int,
) -> int:
    owners = all_owners - {None}
    if not all_owners:
        raise Rejection(
            RejectReason.NOTHING_RESOLVED,
            f"None of the {attempts} attempts is on a question that is published now.",
        )
    if len(owners) > 1:
        raise Rejection(
            RejectReason.MIXED_PRINCIPALS,
            f"The questions belong to {len(owners)} users, but a batch is one user's session.",
        )
    named = incoming.principal
    if owners:
        (owner,) = owners
        assert owner is not None
        if named not in (None, owner):
            where = "file" if incoming.by_operator else f"header {amqp.PRINCIPAL_HEADER}"
            raise Rejection(
                RejectReason.MIXED_PRINCIPALS,
                f"The {where} names user {named}, but the questions belong to user {owner}.",
            )
        return owner
    if (meant := _meant(incoming, granted)) is not None:
        return meant
    if named is not None:
        raise Rejection(
            RejectReason.PRINCIPAL_NOT_GRANTED,
            f"The viewer may not write for user {named}: grant that, or discard the batch.",
        )
    users = len(granted.get(incoming.viewer or "", ()))
    many = "many" if users > 1 else str(users)
    raise Rejection(
        RejectReason.PRINCIPAL_AMBIGUOUS,
        f"All questions are shared, and the viewer has {many} grants: grant it one user, or name"
        f" one in the header {amqp.PRINCIPAL_HEADER}.",
    )


def _skipped(position: int, attempt: Attempt, reason: SkipReason) -> Skipped:
    return Skipped(position=position, question_pub_id=attempt.question_pub_id, reason=reason)
