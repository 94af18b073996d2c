"""Files of content: one question in each line. Pure.

A file is read completely before anything is written, so one line that is not valid stops all of it.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from worker.errors import ContentError
from worker.operate.lines import Format, NumberedLine, shown

LONGEST_TEXT: Final = 100_000
"""Characters."""
_BIGGEST_CHOICE: Final = 2**31
_BIGGEST_ID: Final = 2**63

_STORABLE: Final = r"^[^\x00]*$"
"""PostgreSQL's text can't hold U+0000."""
_Id = Annotated[int, Field(ge=1, lt=_BIGGEST_ID)]


def _text(longest: int, pattern: str = _STORABLE) -> Any:
    return Field(min_length=1, max_length=longest, pattern=pattern)


class Line(NumberedLine):
    """One question with the topic that it belongs to, or only a topic."""

    topic: Annotated[str, _text(1_000)] | None = None
    """The topic's name. It is created if its owner has none of this name."""
    topic_id: _Id | None = None
    """An existing topic, instead of a name."""
    user_id: _Id | None = None
    """The owner of topic and question. Without an owner they belong to a shared bank."""
    # Without space at its ends, which nobody would see.
    pub_id: Annotated[str, _text(128, r"^[^\s\x00]([^\x00]*[^\s\x00])?$")] | None = None
    correct_choice: Annotated[int, Field(ge=-_BIGGEST_CHOICE, lt=_BIGGEST_CHOICE)] | None = None
    title: Annotated[str, _text(1_000)] | None = None
    text: Annotated[str, _text(LONGEST_TEXT)] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "Line":
        if (self.topic is None) == (self.topic_id is None):
            raise ValueError("a line needs either topic or topic_id")
        if self.pub_id is None and (self.correct_choice, self.title, self.text) != (None,) * 3:
            raise ValueError("pub_id is missing")
        if self.pub_id is not None and self.correct_choice is None:
            raise ValueError("correct_choice is missing")
        return self


FORMAT: Final = Format(Line, ContentError, "question", ("topic", "topic_id"))


def without_duplicates(lines: Iterable[Line]) -> list[Line]:
    """All lines. Raises `ContentError` if two of them have the same pub_id, or if there is none."""
    seen: dict[str, int] = {}
    found = []
    for line in lines:
        if line.pub_id is not None and (before := seen.setdefault(line.pub_id, line.number)) != (
            line.number
        ):
            raise ContentError(
                f"Line {line.number} has the pub_id {shown(line.pub_id)} of line {before}",
                "give each question an id of its own.",
            )
        found.append(line)
    if not found:
        raise ContentError("The file has no questions.")
    return found
