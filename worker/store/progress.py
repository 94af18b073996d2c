"""Progress rows: the stored fold of each (user, question)."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.words import Outcome, Pattern
from worker.domain.fold import Progress
from worker.domain.records import Standing, Standings, Stored
from worker.domain.schedule import Memory
from worker.store.driver import Write, fetch
from worker.store.literals import as_text, numbers, rows_of, time_of, times, words

_COLUMNS: Final = {
    "user_id": "bigint",
    "study_question_id": "bigint",
    "study_topic_id": "bigint",
    "attempts_count": "integer",
    "correct_count": "integer",
    "wrong_count": "integer",
    "unsure_count": "integer",
    "correct_run": "integer",
    "best_run": "integer",
    "spaced_run": "integer",
    "recent_unsure": "smallint",
    "lapse_count": "integer",
    "first_correct_at": "timestamptz",
    "last_outcome": "text",
    "last_answered_at": "timestamptz",
    "stability": "double precision",
    "difficulty": "double precision",
    "due_at": "timestamptz",
    "pattern": "text",
    "explanation_requested": "boolean",
    "scheduler": "text",
}
"""The name and type of each column, in the order of `_columns_of` and `from_row`."""
_FOLD: Final = slice(3, 18)
"""The columns that make up `Progress`."""
_KEY: Final = ("user_id", "study_question_id")

SELECTED: Final = ", ".join(f"progress.{name}" for name in _COLUMNS)
"""The columns that `from_row` reads, from a table or alias `progress`."""

_OUTCOMES: Final = {outcome.value: outcome for outcome in Outcome}
_PATTERNS: Final = {pattern.value: pattern for pattern in Pattern}
"""Plain dictionaries, because calling an Enum takes ten times as long."""

_WANTED: Final = rows_of(
    {"user_id": as_text("users", "bigint"), "question_id": as_text("questions", "bigint")}
)
_STANDING: Final = text(
    "SELECT wanted.user_id, question.id, question.user_id, question.study_topic_id,"
    " question.correct_choice, coalesce(explanation_requested, false), scheduler, version,"
    f" {', '.join(f'progress.{name}' for name in [*_COLUMNS][_FOLD])}"
    f" FROM {_WANTED} AS wanted"
    " JOIN ours.study_questions AS question ON question.id = wanted.question_id"
    " LEFT JOIN ours.study_question_progress AS progress ON progress.user_id = wanted.user_id"
    " AND progress.study_question_id = wanted.question_id"
    " WHERE question.deleted_at IS NULL"
)

_NUMBERS: Final = ("bigint", "integer", "smallint", "boolean")
_SENT_AS: Final[Mapping[str, tuple[str, Callable[[Any], str]]]] = {
    "text": ("text", words),
    "timestamptz": ("bigint", times),
    **{kind: (kind, numbers) for kind in _NUMBERS},
}
"""How the array of a column is sent as text, by the column's type, and how it is written."""
_ENCODERS: Final = {name: _SENT_AS[kind][1] for name, kind in _COLUMNS.items() if kind in _SENT_AS}


def _array(name: str, kind: str) -> str:
    return as_text(name, _SENT_AS[kind][0]) if kind in _SENT_AS else f"CAST(:{name} AS {kind}[])"


_SAVE: Final = text(
    f"INSERT INTO ours.study_question_progress ({', '.join(_COLUMNS)}, version) SELECT "
    + ", ".join(time_of(name) if kind == "timestamptz" else name for name, kind in _COLUMNS.items())
    + ", CAST(:version AS bigint)"
    + f" FROM {rows_of({name: _array(name, kind) for name, kind in _COLUMNS.items()})} AS row"
    f" ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in (*_COLUMNS, "version") if name not in _KEY)
)

_OF_USER: Final = text(
    f"SELECT {SELECTED} FROM ours.study_question_progress AS progress WHERE user_id = :user_id"
    " AND (CAST(:question_ids AS bigint[]) IS NULL"
    " OR study_question_id = ANY(CAST(:question_ids AS bigint[])))"
)

_RENEW: Final = text(
    "UPDATE ours.study_question_progress SET version = :version WHERE user_id = :user_id"
    " AND (CAST(:question_ids AS bigint[]) IS NULL OR study_question_id = ANY(:question_ids))"
)

_DELETE: Final = text(
    "DELETE FROM ours.study_question_progress WHERE user_id = :user_id"
    " AND study_question_id = ANY(CAST(:question_ids AS bigint[]))"
)


async def standing(
    connection: AsyncConnection, wanted: Collection[tuple[int | None, int]]
) -> Standings:
    """The questions, and the users' progress on them, for each (user_id, question_id). Read them
    under the users' locks.
    """
    users, questions = zip(*wanted, strict=True) if wanted else ((), ())
    values = {"users": numbers(users), "questions": numbers(questions)}
    found = {}
    for row in await fetch(connection, _STANDING, values):
        user_id, question_id, owner_id, topic_id, right, requested, scheduler, version = row[:8]
        progress = None if scheduler is None else _fold(row[8:])
        found[user_id, question_id] = Standing(
            question_id, owner_id, topic_id, right, progress, requested, scheduler, version
        )
    return found


async def of_user(
    connection: AsyncConnection, user_id: int, question_ids: Collection[int] | None = None
) -> dict[int, Stored]:
    """The progress rows of a user, by question; only of `question_ids` if they are given."""
    wanted = None if question_ids is None else list(question_ids)
    rows = await connection.execute(_OF_USER, {"user_id": user_id, "question_ids": wanted})
    return {row[1]: from_row(row) for row in rows}


def saving(rows: Sequence[Stored], version: int) -> list[Write]:
    """The writes that insert or replace the rows, for `write`. Hold the lock of every principal in
    them. The version was drawn under these locks.
    """
    if not rows:
        return []
    parameters: dict[str, Any] = dict(zip(_COLUMNS, _columns_of(rows), strict=True))
    parameters["version"] = version
    for name, encode in _ENCODERS.items():
        parameters[name] = encode(parameters[name])
    return [Write(_SAVE, parameters)]


async def renew(
    connection: AsyncConnection,
    user_id: int,
    version: int,
    question_ids: Collection[int] | None = None,
) -> None:
    """Gives a user's progress a new version, which was drawn under the user's lock; only that on
    `question_ids` if they are given.
    """
    wanted = None if question_ids is None else list(question_ids)
    values = {"user_id": user_id, "question_ids": wanted, "version": version}
    await connection.execute(_RENEW, values)


async def delete(connection: AsyncConnection, user_id: int, question_ids: Iterable[int]) -> None:
    """Deletes the progress on questions that have no attempts left."""
    await connection.execute(_DELETE, {"user_id": user_id, "question_ids": list(question_ids)})


def columns(stored: Stored) -> dict[str, Any]:
    """The row as a dictionary of column names and values."""
    return {name: values[0] for name, values in zip(_COLUMNS, _columns_of([stored]), strict=True)}


def from_row(row: Sequence[Any]) -> Stored:
    """Reads the columns of `SELECTED`."""
    return Stored(row[0], row[1], row[2], _fold(row[_FOLD]), _PATTERNS[row[18]], row[19], row[20])


def _fold(row: Sequence[Any]) -> Progress:
    """Reads the columns of `_FOLD`."""
    # By position, because this runs for every question of a group.
    return Progress._make((*row[:10], _OUTCOMES[row[10]], row[11], Memory(*row[12:])))


def _columns_of(rows: Iterable[Stored]) -> Iterator[Sequence[Any]]:
    """The values of each column, in the order of `_COLUMNS`."""
    users, questions, topics, folds, patterns, requested, schedulers = zip(*rows, strict=True)
    *counts, memories = zip(*folds, strict=True)
    yield from (users, questions, topics, *counts, *zip(*memories, strict=True))
    yield from (patterns, requested, schedulers)
