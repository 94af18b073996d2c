"""The base of all message models."""

from pydantic import BaseModel, ConfigDict


class WireModel(BaseModel):
    """It is immutable, and ignores fields that a newer version has added."""

    model_config = ConfigDict(frozen=True, extra="ignore")
