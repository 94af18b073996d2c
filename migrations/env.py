"""Alembic's entry point: runs the versions over the connection that the caller opened.

`worker.store.schema` opens it; this file reads no settings.
"""

from alembic import context
from sqlalchemy import text

from migrations import beside
from worker.store import version
from worker.store.ours import PUBLIC, quoted, schema_of
from worker.store.tables import METADATA

_LOCK = 7_415_983_204_117_023
"""Advisory lock (any constant): two migrations at once run one after the other."""
_LOCK_OF_SCHEMA = text("SELECT pg_advisory_xact_lock(hashtextextended('study-ingest migrate', 0))")
_IS_THERE = text("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema)")

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=METADATA,
    transaction_per_migration=False,
    version_table=version.TABLE,
)
with context.begin_transaction():
    # Another migration may take long; a table that somebody holds must not be waited for as long,
    # because everybody else then waits behind us.
    patience = connection.scalar(text("SHOW lock_timeout"))
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    schema = schema_of(connection)
    if schema == PUBLIC:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    else:
        connection.execute(_LOCK_OF_SCHEMA)
    connection.execute(text(f"SET LOCAL lock_timeout = '{patience}'"))
    if schema != PUBLIC and not connection.scalar(_IS_THERE, {"schema": schema}):
        connection.execute(text(f"CREATE SCHEMA {quoted(schema)}"))
    # Only here do names stand without their schema: versions that were released never change.
    connection.execute(text(f"SET LOCAL search_path = {quoted(schema)}, pg_temp"))
    ours = {script.revision for script in context.script.walk_revisions()}
    version.take_over(connection, ours)
    at, target = version.read(connection, ours), context.config.attributes["target"]
    theirs = beside.content(connection, at, target)
    # Whoever removes everything is not asked what an older program could do with it.
    if theirs or (target == "base" and at == context.script.get_current_head()):
        beside.move(connection, theirs, at, target)
    else:
        context.run_migrations()
    version.hand_back(connection)
