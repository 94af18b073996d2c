"""The messages about *progress*, version 1: how every device of a learner gets the current state.

A viewer sends a `ProgressRequest`, and gets pages (`ProgressPage`) or a `ProgressRefusal`. A
`ProgressMark` tells it that there is something to ask for. docs/progress.md states the protocol.
"""

from datetime import datetime
from typing import Annotated, Final

from pydantic import ConfigDict, Field, StringConstraints

from .model import Open, WireModel
from .words import Next, Outcome, Pattern, RefusalReason, StartsOver

MAX_REQUEST_BYTES: Final = 4_096

Number = Annotated[str, StringConstraints(pattern=r"^-?[0-9]{1,19}$")]
"""A 64-bit number of the study application, as text: JavaScript would round it above 2^53."""

Cursor = Annotated[str, StringConstraints(min_length=1, max_length=128)]
"""A position in one user's progress. Viewers store it and send it back, and do not interpret it."""


class ProgressMark(WireModel):
    """A user's progress has this version now. It is the body of a nudge, and a part of a result."""

    model_config = ConfigDict(json_schema_extra={"$id": "urn:study-ingest:progress-mark:v1"})

    user_id: Number
    epoch: str = Field(
        description="Names the server's history. Versions of different epochs can't be compared."
    )
    version: int = Field(
        ge=1, description="Of two versions of one user and epoch, the greater is the newer."
    )


class ProgressRequest(WireModel):
    """Asks for what has changed in one user's progress since a cursor."""

    model_config = ConfigDict(json_schema_extra={"$id": "urn:study-ingest:progress-request:v1"})

    user_id: Number | None = Field(
        default=None,
        description="One of the users that the viewer is granted. It may be left out if there is"
        " only one.",
    )
    cursor: Cursor | None = Field(
        description="That of the last page that was applied. Null for the first time."
    )


class QuestionProgress(WireModel):
    """A user's progress on one question."""

    question_id: Number = Field(
        description="Identifies the question in pages, for ever. It is not a published id."
    )
    pub_ids: tuple[str, ...] = Field(
        description="All ids under which the question is published now. Empty if it is withdrawn or"
        " deleted: do not ask it."
    )
    version: int = Field(ge=0, description="The version that changed it last.")
    last_answered_at: datetime
    last_outcome: Open[Outcome]
    stability: float = Field(gt=0, description="In days.")
    interval_days: int = Field(ge=0, description="Whole days from the last answer to `due_at`.")
    due_at: datetime = Field(description="The question counts as due from 12 hours earlier on.")
    correct: int = Field(ge=0, description="Attempts that were correct.")
    wrong: int = Field(ge=0, description="Attempts that were wrong.")
    unsure: int = Field(ge=0, description="Attempts that were unsure.")
    pattern: Open[Pattern]


class ProgressPage(WireModel):
    """A part of what has changed in one user's progress.

    It takes a viewer's state from one cursor to another, and only applies to a viewer that is at
    the first.
    """

    model_config = ConfigDict(json_schema_extra={"$id": "urn:study-ingest:progress-page:v1"})

    user_id: Number
    since: Cursor | None = Field(
        default=None,
        description="The cursor to which the page applies. Ignore the page if it is not the"
        " viewer's own. Null is the cursor of a viewer that has none.",
    )
    cursor: Cursor = Field(description="The viewer's cursor after it has applied the page.")
    epoch: str = Field(description="As in a mark.")
    version: int = Field(
        ge=0,
        description="After the page, the viewer has every change up to this version, and this one.",
    )
    starts_over: Open[StartsOver] | None = Field(
        default=None,
        description="If it is set, forget all progress of the user before the page is applied.",
    )
    erased_at: datetime | None = Field(
        default=None,
        description="Set on a page that starts over if the user's history was ever erased: the last"
        " time.",
    )
    decay: float = Field(
        gt=0,
        description="The exponent of the forgetting curve. The predicted recall after d days is"
        " (1 + (0.9^(-1/decay) - 1) * d / stability)^(-decay), where d is the time since the last"
        " answer, rounded to whole days.",
    )
    questions: tuple[QuestionProgress, ...] = Field(
        default=(), description="Each replaces what the viewer has about the question."
    )
    forget: tuple[Number, ...] = Field(
        default=(), description="The question_id of each question without progress now."
    )
    next: Open[Next] = Field(description="What comes after this page.")


class ProgressRefusal(WireModel):
    """A request that was not answered with pages, and why."""

    model_config = ConfigDict(json_schema_extra={"$id": "urn:study-ingest:progress-refusal:v1"})

    user_id: Number | None = Field(default=None, description="As in the request, if it was there.")
    reason: Open[RefusalReason]
    detail: str = Field(description="An explanation in one sentence.")
