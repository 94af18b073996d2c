"""The database schema that has our tables, and the content beside them.

A statement names it as `ours.`, which each engine replaces by the schema of its settings. So
nothing depends on a session's `search_path`. Two installations in one database differ in the
schema, which is part of each advisory lock as well. In `public` the locks are those of version
0.1.0, so that older workers and this one exclude each other.
"""

import re
from functools import cache
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

PUBLIC: Final = "public"
OPTION: Final = "study_ingest_schema"
"""The execution option in which an engine has its schema."""

_OURS: Final = re.compile(r"\bours\.")
_LOCKS: Final = "'study-ingest "
"""What the text of every advisory lock in a statement begins with."""


def schema_of(connection: AsyncConnection | Connection) -> str:
    """The schema of the connection's engine."""
    sync = connection.sync_connection if isinstance(connection, AsyncConnection) else connection
    assert sync is not None
    schema: str = sync.get_execution_options().get(OPTION, PUBLIC)
    return schema


def quoted(schema: str) -> str:
    """The schema as it stands in a statement."""
    return '"' + schema.replace('"', '""') + '"'


@cache
def named(statement: str, schema: str) -> str:
    """The statement with the schema's name in it."""
    if schema != PUBLIC:
        statement = statement.replace(_LOCKS, f"{_LOCKS}{schema} ")
    return _OURS.sub(lambda _: f"{quoted(schema)}.", statement)
