"""The findings about a session with the database: what it begins with, and what it may do.

Ingest's own writes are tried as well, and rolled back.
"""

from collections.abc import Iterator, Mapping

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.errors import DatabaseAway
from worker.ingest.trial import hanging_commits, try_writing
from worker.operate.doctor.finding import Finding
from worker.settings import Settings
from worker.store.engine import transaction
from worker.store.operate.roles import RIGHTS

_FACTS = text(
    "SELECT current_setting('server_encoding') AS encoding,"
    " current_setting('default_transaction_read_only') AS read_only,"
    " current_setting('default_transaction_isolation') AS isolation, current_user AS role"
)

# In milliseconds, whatever unit a person would read; a server may not know all of them.
_TIMEOUTS = text("SELECT name, CAST(setting AS bigint) FROM pg_settings WHERE name LIKE '%timeout'")

_HIDING = text(
    "SELECT name FROM unnest(CAST(:tables AS text[])) AS needed (name)"
    " WHERE to_regclass('ours.' || name) IS NOT NULL"
    " AND row_security_active('ours.' || name) ORDER BY name"
)


async def examine(settings: Settings, engine: AsyncEngine, *, has_schema: bool) -> list[Finding]:
    """The findings. Without a schema of this version, the tables are left alone."""
    async with transaction(engine) as connection:
        facts = (await connection.execute(_FACTS)).one()
        timeouts = {row[0]: row[1] for row in await connection.execute(_TIMEOUTS)}
        found = [*_beginning(facts), *_timeouts(timeouts, settings)]
        if has_schema:
            found += await _hiding(connection, facts.role)
            found += _commits(await hanging_commits(connection))
    if has_schema:
        found.append(await _writes(engine))
    return found


def _beginning(facts: Row[tuple[object, ...]]) -> Iterator[Finding]:
    if facts.encoding != "UTF8":
        yield Finding(
            "encoding",
            "danger",
            f"The database's encoding is {facts.encoding}, which can't store every id and name.",
            "Create a database with ENCODING 'UTF8', and move the data there with pg_dump.",
        )
    else:
        yield Finding("encoding", "ok", "The database stores UTF-8.")
    if facts.read_only == "on":
        yield Finding(
            "read-only",
            "danger",
            "default_transaction_read_only is on for this database or role: nothing is ingested.",
            "Reset it with ALTER DATABASE or ALTER ROLE, unless a failover is in progress.",
        )
    if facts.isolation != "read committed":
        yield Finding(
            "isolation",
            "note",
            f"The default isolation level is {facts.isolation}; workers ask for read committed.",
            "Reset default_transaction_isolation if no other program needs it.",
        )


_OURS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")


def _timeouts(in_force: Mapping[str, int], settings: Settings) -> Iterator[Finding]:
    """The timeouts of this very session, against what the settings ask for."""
    wanted = (
        settings.statement_timeout,
        settings.lock_timeout,
        settings.idle_in_transaction_timeout,
    )
    wrong = False
    for name, seconds in zip(_OURS, wanted, strict=True):
        if in_force[name] != int(seconds * 1000):
            wrong = True
            yield Finding(
                "session timeouts",
                "warning",
                f"{name} is {in_force[name] / 1000:g} s in a session, and {seconds:g} s was asked.",
                "See what stands between: a pooler has to pass on what a session begins with.",
            )
    # PostgreSQL 17 and later have one of their own, which our settings do not touch.
    whole = in_force.get("transaction_timeout", 0) / 1000
    if 0 < whole < settings.transaction_timeout:
        wrong = True
        yield Finding(
            "session timeouts",
            "warning",
            f"transaction_timeout is {whole:g} s, below INGEST_TRANSACTION_TIMEOUT"
            f" ({settings.transaction_timeout:g} s): it ends sessions in the middle of a group.",
            "Reset it for this database and role.",
        )
    if not wrong:
        yield Finding("session timeouts", "ok", "They are in force as set.")


async def _hiding(connection: AsyncConnection, role: str) -> list[Finding]:
    hiding = await connection.scalars(_HIDING, {"tables": list(RIGHTS)})
    found = [
        Finding(
            "row security",
            "danger",
            f"Row level security of {table} applies to role {role!r}: nothing is ingested.",
            f"Disable it for {table}, or give the role BYPASSRLS.",
        )
        for table in hiding
    ]
    return found or [Finding("row security", "ok", "No policy hides rows from the role.")]


def _commits(hanging: int) -> Iterator[Finding]:
    if hanging:
        yield Finding(
            "commits",
            "danger",
            f"{hanging} of this role's commits hang.",
            "See that the replicas in synchronous_standby_names are there.",
        )
    else:
        yield Finding("commits", "ok", "No commit waits for a replica.")


async def _writes(engine: AsyncEngine) -> Finding:
    try:
        await try_writing(engine)
    except DatabaseAway as away:
        remedy = "Remove the cause: until then workers are paused, and lose nothing."
        return Finding("writes", "danger", str(away), remedy)
    return Finding("writes", "ok", "Ingest's own writes were tried, and rolled back.")
