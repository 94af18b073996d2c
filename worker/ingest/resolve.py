"""The step *resolve*: from published ids to questions, and from questions to the principal.

Pure: the questions behind the ids, and the viewer's grants, come in as values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from schemas.attempt_batch import Attempt, AttemptBatch
from schemas.errors import Rejection
from schemas.ingest_result import Skipped
from schemas.words import RejectReason, SkipReason
from worker.domain.policy import Policy
from worker.domain.records import Original, Resolved, Standing
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
    can_come_again: bool = False
    """Whether it may be handed in again, instead of waiting, if its principal is busy."""
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


def owner_of(batch: AttemptBatch, owners: Mapping[str, int]) -> int | None:
    """The owner, in `owners`, of the first of the batch's questions that has one. This is the
    batch's principal, unless the batch is rejected.
    """
    for attempt in batch.attempts:
        owner = owners.get(attempt.question_pub_id)
        if owner is not None:
            return owner
    return None


def may_write(
    viewer: str | None, user_id: int, granted: Mapping[str, set[int]], policy: Policy
) -> bool:
    """Whether the viewer may write for the user.

    A viewer that is not in `granted` may write for nobody with `default_deny`, and for everybody
    without it.
    """
    allowed = None if viewer is None else granted.get(viewer)
    return not policy.default_deny if allowed is None else user_id in allowed


def plan(
    incoming: Incoming,
    batch: AttemptBatch,
    resolved: Resolved,
    standing: Mapping[int, Standing],
    policy: Policy,
    received_at: datetime,
    erased_at: Mapping[int, datetime],
) -> Plan:
    """Divides the batch's attempts into those that count and those that are skipped.

    A published id that is not in `resolved` is unknown, and a question that is not in `standing` is
    deleted. Raises `Rejection` with `nothing_resolved`, `mixed_principals`, `principal_not_granted`
    or `nothing_to_score`.
    """
    owners: set[int] = set()
    answered: list[Answered] = []
    skipped: list[Skipped] = []
    erased: datetime | None = None
    for position, attempt in enumerate(batch.attempts):
        question = _question(attempt.question_pub_id, resolved, standing)
        if isinstance(question, SkipReason):
            skipped.append(_skipped(position, attempt, question))
            continue
        owners.add(question.user_id)
        gone_at = erased_at.get(question.user_id)
        if gone_at is not None and _is_before(batch, position, gone_at, received_at, policy):
            erased = gone_at
            skipped.append(_skipped(position, attempt, SkipReason.ERASED))
            continue
        if attempt.selected_choice is None and not attempt.is_unsure:
            skipped.append(_skipped(position, attempt, SkipReason.NO_ANSWER))
        else:
            answered.append((position, attempt, question))
    principal = _single(owners, len(batch.attempts))
    if not may_write(incoming.viewer, principal, resolved.granted, policy):
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
    pub_id: str, resolved: Resolved, standing: Mapping[int, Standing]
) -> Standing | SkipReason:
    """The question that a published id stands for, or why there is none."""
    question_id = resolved.questions.get(pub_id)
    if question_id is None:
        return SkipReason.UNKNOWN_PUBLICATION
    if pub_id in resolved.withdrawn:
        return SkipReason.WITHDRAWN
    return standing.get(question_id) or SkipReason.QUESTION_DELETED


def erased_throughout(
    batch: AttemptBatch,
    behind: Mapping[str, datetime | None],
    received_at: datetime,
    policy: Policy,
) -> datetime | None:
    """When the user of a batch that is to be rejected was erased, if all its answers are from
    before; None if they are not. `behind` has when the owners of its questions were erased.

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


def _single(owners: set[int], attempts: int) -> int:
    if not owners:
        raise Rejection(
            RejectReason.NOTHING_RESOLVED,
            f"None of the {attempts} attempts is on a question that is published now.",
        )
    if len(owners) > 1:
        raise Rejection(
            RejectReason.MIXED_PRINCIPALS,
            f"The questions belong to {len(owners)} users, but a batch is one user's session.",
        )
    (principal,) = owners
    return principal


def _skipped(position: int, attempt: Attempt, reason: SkipReason) -> Skipped:
    return Skipped(position=position, question_pub_id=attempt.question_pub_id, reason=reason)
