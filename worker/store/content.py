"""The content: topics, questions, and the publications of questions.

It is the study application's. Where it has relations of these names, tables or views, they are used
as they are; where it has none, a migration makes tables. Which of the two it was is on record.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.errors import SchemaError
from worker.store.ours import schema_of

TABLE: Final = "ingest_content"
"""Which relations are ours. It is missing in a schema before 0013, when all of them were."""

_INTEGER: Final = ("smallint", "integer", "bigint")
_TEXT: Final = ("text", "character varying")
_TIME: Final = ("timestamp with time zone", "timestamp without time zone")


class _Relation(NamedTuple):
    columns: Mapping[str, Collection[str]]
    """The types that each column may have. More columns do not matter."""
    keys: Collection[str]
    """The columns by which its rows are looked up."""


RELATIONS: Final = {
    "published": _Relation(
        {"pub_id": _TEXT, "kind": _TEXT, "source_id": _INTEGER, "deleted": ("boolean",)},
        ("pub_id", "source_id"),
    ),
    "study_topics": _Relation({"id": _INTEGER, "user_id": _INTEGER, "name": _TEXT}, ("id",)),
    "study_questions": _Relation(
        {
            "id": _INTEGER,
            "user_id": _INTEGER,
            "study_topic_id": _INTEGER,
            "correct_choice": ("smallint", "integer"),
            "deleted_at": _TIME,
        },
        ("id",),
    ),
}

_THERE: Final = text(
    "SELECT relname FROM pg_class"
    " WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = :schema)"
    " AND relkind IN ('r', 'p', 'v', 'm', 'f') AND relname = ANY(CAST(:names AS text[]))"
)
_COLUMNS: Final = text(
    "SELECT column_name, data_type FROM information_schema.columns"
    " WHERE table_schema = :schema AND table_name = :name"
)
_THEIRS: Final = text(f"SELECT relation FROM ours.{TABLE} WHERE NOT is_ours ORDER BY relation")
_COSTS: Final = {
    "seq_page_cost": 0,
    "random_page_cost": 0,
    "cpu_tuple_cost": 1,
    "cpu_index_tuple_cost": 1,
    "cpu_operator_cost": 0.00001,
}
"""Of the planner: with these it reads as few rows as the indexes allow."""

_EMPTY: Final = text(
    "SELECT relname FROM pg_class WHERE relkind IN ('r', 'm') AND reltuples BETWEEN 0 AND 1"
)
"""Tables that have at most one row, as far as ANALYZE knows."""

_IS_OURS: Final = text(f"SELECT is_ours FROM ours.{TABLE} WHERE relation = :name")


def there(connection: Connection, names: Collection[str]) -> set[str]:
    """Those of the relations that exist."""
    values = {"names": list(names), "schema": schema_of(connection)}
    return set(connection.scalars(_THERE, values))


def theirs(connection: Connection) -> set[str]:
    """The relations that are the application's, in a schema that was migrated."""
    if not there(connection, [TABLE]):
        return set()
    return set(connection.scalars(_THEIRS))


async def is_ours(connection: AsyncConnection, relation: str) -> bool:
    """Whether a migration made the relation, so that it may be written."""
    return bool(await connection.scalar(_IS_OURS, {"name": relation}))


def check(connection: Connection, relations: Collection[str]) -> None:
    """Looks whether the application's relations are what a worker needs. Changes nothing, and locks
    no more than a read does.

    Raises `SchemaError` with everything that is missing.
    """
    missing = [each for name in sorted(relations) for each in _missing(connection, name)]
    if missing:
        raise SchemaError(
            f"The application's content can't be used: {'; '.join(missing)}",
            "change it, or set INGEST_DATABASE_SCHEMA to a schema with views of it"
            " (docs/content.md).",
        )


def _missing(connection: Connection, name: str) -> Iterator[str]:
    values = {"name": name, "schema": schema_of(connection)}
    found = {row[0]: row[1] for row in connection.execute(_COLUMNS, values)}
    if not found:
        yield f"{name} is gone"
        return
    sound = True
    for column, kinds in RELATIONS[name].columns.items():
        if column not in found:
            sound = False
            yield f"{name} has no column {column}"
        elif found[column] not in kinds:
            sound = False
            yield f"{name}.{column} is {found[column]} instead of {' or '.join(kinds)}"
    if sound:
        for key in RELATIONS[name].keys:
            if read := sorted(_read_whole(connection, name, key)):
                yield f"looking up {name} by {key} reads all of {' and '.join(read)}"


def _read_whole(connection: Connection, name: str, key: str) -> set[str]:
    """The tables that a lookup by `key` reads from end to end, although they may be small by now.

    An engine's sessions read a table only where they must. But to read all of a small table by an
    index seems cheap to the planner, so rows are made expensive here and pages free.
    """
    with connection.begin_nested() as nested:
        for setting, value in _COSTS.items():
            connection.execute(text(f"SET LOCAL {setting} = {value}"))
        explained = connection.scalar(
            text(
                f"EXPLAIN (FORMAT JSON) SELECT * FROM ours.{name}"
                f" WHERE {key} = (SELECT {key} FROM ours.{name} LIMIT 0)"
            )
        )
        nested.rollback()
    plan = (explained if isinstance(explained, list) else json.loads(explained or "[]"))[0]["Plan"]
    # Of one row or none, all is as good as any.
    empty = set(connection.scalars(_EMPTY))
    # The subquery only says of which type the value is.
    return {
        table
        for node in _nodes(plan)
        if (table := node.get("Relation Name"))
        and (
            node["Node Type"] == "Seq Scan"
            or (
                node["Node Type"].startswith("Index")
                and "Index Cond" not in node
                and table not in empty
            )
        )
    }


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        if child.get("Parent Relationship") != "InitPlan":
            yield from _nodes(child)
