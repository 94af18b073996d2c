"""The message *ingest result*, version 1: what happened to one attempt batch, for its viewer."""

from datetime import datetime
from uuid import UUID

from pydantic import ConfigDict, Field

from .model import Open, WireModel
from .progress import ProgressMark
from .words import RejectReason, SkipReason, Status, TimeWas


class Skipped(WireModel):
    """An attempt that was skipped while the rest of its batch was ingested."""

    position: int = Field(ge=0, description="Index of the attempt in the batch, from 0.")
    question_pub_id: str
    reason: Open[SkipReason]


class SessionSummary(WireModel):
    """The effect of one topic's part of the batch, at the time of its ingest."""

    topic_id: int
    quiz_session_id: UUID
    correct: int = Field(ge=0, description="Attempts that were correct.")
    wrong: int = Field(ge=0, description="Attempts that were wrong.")
    unsure: int = Field(ge=0, description="Attempts that were unsure.")
    newly_correct: int = Field(
        ge=0, description="Questions that became correct for the first time."
    )
    recovered: int = Field(
        ge=0,
        description="Questions that became correct again, after an earlier correct attempt.",
    )
    relapsed: int = Field(
        ge=0,
        description="Questions that were correct just before the session, and are not after it.",
    )


class Due(WireModel):
    """When a question of the batch is due again, as of the time of its ingest."""

    question_pub_id: str
    due_at: datetime


class ReplacedTime(WireModel):
    """An attempt whose time as sent can't be true, and the time with which it counts instead."""

    position: int = Field(ge=0, description="Index of the attempt in the batch, from 0.")
    time_was: Open[TimeWas]
    answered_at: datetime = Field(
        description="That of the nearest attempt of the batch with a credible time, else the time"
        " of ingest."
    )


class IngestResult(WireModel):
    """The receipt for one attempt batch. A duplicate gets the same content as the first."""

    model_config = ConfigDict(json_schema_extra={"$id": "urn:study-ingest:ingest-result:v1"})

    client_session_uuid: UUID
    status: Status
    received_at: datetime = Field(description="When the batch was ingested or rejected.")
    skipped: tuple[Skipped, ...] = ()
    sessions: tuple[SessionSummary, ...] = ()
    due: tuple[Due, ...] = Field(
        default=(), description="One entry for each question whose answers counted."
    )
    replaced_times: tuple[ReplacedTime, ...] = Field(
        default=(),
        description="Attempts that counted, but with another time than was sent: see to the"
        " device's clock.",
    )
    progress: ProgressMark | None = Field(
        default=None,
        description="The version that the batch, or its correction, gave the user's progress; of"
        " that version are the times in `due`. Left out by older workers, and if nothing changed.",
    )
    voided_at: datetime | None = Field(
        default=None,
        description="Set if an operator has removed the batch from the progress. It does not count"
        " any more, so it has no sessions.",
    )
    erased_at: datetime | None = Field(
        default=None,
        description="Set where the person's history was erased, and answers of this batch with it:"
        " those that `skipped` lists as erased, or all where it lists none. Keep them no longer.",
    )
    pruned: bool | None = Field(
        default=None,
        description="True if the batch was ingested, and its result is not kept any more: nothing"
        " else is known of it, so keep the result that you have.",
    )
    reason: Open[RejectReason] | None = Field(
        default=None, description="Present only with the status rejected."
    )
    detail: str | None = Field(
        default=None, description="An explanation in one sentence, with the status rejected."
    )
