"""Indexes that a migration needs, made before it, because making them would hold up ingest.

PostgreSQL makes an index without locking anybody out only outside a transaction, while a migration
is one transaction. So the index is made first, and the migration finds it. If the migration then
fails, the index is dropped again.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.store import content


class _Index(NamedTuple):
    table: str
    columns: str
    since: str
    """The version of the schema that has it."""
    rest: str = ""
    """The clauses after its columns."""
    using: str = "btree"
    needs: str = "0001"
    """The version whose tables have its columns. An older schema gets the index in the migration.
    """


_INDEXES: Final = {
    "study_question_attempts_study_question_id_user_id_idx": _Index(
        "study_question_attempts", "study_question_id, user_id", "0014"
    ),
    "published_source_id_idx": _Index("published", "source_id", "0017", "WHERE kind = 'question'"),
    "ingest_inbox_received_at_idx": _Index(
        "ingest_inbox", "received_at", "0023", "WITH (autosummarize = on)", using="brin"
    ),
    "ingest_inbox_viewer_received_at_idx": _Index(
        "ingest_inbox", "viewer, received_at", "0023", needs="0002"
    ),
    "study_question_attempts_quiz_session_id_idx": _Index(
        "study_question_attempts", "quiz_session_id", "0026"
    ),
}
# Not a lock to wait for: who waits has a snapshot, and the index waits for all older snapshots.
_TRY: Final = text("SELECT pg_try_advisory_lock(hashtextextended('study-ingest prepare', 0))")
_RELEASE: Final = text("SELECT pg_advisory_unlock(hashtextextended('study-ingest prepare', 0))")
_WAIT: Final = 0.2
_IS_VALID: Final = text(
    "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('ours.' || :name)"
)


@asynccontextmanager
async def prepared(engine: AsyncEngine, at: str | None, target: str) -> AsyncIterator[None]:
    """Makes the indexes for a migration from `at` to `target`, and drops them if the block raises.

    A schema that does not exist yet needs none, because its tables are empty. Tables of the
    application get none.
    """
    wanted = [
        name
        for name, index in _INDEXES.items()
        if at is not None
        and index.needs <= at < index.since
        and (target == "head" or target >= index.since)
    ]
    if not wanted or target == "base":
        yield
        return
    async with _alone(engine) as connection:
        theirs = await connection.run_sync(content.theirs)
        ours = [name for name in wanted if _INDEXES[name].table not in theirs]
        made = [name for name in ours if await _make(connection, name)]
    try:
        yield
    except BaseException:
        async with _alone(engine) as connection:
            for name in made:
                await connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS ours.{name}"))
        raise


@asynccontextmanager
async def _alone(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection without a transaction, on which nobody else makes indexes meanwhile."""
    async with engine.connect() as plain:
        connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("SET lock_timeout = 0"))
        while not await connection.scalar(_TRY):  # noqa: ASYNC110  # a database has no events
            await asyncio.sleep(_WAIT)
        try:
            yield connection
        finally:
            await connection.execute(_RELEASE)
            await connection.execute(text("RESET lock_timeout"))


async def _make(connection: AsyncConnection, name: str) -> bool:
    """Makes the index, and returns whether it was missing. One that was left unfinished is made
    again.
    """
    is_valid = await connection.scalar(_IS_VALID, {"name": name})
    if is_valid:
        return False
    if is_valid is False:
        await connection.execute(text(f"DROP INDEX CONCURRENTLY ours.{name}"))
    index = _INDEXES[name]
    await connection.execute(
        text(
            f"CREATE INDEX CONCURRENTLY {name} ON ours.{index.table} USING {index.using}"
            f" ({index.columns}) {index.rest}"
        )
    )
    return True
