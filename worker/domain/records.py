"""The core's nouns: what the store reads for the core, and what it writes of what the core says.

Plain values without behaviour of their own. They live below the store, so that the pure steps of
ingest need neither a database driver nor SQL to be imported.
"""

from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from schemas import amqp
from schemas.words import Pattern
from worker.domain.fold import Progress
from worker.domain.schedule import SCHEDULER_NAME
from worker.domain.scoring import ScoredAttempt


class Resolved(NamedTuple):
    """What published ids stand for, before anything is locked."""

    questions: Mapping[str, int]
    """The question's id by published id, deleted or not; an id that is missing is unknown."""
    withdrawn: Set[str]
    """The published ids in `questions` that are withdrawn."""
    owners: Mapping[str, int]
    """The owner's user id by published id: of the questions whose owner was asked for, less those
    that are withdrawn or deleted."""
    granted: Mapping[str, set[int]]
    """The principals granted to each viewer that has any grant at all."""


class Standing(NamedTuple):
    """A question as it stands under its principal's lock; a deleted question has none."""

    question_id: int
    user_id: int
    topic_id: int
    correct_choice: int
    progress: Progress | None
    """None when it was never answered."""
    explanation_requested: bool
    scheduler: str | None
    """The scheduler that computed the schedule in `progress`."""


class Stored(NamedTuple):
    """A progress row: the fold, and what stands beside it."""

    user_id: int
    question_id: int
    topic_id: int
    progress: Progress
    pattern: Pattern
    explanation_requested: bool
    scheduler: str = SCHEDULER_NAME


class AttemptRow(NamedTuple):
    """One attempt to write: as it is folded, and what stands beside that."""

    attempt: ScoredAttempt
    question_id: int
    selected_choice: int | None
    correct_choice: int
    answered_at_sent: datetime | None


class SessionRow(NamedTuple):
    """One quiz session to write: a batch's attempts (at least one) on one topic."""

    id: UUID
    user_id: int
    topic_id: int
    question_ids: list[int]
    client_session_uuid: UUID
    correct_count: int
    wrong_count: int
    unsure_count: int
    finished_at: datetime
    received_at: datetime
    attempts: Sequence[AttemptRow]


class Message(NamedTuple):
    """A message to publish. `message_id` is the same however often it is published."""

    message_id: UUID
    exchange: str
    routing_key: str
    type: str
    headers: Mapping[str, str]
    body: str

    @property
    def is_job(self) -> bool:
        """Whether it is a follow-up job, and not a result."""
        return self.exchange != amqp.RESULTS_EXCHANGE


# The driver writes exactly these two as infinities, and reads infinities back without a zone.
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC) + timedelta.resolution
_LATEST: Final = datetime.max.replace(tzinfo=UTC) - timedelta.resolution


def storable(at: datetime | None) -> datetime | None:
    """`at` as it will be read back: the first and the last instant there are move inwards."""
    if at is None or _EARLIEST <= at <= _LATEST:
        return at
    return _EARLIEST if at < _EARLIEST else _LATEST
