"""The step *resolve*: from published ids to questions, and from questions to the principal.

Pure: what the ids stand for and what a viewer was granted is handed in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from schemas.attempt_batch import Attempt, AttemptBatch
from schemas.errors import Rejection
from schemas.ingest_result import Skipped
from schemas.words import RejectReason, SkipReason
from worker.store.publications import Question


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


Answered = tuple[int, Attempt, Question]
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


_UNKNOWN: Final = SkipReason.UNKNOWN_PUBLICATION


def plan(
    incoming: Incoming,
    batch: AttemptBatch,
    questions: Mapping[str, Question | SkipReason],
    granted: Mapping[str, set[int]],
    *,
    default_deny: bool = False,
) -> Plan:
    """Sorts the batch's attempts into those that count and those that are skipped.

    A published id that `questions` lacks is unknown; a viewer that `granted` lacks may write for
    any principal, or with `default_deny` for none. Raises `Rejection`: `nothing_resolved`,
    `mixed_principals`, `principal_not_granted` or `nothing_to_score`.
    """
    owners: set[int] = set()
    answered: list[Answered] = []
    skipped: list[Skipped] = []
    for position, attempt in enumerate(batch.attempts):
        question = questions.get(attempt.question_pub_id, _UNKNOWN)
        if isinstance(question, SkipReason):
            skipped.append(_skipped(position, attempt, question))
            continue
        owners.add(question.user_id)
        if attempt.selected_choice is None and not attempt.is_unsure:
            skipped.append(_skipped(position, attempt, SkipReason.NO_ANSWER))
        else:
            answered.append((position, attempt, question))
    return Plan(
        incoming,
        batch,
        _principal(owners, _allowed(incoming.viewer, granted, default_deny), len(batch.attempts)),
        _some(answered),
        tuple(skipped),
    )


def _allowed(
    viewer: str | None, granted: Mapping[str, set[int]], default_deny: bool
) -> set[int] | None:
    """The principals that the viewer may write for; None stands for any."""
    if default_deny:
        return granted.get(viewer, set()) if viewer is not None else set()
    return granted.get(viewer) if viewer is not None else None


def _principal(owners: set[int], allowed: set[int] | None, attempts: int) -> int:
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
    if allowed is not None and principal not in allowed:
        raise Rejection(
            RejectReason.PRINCIPAL_NOT_GRANTED,
            f"The viewer may not write for user {principal}: grant it, or discard the batch.",
        )
    return principal


def _some(answered: list[Answered]) -> tuple[Answered, ...]:
    if not answered:
        raise Rejection(
            RejectReason.NOTHING_TO_SCORE,
            "No attempt on a published question has an answer.",
        )
    return tuple(answered)


def _skipped(position: int, attempt: Attempt, reason: SkipReason) -> Skipped:
    return Skipped(position=position, question_pub_id=attempt.question_pub_id, reason=reason)
