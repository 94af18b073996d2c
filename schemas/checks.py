"""The messages with which viewers find out what the server has lost, version 1.

A viewer sends a `Check` of batches that were settled, and gets a `Checked`. A `Recall` tells it
that an operator wants it to check. docs/viewers.md says when a viewer asks, and what it does then.
"""

from typing import Annotated, Final
from uuid import UUID

from pydantic import AwareDatetime, ConfigDict, Field

from .model import WireModel

MAX_CHECKED: Final = 100
"""Batches in one check. With their uuids in the usual form it has fewer bytes than a request for
progress may have.
"""

Uuids = Annotated[tuple[UUID, ...], Field(min_length=1, max_length=MAX_CHECKED)]


class Check(WireModel):
    """Asks which of a viewer's own batches the server has."""

    model_config = ConfigDict(json_schema_extra={"$id": "urn:study-ingest:check:v1"})

    client_session_uuids: Uuids


class Checked(WireModel):
    """Which of the batches of a check the server has, and which it has not."""

    model_config = ConfigDict(json_schema_extra={"$id": "urn:study-ingest:checked:v1"})

    epoch: str = Field(description="That of the server that looked, as in a mark of progress.")
    has: tuple[UUID, ...] = Field(
        description="The batches that are ingested, erased, or kept as dead letters."
    )
    missing: tuple[UUID, ...] = Field(
        description="The batches that it has not, or not from this viewer or one of its users:"
        " publish them again."
    )


class Recall(WireModel):
    """Asks a viewer to check what it was told since a moment, because a backup was restored."""

    model_config = ConfigDict(json_schema_extra={"$id": "urn:study-ingest:recall:v1"})

    since: AwareDatetime = Field(
        description="Check the batches whose results have this time in `received_at`, or a later"
        " one."
    )
