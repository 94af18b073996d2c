"""Statements that the driver sends itself: those that every batch passes through.

SQLAlchemy spends as long on their way there and back as the driver does. All else has no need of
this. Knows connections and statements; may not know how a connection came to be.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from asyncpg import Connection
from sqlalchemy import URL, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

DRIVER: Final = "postgresql+asyncpg"
"""SQLAlchemy's name for it."""

Row = Sequence[Any]


class Write(NamedTuple):
    """A statement that changes rows, and its parameters; nothing happens until `write`."""

    statement: TextClause
    parameters: Mapping[str, object]


async def fetch(
    connection: AsyncConnection, statement: TextClause, parameters: Mapping[str, object]
) -> list[Row]:
    """The rows that a statement returns, inside a `worker.store.engine.transaction`.

    Raises what the driver raises, and `RuntimeError` outside of one.
    """
    driver = driver_of(connection)
    if not driver.is_in_transaction():
        raise RuntimeError("Outside of a transaction each statement would be committed by itself.")
    written, names = _written(statement)
    rows: list[Row] = await driver.fetch(written, *[parameters[name] for name in names])
    return rows


async def write(connection: AsyncConnection, writes: Sequence[Write]) -> None:
    """Carries out all of the writes as one statement, in one round trip.

    In no order, and none sees what another does; references are checked at their end. The name
    of a parameter means the same in all of them. Raises what `fetch` raises.
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
    """The driver's connection beneath SQLAlchemy's."""
    pooled = connection.sync_connection
    assert pooled is not None
    return pooled.connection.driver_connection


@cache
def _written(statement: TextClause) -> tuple[str, Sequence[str]]:
    """The statement as the driver takes it, and the names of $1, $2..."""
    compiled = statement.compile(dialect=URL.create(DRIVER).get_dialect()())
    return str(compiled), compiled.positiontup or ()
