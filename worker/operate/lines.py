"""Files of lines that commands import: JSON Lines and CSV with the same fields. Pure.

What the fields are, a model says. A line that is not valid is one sentence with its number.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Any, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.errors import IngestError

LONGEST_LINE: Final = 1_048_576
"""Bytes."""
_SHOWN: Final = 60
"""The most characters of a value that an error repeats."""


class NumberedLine(BaseModel):
    """One line of a file. A subclass adds the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    """Of the first line in the file that belongs to it, from 1."""


LineT = TypeVar("LineT", bound=NumberedLine)


@dataclass(frozen=True)
class Format(Generic[LineT]):
    """What the lines of a file are."""

    model: type[LineT]
    error: type[IngestError]
    """Raised for a line that is not valid."""
    noun: str
    """What one line is, such as `question`."""
    needs_one_of: tuple[str, ...] = field(default=())
    """Fields of which the first line of a CSV file names at least one."""

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields."""
        return tuple(name for name in self.model.model_fields if name != "number")

    def read(self, file: IO[bytes], *, is_csv: bool) -> Iterator[LineT]:
        """The lines of a file. Raises `error`."""
        return _read_csv(file, self) if is_csv else _read_json(file, self)


def _read_json(file: IO[bytes], of: Format[LineT]) -> Iterator[LineT]:
    """The lines of a JSON Lines file. Empty ones are skipped."""
    for number, line in enumerate(_decoded(file, of), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise of.error(
                f"Line {number} is not a JSON object",
                f"write each {of.noun} as one object on a line of its own.",
            )
        yield _line(number, fields, of, strict=True)


def _read_csv(file: IO[bytes], of: Format[LineT]) -> Iterator[LineT]:
    """The rows of a CSV file whose first line names the fields.

    They are separated by the one of `,`, `;` and tab that the first line contains most often. An
    empty cell is a field that is missing.
    """
    lines = _decoded(file, of)
    first = next(lines, "")
    separator = max(",;\t", key=first.count)
    try:
        # The first line alone: names of fields contain no line ends.
        names = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
    except csv.Error as error:
        raise _no_csv(1, error, of) from None
    _check_names(names, of)
    rows = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        number = rows.line_num + 2
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise _no_csv(number, error, of) from None
        if not any(row):
            continue
        if len(row) != len(names):
            raise of.error(
                f"Line {number} has {len(row)} cells, but the first line names {len(names)}",
                "put cells that contain the separator into quotes.",
            )
        cells = {name: cell for name, cell in zip(names, row, strict=True) if cell}
        yield _line(number, cells, of, strict=False)


def _no_csv(number: int, error: csv.Error, of: Format[LineT]) -> IngestError:
    said = str(error)
    if "field limit" in said:
        return of.error(
            f"Line {number} has a cell of more than {csv.field_size_limit():,} characters",
            "shorten its text, or close its quotes.",
        )
    if "new-line character" in said:
        return of.error(
            f"Line {number} has a line end of CR alone",
            "save the file with line ends of LF or CR LF.",
        )
    return of.error(
        f"Line {number} is not valid CSV ({said})",
        "put cells that contain quotes, separators or line ends into quotes, and double the quotes"
        " inside.",
    )


def shown(value: object) -> str:
    """A value as errors repeat it: quoted, on one line, and not too long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _decoded(file: IO[bytes], of: Format[LineT]) -> Iterator[str]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise of.error(
                f"Line {number} has more than {LONGEST_LINE:,} bytes",
                "shorten its texts.",
            )
        try:
            # Programs for tables put a byte order mark in front.
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise of.error(
                f"Line {number} is not UTF-8 (byte {line[error.start]:#04x} at column"
                f" {error.start + 1})",
                "save the file as UTF-8.",
            ) from None


def _check_names(names: list[str], of: Format[LineT]) -> None:
    if unknown := [name for name in names if name not in of.fields]:
        raise of.error(
            f"Line 1 names the unknown field {shown(unknown[0])}",
            f"use {', '.join(of.fields)}.",
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise of.error(f"Line 1 names the field {twice[0]} twice", "name each once.")
    if of.needs_one_of and not {*of.needs_one_of} & {*names}:
        either = "neither " if len(of.needs_one_of) > 1 else "no "
        raise of.error(
            f"Line 1 names {either}{' nor '.join(of.needs_one_of)}",
            f"begin the file with the names of its fields: {', '.join(of.fields)}.",
        )


def _line(number: int, fields: dict[str, Any], of: Format[LineT], *, strict: bool) -> LineT:
    try:
        return of.model.model_validate(fields | {"number": number}, strict=strict)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            raise of.error(
                f"Line {number} has the unknown field {shown(name)}", f"use {', '.join(of.fields)}."
            ) from None
        if not name:
            raise of.error(f"Line {number}: {message}.") from None
        message = message[:1].lower() + message[1:]
        if problem["type"] == "string_pattern_mismatch":
            message = "space at its ends and the character U+0000 are not allowed"
        raise of.error(f"Line {number}: {name} is {shown(problem['input'])} ({message}).") from (
            None
        )
