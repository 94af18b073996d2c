"""What all message models have in common."""

from pydantic import BaseModel, ConfigDict


class WireModel(BaseModel):
    """Does not change, and ignores fields that a newer version has added."""

    model_config = ConfigDict(frozen=True, extra="ignore")
