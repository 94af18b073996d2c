"""Many rows as parameters of one statement: one array for each column, which is the fastest way.

Most arrays are sent as text, which the statement casts to its type (`as_text`). For other arrays
the driver checks whether each element is an array itself, which takes longer than writing it as
text.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def rows_of(columns: Mapping[str, str]) -> str:
    """SQL for a subquery of rows, from the name and the array of each column."""
    # Not unnest(...) in FROM, because PostgreSQL would first write each array into a table.
    selected = ", ".join(f"unnest({array}) AS {name}" for name, array in columns.items())
    return f"(SELECT {selected})"


def as_text(parameter: str, kind: str) -> str:
    """SQL for an array of type `kind` that is sent as text."""
    return f"CAST(CAST(:{parameter} AS text) AS {kind}[])"


def words(values: Iterable[str | None]) -> str:
    """An array of our own words, which need no quotes. None is null."""
    return "{" + ",".join([value or "null" for value in values]) + "}"


def texts(values: Iterable[str]) -> str:
    """An array of any texts without U+0000, which PostgreSQL can't store."""
    quoted = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
    return '{"' + '","'.join(quoted) + '"}' if quoted else "{}"


def numbers(values: Iterable[int | None]) -> str:
    """An array of numbers or truth values, with None for null."""
    return "{" + repr([*values])[1:-1].replace("None", "null") + "}"


def times(values: Iterable[datetime | None]) -> str:
    """An array of times in UTC, as whole microseconds since 1970. Read it with `time_of`."""
    return "{" + ",".join(["null" if at is None else _microseconds(at) for at in values]) + "}"


def _microseconds(at: datetime) -> str:
    since = at - _EPOCH
    return str((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def time_of(column: str) -> str:
    """SQL for one of `times`. Seconds are separate from the rest, because PostgreSQL multiplies an
    interval as a double, which holds every whole second exactly, but not every microsecond.
    """
    return (
        f"timestamptz 'epoch' + {column} / 1000000 * interval '1 second'"
        f" + {column} % 1000000 * interval '1 microsecond'"
    )
