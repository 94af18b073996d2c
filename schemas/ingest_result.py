"""The message *ingest result*, version 1: what a viewer is told of one attempt batch."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, TypeVar
from uuid import UUID

from pydantic import ConfigDict, Field

from .model import WireModel
from .words import RejectReason, SkipReason, Status

Word = TypeVar("Word", bound=StrEnum)

Open = Annotated[Word | str, Field(union_mode="left_to_right")]
"""A word of the enumeration, or one that a newer worker may know: to be taken as it is."""


class Skipped(WireModel):
    """An attempt that was left out while the rest of its batch went on."""

    position: int = Field(ge=0, description="Index of the attempt in the batch, from 0.")
    question_pub_id: str
    reason: Open[SkipReason]


class SessionSummary(WireModel):
    """What one topic's part of the batch came to, as of when it was ingested."""

    topic_id: int
    quiz_session_id: UUID
    correct: int = Field(ge=0, description="Attempts that were correct.")
    wrong: int = Field(ge=0, description="Attempts that were wrong.")
    unsure: int = Field(ge=0, description="Attempts that were unsure.")
    newly_correct: int = Field(ge=0, description="Questions correct now, never before.")
    recovered: int = Field(
        ge=0, description="Questions once correct, not so last before, correct after."
    )
    relapsed: int = Field(ge=0, description="Questions correct last before, not after.")


class Due(WireModel):
    """When a question that the batch answered is to be asked again, as of when it was ingested."""

    question_pub_id: str
    due_at: datetime


class IngestResult(WireModel):
    """The receipt for one attempt batch; a duplicate is told all that the first was."""

    model_config = ConfigDict(json_schema_extra={"$id": "urn:study-ingest:ingest-result:v1"})

    client_session_uuid: UUID
    status: Status
    received_at: datetime = Field(
        description="When the batch was ingested, or, for a rejection, when it was refused."
    )
    skipped: tuple[Skipped, ...] = ()
    sessions: tuple[SessionSummary, ...] = ()
    due: tuple[Due, ...] = Field(
        default=(), description="One for each question whose answers counted."
    )
    reason: Open[RejectReason] | None = Field(
        default=None, description="Only with status rejected."
    )
    detail: str | None = Field(default=None, description="One sentence, with status rejected.")
