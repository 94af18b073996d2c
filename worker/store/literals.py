"""Many rows as parameters of one statement: an array for each column, the cheapest way there.

Most are sent as text, to be cast to their type by the statement (`as_text`): the driver asks of
every element whether it is an array itself, which takes longer than writing it down.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def rows_of(columns: Mapping[str, str]) -> str:
    """SQL for a subquery of rows: by the name of each column, its array."""
    # Not unnest(...) in FROM: PostgreSQL would first write down each array as a table of its own.
    selected = ", ".join(f"unnest({array}) AS {name}" for name, array in columns.items())
    return f"(SELECT {selected})"


def as_text(parameter: str, kind: str) -> str:
    """SQL for an array of `kind` that is sent as text."""
    return f"CAST(CAST(:{parameter} AS text) AS {kind}[])"


def words(values: Iterable[str]) -> str:
    """Of words of ours, none of them null or in need of quotes."""
    return "{" + ",".join(values) + "}"


def texts(values: Iterable[str]) -> str:
    """Of any texts without U+0000, which PostgreSQL can't hold."""
    quoted = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
    return '{"' + '","'.join(quoted) + '"}' if quoted else "{}"


def numbers(values: Iterable[int | None]) -> str:
    """Of numbers or truth values, None for null."""
    return "{" + repr([*values])[1:-1].replace("None", "null") + "}"


def times(values: Iterable[datetime | None]) -> str:
    """Of times in UTC, as whole microseconds since 1970; to be read with `time_of`."""
    return "{" + ",".join(["null" if at is None else _microseconds(at) for at in values]) + "}"


def _microseconds(at: datetime) -> str:
    since = at - _EPOCH
    return str((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def time_of(column: str) -> str:
    """SQL for one of `times`. Seconds apart from the rest: an interval is multiplied as a double,
    which holds every whole second there is, and not every microsecond.
    """
    return (
        f"timestamptz 'epoch' + {column} / 1000000 * interval '1 second'"
        f" + {column} % 1000000 * interval '1 microsecond'"
    )
