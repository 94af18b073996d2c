"""The follow-up jobs that an ingested session causes, version 1 of each."""

from uuid import UUID

from pydantic import ConfigDict, Field

from .model import WireModel
from .words import Outcome, Pattern


class ExplanationRequested(WireModel):
    """Asks, once for each (user, question), for an explanation of a question gone wrong."""

    model_config = ConfigDict(
        json_schema_extra={"$id": "urn:study-ingest:explanation-requested:v1"}
    )

    user_id: int
    question_id: int
    topic_id: int
    quiz_session_id: UUID = Field(description="The first session that caused the request.")
    outcome: Outcome = Field(description="The question's last outcome in that session.")


class QuestionPattern(WireModel):
    """A question and what its history looks like."""

    question_id: int
    pattern: Pattern


class ReviewRequested(WireModel):
    """Asks for a review of the questions of a session that are relapsed, stuck or leeches."""

    model_config = ConfigDict(json_schema_extra={"$id": "urn:study-ingest:review-requested:v1"})

    user_id: int
    topic_id: int
    quiz_session_id: UUID
    questions: tuple[QuestionPattern, ...]
