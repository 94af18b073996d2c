"""Files of content: JSON Lines and CSV with the same fields, one question in each line. Pure.

A file is read completely before anything is written, so one line that is not valid stops all of it.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, BinaryIO, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from worker.errors import ContentError

LONGEST_LINE: Final = 1_048_576
"""Bytes."""
LONGEST_TEXT: Final = 100_000
"""Characters."""
_BIGGEST_CHOICE: Final = 2**31
_BIGGEST_ID: Final = 2**63
_SHOWN: Final = 60
"""The most characters of a value that an error repeats."""

_STORABLE: Final = r"^[^\x00]*$"
"""PostgreSQL's text can't hold U+0000."""
_Id = Annotated[int, Field(ge=1, lt=_BIGGEST_ID)]


def _text(longest: int, pattern: str = _STORABLE) -> Any:
    return Field(min_length=1, max_length=longest, pattern=pattern)


class Line(BaseModel):
    """One question with the topic that it belongs to, or only a topic."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    """Of the first line in the file that belongs to it, from 1."""
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


FIELDS: Final = tuple(name for name in Line.model_fields if name != "number")


def read_json(file: BinaryIO) -> Iterator[Line]:
    """The lines of a JSON Lines file. Empty ones are skipped. Raises `ContentError`."""
    for number, line in enumerate(_decoded(file), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise ContentError(
                f"Line {number} is not a JSON object",
                "write each question as one object on a line of its own.",
            )
        yield _line(number, fields, strict=True)


def read_csv(file: BinaryIO) -> Iterator[Line]:
    """The rows of a CSV file whose first line names the fields. Raises `ContentError`.

    They are separated by the one of `,`, `;` and tab that the first line contains most often. An
    empty cell is a field that is missing.
    """
    lines = _decoded(file)
    first = next(lines, "")
    separator = max(",;\t", key=first.count)
    # The first line alone: names of fields contain no line ends.
    names = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
    _check_names(names)
    rows = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        number = rows.line_num + 2
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise ContentError(
                f"Line {number} is not valid CSV ({error})",
                "put cells that contain quotes, separators or line ends into quotes, and double"
                " the quotes inside.",
            ) from None
        if not any(row):
            continue
        if len(row) != len(names):
            raise ContentError(
                f"Line {number} has {len(row)} cells, but the first line names {len(names)}",
                "put cells that contain the separator into quotes.",
            )
        cells = {name: cell for name, cell in zip(names, row, strict=True) if cell}
        yield _line(number, cells, strict=False)


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


def shown(value: object) -> str:
    """A value as errors repeat it: quoted, on one line, and not too long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _decoded(file: BinaryIO) -> Iterator[str]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise ContentError(
                f"Line {number} has more than {LONGEST_LINE:,} bytes",
                f"shorten its cells: a text has at most {LONGEST_TEXT:,} characters.",
            )
        try:
            # Programs for tables put a byte order mark in front.
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ContentError(
                f"Line {number} is not UTF-8 (byte {line[error.start]:#04x} at column"
                f" {error.start + 1})",
                "save the file as UTF-8.",
            ) from None


def _check_names(names: list[str]) -> None:
    if unknown := [name for name in names if name not in FIELDS]:
        raise ContentError(
            f"Line 1 names the unknown field {shown(unknown[0])}",
            f"use {', '.join(FIELDS)}.",
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise ContentError(f"Line 1 names the field {twice[0]} twice", "name each once.")
    if not {"topic", "topic_id"} & {*names}:
        raise ContentError(
            "Line 1 names neither topic nor topic_id",
            f"begin the file with the names of its fields: {', '.join(FIELDS)}.",
        )


def _line(number: int, fields: dict[str, Any], *, strict: bool) -> Line:
    try:
        return Line.model_validate(fields | {"number": number}, strict=strict)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name, message = ".".join(map(str, problem["loc"])), problem["msg"]
        if problem["type"] == "extra_forbidden":
            raise ContentError(
                f"Line {number} has the unknown field {shown(name)}", f"use {', '.join(FIELDS)}."
            ) from None
        if not name:
            message = message.removeprefix("Value error, ")
            raise ContentError(f"Line {number}: {message}.") from None
        message = message[:1].lower() + message[1:]
        if problem["type"] == "string_pattern_mismatch":
            message = "space at its ends and the character U+0000 are not allowed"
        raise ContentError(
            f"Line {number}: {name} is {shown(problem['input'])} ({message})."
        ) from (None)
