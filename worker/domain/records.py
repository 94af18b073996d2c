"""The values that pass between the store and the core, in both directions.

They are plain values without behavior. They live below the store, so that importing the pure steps
of ingest loads neither SQL nor a database driver.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, Protocol
from uuid import UUID

from schemas import amqp
from schemas.words import Pattern, TimeWas
from worker.domain.fold import Progress
from worker.domain.schedule import SCHEDULER_NAME
from worker.domain.scoring import ScoredAttempt


class Resolved(NamedTuple):
    """The questions and owners behind published ids, read before anything is locked."""

    questions: Mapping[str, int]
    """The question's id by published id, whether it is deleted or not. A missing id is unknown."""
    withdrawn: Set[str]
    """The published ids in `questions` that are withdrawn."""
    owners: Mapping[str, int | None]
    """The owner's user id by published id, for the questions whose owner was asked for; None for a
    shared question. Withdrawn and deleted questions are left out.
    """
    granted: Mapping[str, set[int]]
    """The principals granted to each viewer: all of them, or enough to decide about the batches. A
    viewer without any grant is left out.
    """


UserQuestion = tuple[int, int]
"""(user_id, question_id): many users may share a question, and each has a history of it."""


class Standing(NamedTuple):
    """A question, and a user's progress on it, under that user's lock. A deleted question has
    none.
    """

    question_id: int
    owner_id: int | None
    """None if the question is shared."""
    topic_id: int
    correct_choice: int
    progress: Progress | None
    """None if the question was never answered."""
    explanation_requested: bool
    scheduler: str | None
    """The scheduler that computed the schedule in `progress`."""
    version: int | None = None
    """The version of `progress`."""


Standings = Mapping[tuple[int | None, int], Standing]
"""By (user_id, question_id). Without a user there is no progress."""


class Stored(NamedTuple):
    """A progress row: the fold, and the columns beside it."""

    user_id: int
    question_id: int
    topic_id: int
    progress: Progress
    pattern: Pattern
    explanation_requested: bool
    scheduler: str = SCHEDULER_NAME


class AttemptRow(NamedTuple):
    """One attempt to write: what is folded, and the columns beside it."""

    attempt: ScoredAttempt
    question_id: int
    selected_choice: int | None
    correct_choice: int
    answered_at_sent: datetime | None
    time_was: TimeWas | None
    """Why the time as sent was replaced; None if it is the effective time."""
    utc_offset: int | None
    """The offset of the time as sent, in minutes. None if it had none."""
    duration_ms: int | None
    """How long the answer took, as sent."""


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


class Mark(NamedTuple):
    """A version of progress, and the epoch without which it means nothing."""

    epoch: str
    version: int


class ReadState(NamedTuple):
    """What decides from where a viewer needs a user's progress."""

    newest: Mark
    """The last version that was ever drawn, for whatever user."""
    erased_at: datetime | None
    """When the user's history was last erased. None if it never was."""
    erased: int
    """The version of that erasure, and 0 without one."""


class ChangedQuestion(NamedTuple):
    """A question on which a user's progress has changed. If there is none any more, all but the
    first two are None.
    """

    version: int
    question_id: int
    last_answered_at: datetime | None
    last_outcome: str | None
    stability: float | None
    due_at: datetime | None
    correct: int | None
    wrong: int | None
    unsure: int | None
    pattern: str | None


class Change(NamedTuple):
    """A user's progress was changed by a batch."""

    user_id: int
    viewer: str | None
    """The viewer that sent the batch."""
    mark: Mark


OnChange = Callable[[int, Mark], None]
"""Called with a user and the version that a correction gives to the user's progress."""


class Message(NamedTuple):
    """A message to publish. It keeps its `message_id` however often it is published."""

    message_id: UUID
    exchange: str
    routing_key: str
    type: str
    headers: Mapping[str, str]
    body: str

    @property
    def is_job(self) -> bool:
        """Whether it is a follow-up job. Otherwise it is a result."""
        return self.exchange != amqp.RESULTS_EXCHANGE


class Bytes(Protocol):
    """A message as it came, none of it decoded."""

    @property
    def body(self) -> bytes:
        """As much of the beginning of the body as was read: as a rule, all of it."""

    @property
    def size(self) -> int:
        """The length of the whole body, in bytes."""

    def digest(self) -> bytes:
        """The SHA-256 of the whole body."""

    def field_table(self) -> bytes:
        """Its properties and headers as an AMQP field table, byte for byte."""

    def identity(self) -> bytes:
        """The same, as far as it stays the same however often the broker hands the message out."""


class Original(NamedTuple):
    """What a dead letter keeps, should the message become one."""

    message: Bytes
    routing_key: str
    """The one under which its viewer published it."""
    replay_id: UUID | None = None
    """The replay by which it came, if it had been a dead letter before."""


class DeadLetter(NamedTuple):
    """A message that was not ingested, to be kept with its reason."""

    key: bytes
    """The same for the same message, rejected for the same reason: 32 bytes."""
    died_at: datetime | None
    """None for the time of the transaction that keeps it."""
    reason: str
    detail: str
    viewer: str | None
    routing_key: bytes
    client_session_uuid: UUID | None
    replay_id: UUID | None
    properties: bytes
    """Properties and headers, as an AMQP field table."""
    body: bytes
    """Whole, or as much of its beginning as is kept."""
    body_bytes: int
    """The length of the whole body."""
    body_sha256: bytes | None
    """Of the whole body, where only its beginning is kept."""


# The driver writes exactly these two as infinities, and reads infinities back without a time zone.
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC) + timedelta.resolution
LATEST: Final = datetime.max.replace(tzinfo=UTC) - timedelta.resolution


def storable(at: datetime | None) -> datetime | None:
    """`at` as it will be read back. The first and the last possible instant move inwards."""
    if at is None or _EARLIEST <= at <= LATEST:
        return at
    return _EARLIEST if at < _EARLIEST else LATEST
