"""The step *resolve*: from published ids to questions, and from questions to the principal.

Pure: what the ids stand for, the questions and what a viewer was granted is handed in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from schemas.attempt_batch import Attempt, AttemptBatch
from schemas.errors import Rejection
from schemas.ingest_result import Skipped
from schemas.words import RejectReason, SkipReason
from worker.domain.policy import Policy
from worker.domain.records import Resolved, Standing


@dataclass(frozen=True, slots=True)
class Incoming:
    """One delivery as the transaction sees it."""

    viewer: str | None
    """Who sent it; None when that can't be known, and then nobody is told."""
    content: AttemptBatch | Rejection
    client_session_uuid: UUID | None
    """The batch's; of a rejection the one it seems to be about, so that its viewer is told."""
    traceparent: str | None = None
    can_come_again: bool = False
    """Whether it may be handed in again instead of waiting, where its principal is in use."""


Answered = tuple[int, Attempt, Standing]
"""An attempt that counts: its position, itself, and what it answers."""


class Plan(NamedTuple):
    """A batch that can be ingested."""

    incoming: Incoming
    batch: AttemptBatch
    user_id: int
    answered: tuple[Answered, ...]
    skipped: tuple[Skipped, ...]

    @property
    def client_session_uuid(self) -> UUID:
        """The batch's idempotency key."""
        return self.batch.client_session_uuid


def owner_of(batch: AttemptBatch, owners: Mapping[str, int]) -> int | None:
    """The owner of the first question that has one in `owners`, by published id: the batch's
    principal, unless it is one to be rejected.
    """
    for attempt in batch.attempts:
        owner = owners.get(attempt.question_pub_id)
        if owner is not None:
            return owner
    return None


def may_write(
    viewer: str | None, user_id: int, granted: Mapping[str, set[int]], policy: Policy
) -> bool:
    """Whether the viewer may write for the user: one that `granted` lacks may for any user, or with
    `policy.default_deny` for none.
    """
    allowed = None if viewer is None else granted.get(viewer)
    return not policy.default_deny if allowed is None else user_id in allowed


def plan(
    incoming: Incoming,
    batch: AttemptBatch,
    resolved: Resolved,
    standing: Mapping[int, Standing],
    policy: Policy,
) -> Plan:
    """Sorts the batch's attempts into those that count and those that are skipped.

    A published id that `resolved` lacks is unknown, and a question that `standing` lacks is
    deleted. Raises `Rejection`: `nothing_resolved`, `mixed_principals`, `principal_not_granted`
    or `nothing_to_score`.
    """
    owners: set[int] = set()
    answered: list[Answered] = []
    skipped: list[Skipped] = []
    for position, attempt in enumerate(batch.attempts):
        question = _question(attempt.question_pub_id, resolved, standing)
        if isinstance(question, SkipReason):
            skipped.append(_skipped(position, attempt, question))
            continue
        owners.add(question.user_id)
        if attempt.selected_choice is None and not attempt.is_unsure:
            skipped.append(_skipped(position, attempt, SkipReason.NO_ANSWER))
        else:
            answered.append((position, attempt, question))
    principal = _single(owners, len(batch.attempts))
    if not may_write(incoming.viewer, principal, resolved.granted, policy):
        raise Rejection(
            RejectReason.PRINCIPAL_NOT_GRANTED,
            f"The viewer may not write for user {principal}: grant it, or discard the batch.",
        )
    if not answered:
        raise Rejection(
            RejectReason.NOTHING_TO_SCORE,
            "No attempt on a published question has an answer.",
        )
    return Plan(incoming, batch, principal, tuple(answered), tuple(skipped))


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


def _single(owners: set[int], attempts: int) -> int:
    if not owners:
        raise Rejection(
            RejectReason.NOTHING_RESOLVED,
            f"None of the {attempts} attempts names a question that is published now.",
        )
    if len(owners) > 1:
        raise Rejection(
            RejectReason.MIXED_PRINCIPALS,
            f"The questions belong to {len(owners)} users; a batch is one user's session.",
        )
    (principal,) = owners
    return principal


def _skipped(position: int, attempt: Attempt, reason: SkipReason) -> Skipped:
    return Skipped(position=position, question_pub_id=attempt.question_pub_id, reason=reason)
