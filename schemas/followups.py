"""The follow-up jobs that an ingested session causes, version 1 of each.

`KINDS` is the registry: topology, published documents and the worker all read it.
"""

from typing import Final, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from .model import WireModel
from .words import Outcome, Pattern


class ExplanationRequested(WireModel):
    """Asks, once for each (user, question), for an explanation of a question that was not answered
    correctly.
    """

    model_config = ConfigDict(
        json_schema_extra={"$id": "urn:study-ingest:explanation-requested:v1"}
    )

    user_id: int
    question_id: int
    topic_id: int
    quiz_session_id: UUID = Field(description="The first session that caused the request.")
    outcome: Outcome = Field(description="The question's last outcome in that session.")


class QuestionPattern(WireModel):
    """A question and its pattern."""

    question_id: int
    pattern: Pattern


class ReviewRequested(WireModel):
    """Asks for a review of the questions of a session that are relapsed, stuck or leeches."""

    model_config = ConfigDict(json_schema_extra={"$id": "urn:study-ingest:review-requested:v1"})

    user_id: int
    topic_id: int
    quiz_session_id: UUID
    questions: tuple[QuestionPattern, ...]


class Kind(NamedTuple):
    """A kind of follow-up job as it travels."""

    routing_key: str
    """The routing key, as `noun.participle`. All other names of the kind are derived from it."""
    model: type[BaseModel]
    how_often: str
    summary: str

    @property
    def message_type(self) -> str:
        """The property `type` of its messages."""
        return f"study.{self.routing_key.replace('.', '_')}.v1"


EXPLANATION: Final = Kind(
    "explanation.requested",
    ExplanationRequested,
    "Once for each (user, question).",
    "Ask for an explanation of a question that was not answered correctly.",
)
REVIEW: Final = Kind(
    "review.requested",
    ReviewRequested,
    "At most once for each quiz session.",
    "Ask for a review of questions that are relapsed, stuck or leeches.",
)
KINDS: Final = (EXPLANATION, REVIEW)
