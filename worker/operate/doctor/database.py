"""The findings about the database: durability, schema, indexes, rights, connections, clock."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from sqlalchemy import Row, UniqueConstraint, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.errors import SchemaError, TransientFault
from worker.operate.doctor import kept, session
from worker.operate.doctor.finding import Finding, of_error
from worker.settings import Settings
from worker.store import content, schema
from worker.store.engine import transaction
from worker.store.operate import schedules, times
from worker.store.operate.roles import RIGHTS
from worker.store.ours import schema_of
from worker.store.tables import METADATA

_OLDEST, _NEWEST = 15, 18
"""The versions that the tests run with; docs/versions.md names them all."""
_BESIDE_THE_LANES = 6
_SKEW = 2.0
_MOST_COUNTED = 100_000

_FACTS = text(
    "SELECT current_setting('synchronous_commit') AS synchronous_commit,"
    " current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,"
    " current_setting('synchronous_standby_names') AS synchronous_names,"
    " current_setting('server_version') AS version,"
    " CAST(current_setting('server_version_num') AS int) / 10000 AS major,"
    " pg_is_in_recovery() AS is_standby, clock_timestamp() AS clock,"
    " CAST(current_setting('max_connections') AS int) AS most,"
    " CAST(current_setting('superuser_reserved_connections') AS int) AS reserved,"
    " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS in_use,"
    " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,"
    " current_user AS role"
)

# Who decodes the log for another program is no standby. Only a role with the rights of pg_monitor
# sees the state of each.
_STANDBYS = text(
    "SELECT application_name, sync_state FROM pg_stat_replication AS standby"
    " WHERE state IS DISTINCT FROM 'backup' AND NOT EXISTS (SELECT FROM pg_replication_slots"
    " AS slot WHERE slot.active_pid = standby.pid AND slot.slot_type = 'logical') ORDER BY 1"
)

_INDEXES = text(
    "SELECT relname, indisvalid AND indisready FROM pg_index JOIN pg_class ON"
    " pg_class.oid = indexrelid"
    " WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = :schema)"
)

_MISSING_RIGHTS = text(
    "SELECT name, wanted FROM unnest(CAST(:tables AS text[]), CAST(:rights AS text[]))"
    " AS needed (name, wanted) WHERE to_regclass('ours.' || name) IS NOT NULL"
    " AND NOT has_table_privilege('ours.' || name, wanted)"
)


async def examine(settings: Settings, engine: AsyncEngine) -> list[Finding]:
    """The findings."""
    found: list[Finding] = []
    try:
        await schema.check(engine)
        found.append(
            Finding("schema", "ok", f"The schema has this program's version {schema.head()}.")
        )
    except SchemaError as error:
        found.append(of_error("schema", error))
    async with transaction(engine) as connection:
        facts = (await connection.execute(_FACTS)).one()
        now = datetime.now(UTC)
        found.append(_version(facts.version, facts.major))
        found += [*_durability(facts), *_room(facts, settings), *_clock(facts.clock, now)]
        standbys = [(row[0], row[1]) for row in await connection.execute(_STANDBYS)]
        found.append(_replication(facts.synchronous_names, standbys, facts.synchronous_commit))
        if found[0].severity == "ok":
            found.append(await _content(connection))
            found += await _indexes(connection)
            found += await _rights(connection, facts)
    found += await session.examine(settings, engine, has_schema=found[0].severity == "ok")
    if found[0].severity == "ok":
        found.append(await _times(settings, engine))
        found.append(await _schedules(engine))
        found += await kept.examine(settings, engine)
    return found


async def _times(settings: Settings, engine: AsyncEngine) -> Finding:
    earliest = settings.policy().earliest_answer
    try:
        async with transaction(engine) as connection:
            count = await times.count_unjudged(connection, earliest, _MOST_COUNTED)
    except TransientFault:  # it took too long: there are too many attempts to look at each
        return Finding(
            "times",
            "note",
            "Whether attempts have times that can't be true was not found out in time.",
            "Run `study-ingest rebuild` once after an upgrade from 0.1.0.",
        )
    if not count:
        return Finding("times", "ok", "No attempt has a time that can't be true.")
    return Finding(
        "times",
        "warning",
        f"{count}{' or more' if count == _MOST_COUNTED else ''} attempts of 0.1.0, or from before"
        " INGEST_EARLIEST_ANSWER, may have times that can't be true.",
        "Run `study-ingest rebuild`: they get the times of their neighbors.",
    )


async def _schedules(engine: AsyncEngine) -> Finding:
    try:
        async with transaction(engine) as connection:
            count = await schedules.count_others(connection, _MOST_COUNTED)
    except TransientFault:  # there is too much progress to look at each row
        return Finding(
            "schedules",
            "note",
            "Whether an older scheduler computed some schedules was not found out in time.",
            "Run `study-ingest rebuild` once after an upgrade from 0.1.0.",
        )
    if not count:
        return Finding("schedules", "ok", "This program's scheduler computed all schedules.")
    return Finding(
        "schedules",
        "warning",
        f"{count}{' or more' if count == _MOST_COUNTED else ''} questions have a schedule of"
        " another scheduler, which other versions of this program use.",
        "When no worker of another version runs any more, run `study-ingest rebuild`.",
    )


def _version(version: str, major: int) -> Finding:
    if major < _OLDEST:
        return Finding(
            "version",
            "danger",
            f"PostgreSQL {version} is not supported: {_OLDEST} is the oldest version that is.",
            f"Upgrade it to {_NEWEST}.",
        )
    if major > _NEWEST:
        return Finding(
            "version",
            "note",
            f"This program is not tested with PostgreSQL {version}, which is newer than {_NEWEST}.",
            "Try it before you rely on it, or use a version that docs/versions.md names.",
        )
    return Finding("version", "ok", f"PostgreSQL {version} is supported.")


def _durability(facts: Row[tuple[object, ...]]) -> Iterator[Finding]:
    if facts.is_standby:
        yield Finding(
            "standby",
            "danger",
            "INGEST_DATABASE_URL leads to a standby server, which accepts no writes.",
            "Change it to the primary server.",
        )
    wrong = False
    for setting in ("synchronous_commit", "fsync", "full_page_writes"):
        if getattr(facts, setting) == "off":
            wrong = True
            yield Finding(
                "durability",
                "danger",
                f"PostgreSQL runs with {setting} off, so a crash loses batches that were acked.",
                f"Set {setting} to on for this database and role.",
            )
    if not wrong:
        yield Finding("durability", "ok", "Committed data survives a crash.")


def _replication(
    synchronous: str, standbys: Sequence[tuple[str | None, str | None]], synchronous_commit: str
) -> Finding:
    """About the standbys, each with its name and whether it is synchronous, where the role may see
    that. `synchronous` names those whose confirmation a commit waits for, unless
    `synchronous_commit` says that it waits for none.
    """
    waits = synchronous and synchronous_commit not in ("off", "local")
    if waits and any(state != "async" for _, state in standbys):
        return Finding("replication", "ok", "Commits wait for a standby.")
    if waits:
        return Finding(
            "replication",
            "danger",
            f"Commits wait for a standby of synchronous_standby_names ({synchronous}), and none is"
            " connected: nothing is ingested meanwhile.",
            "Bring the standby back, or change synchronous_standby_names.",
        )
    if not standbys:
        return Finding("replication", "ok", "No standby follows this server.")
    named = ", ".join(sorted({name for name, _ in standbys if name})) or "of any name"
    return Finding(
        "replication",
        "note",
        f"No commit waits for a standby, and {len(standbys)} follow asynchronously ({named}): after"
        " a failover, batches are missing that viewers were told are ingested.",
        "Set synchronous_standby_names, with synchronous_commit on, or rely on the viewers, which"
        " send again what is missing: see docs/high-availability.md.",
    )


def _room(facts: Row[tuple[object, ...]], settings: Settings) -> Iterator[Finding]:
    each = settings.lanes + _BESIDE_THE_LANES
    free = facts.most - facts.reserved - facts.in_use
    if free < each:
        yield Finding(
            "connections",
            "warning",
            f"{max(free, 0)} of {facts.most} connections are free, and a worker with"
            f" {settings.lanes} lanes takes up to {each}.",
            "Raise max_connections, lower INGEST_LANES, or run fewer workers.",
        )
    else:
        yield Finding(
            "connections",
            "ok",
            f"There is room for {free // each} more workers with {each} connections each.",
        )


def _clock(theirs: datetime, ours: datetime) -> Iterator[Finding]:
    skew = (ours - theirs).total_seconds()
    if abs(skew) > _SKEW:
        yield Finding(
            "clock",
            "warning",
            f"The clocks of the database and of this machine differ by {abs(skew):.1f} s.",
            "Synchronize the clocks of both machines. The database's clock gives the times of"
            " receipt.",
        )
    else:
        yield Finding("clock", "ok", "The clocks of the database and of this machine agree.")


async def _content(connection: AsyncConnection) -> Finding:
    theirs = await connection.run_sync(content.theirs)
    if not theirs:
        return Finding("content", "ok", "Topics, questions and publications are ours.")
    try:
        await connection.run_sync(content.check, theirs)
    except SchemaError as error:
        return of_error("content", error)
    named = ", ".join(sorted(theirs))
    return Finding("content", "ok", f"The application's own content can be used: {named}.")


async def _indexes(connection: AsyncConnection) -> list[Finding]:
    there = {
        row[0]: row[1]
        for row in await connection.execute(_INDEXES, {"schema": schema_of(connection)})
    }
    theirs = await connection.run_sync(content.theirs)
    wanted: set[str] = set()
    for table in METADATA.tables.values():
        if table.name in theirs:
            continue
        unique = [each for each in table.constraints if isinstance(each, UniqueConstraint)]
        wanted |= {str(index.name) for index in table.indexes}
        wanted |= {str(constraint.name) for constraint in (table.primary_key, *unique)}
    missing = sorted(wanted - there.keys())
    invalid = sorted(name for name in wanted & there.keys() if not there[name])
    found = [
        Finding("indexes", "danger", f"Index {name} is missing.", "Create it as in the migration.")
        for name in missing
    ]
    found += [
        Finding("indexes", "danger", f"Index {name} is not valid.", f"Run REINDEX INDEX {name}.")
        for name in invalid
    ]
    return found or [Finding("indexes", "ok", f"All {len(wanted)} indexes exist and are valid.")]


async def _rights(connection: AsyncConnection, facts: Row[tuple[object, ...]]) -> list[Finding]:
    needed = [
        (table, right)
        for table, rights in RIGHTS.items()
        for right in rights.split(", ")
        if "(" not in right  # a right on single columns
    ]
    missing = await connection.execute(
        _MISSING_RIGHTS,
        {"tables": [table for table, _ in needed], "rights": [right for _, right in needed]},
    )
    found = [
        Finding(
            "rights",
            "danger",
            f"Role {facts.role!r} may not {right} {table}.",
            "Run `study-ingest database-role` as the owner of the tables.",
        )
        for table, right in missing
    ]
    if facts.is_superuser:
        found.append(
            Finding(
                "rights",
                "note",
                f"Role {facts.role!r} is a superuser, but a worker needs much fewer rights.",
                "Create a role for workers with `study-ingest database-role`.",
            )
        )
    return found or [Finding("rights", "ok", "The role has the rights of a worker.")]
