"""Why a batch was rejected, in terms that somebody can change: its questions, and the grants of its
viewer, as they are now.
"""

from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.attempt_batch import AttemptBatch
from worker.domain.policy import Policy
from worker.store import content as owned
from worker.store.operate import content, grants

_GRANTS: Final = 1_000


@dataclass(frozen=True, slots=True)
class QuestionNow:
    """A published id that a batch answers, and what it stands for now."""

    pub_id: str
    state: str
    """`published`, `withdrawn`, `deleted`, or `unknown` where no question has this id."""
    owner: int | None
    topic_id: int | None
    title: str | None


@dataclass(frozen=True, slots=True)
class Causes:
    """What a replay would meet."""

    questions: list[QuestionNow]
    granted: list[int]
    """The users for whom the viewer may write, up to 1,000."""
    may_write_for_all: bool
    """Whether the viewer has no grant and needs none, because identity is off."""
    content_is_ours: bool
    """Whether questions can be published again here."""

    @property
    def withdrawn(self) -> list[str]:
        """The published ids that can be restored."""
        return [each.pub_id for each in self.questions if each.state == "withdrawn"]

    @property
    def not_granted(self) -> list[int]:
        """The owners of the questions for whom the viewer may not write."""
        if self.may_write_for_all:
            return []
        owners = {each.owner for each in self.questions if each.owner is not None}
        return sorted(owners - {*self.granted})


async def causes(
    connection: AsyncConnection, batch: AttemptBatch, viewer: str | None, policy: Policy
) -> Causes:
    """The questions in the order in which the batch answers them, each once."""
    pub_ids = [*dict.fromkeys(attempt.question_pub_id for attempt in batch.attempts)]
    published = await content.published(connection, pub_ids)
    questions = []
    for pub_id in pub_ids:
        found = published.get(pub_id)
        if found is None or found.question_id is None:
            questions.append(QuestionNow(pub_id, "unknown", None, None, None))
            continue
        status = "withdrawn" if found.withdrawn else "deleted" if found.deleted else "published"
        questions.append(QuestionNow(pub_id, status, found.owner, found.topic_id, found.title))
    granted = [] if viewer is None else await grants.of_viewer(connection, viewer, _GRANTS)
    is_open = not granted and not policy.default_deny
    return Causes(questions, granted, is_open, await owned.is_ours(connection, "published"))
