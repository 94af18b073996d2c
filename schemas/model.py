"""The base of all message models."""

from enum import StrEnum
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Word = TypeVar("Word", bound=StrEnum)

Open = Annotated[Word | str, Field(union_mode="left_to_right")]
"""A word of the enumeration, or an unknown word from a newer worker, which is accepted as it is."""


class WireModel(BaseModel):
    """It is immutable, and ignores fields that a newer version has added."""

    model_config = ConfigDict(frozen=True, extra="ignore")
