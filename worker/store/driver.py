"""Statements that the driver sends itself: those that every batch passes through.

SQLAlchemy takes as long to send a statement and return its rows as the driver does. All other
statements go through SQLAlchemy (docs/decisions/statements-by-the-driver.md).
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from asyncpg import Connection
from sqlalchemy import URL, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store.ours import named, schema_of

DRIVER: Final = "postgresql+asyncpg"
"""SQLAlchemy's name for the driver."""

Row = Sequence[Any]


class Write(NamedTuple):
    """A statement that changes rows, with its parameters. Nothing happens before `write`."""

    statement: TextClause
    parameters: Mapping[str, object]


async def fetch(
    connection: AsyncConnection, statement: TextClause, parameters: Mapping[str, object]
) -> list[Row]:
    """The rows that a statement returns, inside a `worker.store.engine.transaction`.

    Raises what the driver raises, and `RuntimeError` outside a transaction.
    """
    driver = driver_of(connection)
    if not driver.is_in_transaction():
        raise RuntimeError(
            "A statement outside a transaction would be committed by itself: use `transaction`."
        )
    written, names = _written(statement, schema_of(connection))
    rows: list[Row] = await driver.fetch(written, *[parameters[name] for name in names])
    return rows


async def write(connection: AsyncConnection, writes: Sequence[Write]) -> None:
    """Executes all writes as one statement, in one round trip.

    They run in no particular order, and none sees the effect of another. References are checked at
    the end. A parameter's name means the same in all of them. Raises what `fetch` raises.
    """
    if writes:
        statement = _together(tuple([each.statement for each in writes]))
        parameters: dict[str, object] = {}
        for each in writes:
            parameters |= each.parameters
        await fetch(connection, statement, parameters)


@cache
def _together(statements: tuple[TextClause, ...]) -> TextClause:
    *others, last = statements
    if not others:
        return last
    parts = ", ".join(f"write_{number} AS ({other.text})" for number, other in enumerate(others))
    return text(f"WITH {parts} {last.text}")


def driver_of(connection: AsyncConnection) -> Connection:
    """The driver's connection below SQLAlchemy's."""
    pooled = connection.sync_connection
    assert pooled is not None
    return pooled.connection.driver_connection


@cache
def _written(statement: TextClause, schema: str) -> tuple[str, Sequence[str]]:
    """The statement in the driver's form, and the names of $1, $2..."""
    compiled = statement.compile(dialect=URL.create(DRIVER).get_dialect()())
    return named(str(compiled), schema), compiled.positiontup or ()
