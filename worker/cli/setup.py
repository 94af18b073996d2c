"""Commands that prepare the servers: `migrate`, `topology`, `database-role` and `reader-role`."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Final

import typer

from worker.cli.answers import answer
from worker.cli.asking import Json, Reason, Yes, by, confirm, printable
from worker.cli.shared import engine_of, load_settings, run

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_A_DAY: Final = 86_400.0
_WITH_AUDIT: Final = "0002"
"""The first version of the schema that has the audit."""


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(migrate)
    app.command("topology")(apply_topology)
    app.command()(database_role)
    app.command()(reader_role)


def migrate(
    to: Annotated[
        str,
        typer.Option(
            help="A version, 'head' for the newest, or 'base' to delete the tables of study-ingest."
        ),
    ] = "head",
    yes: Yes = False,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Brings the database's schema to the version of this program.

    You can run it again, and several times at once.

    Example: study-ingest migrate
    """
    if to == "base":
        confirm("This deletes all tables of study-ingest, and what is in them. Continue?", yes)

    from worker.store import audit, schema
    from worker.store.engine import transaction

    # A migration of a large table may take longer than any statement of a worker.
    patient = load_settings().model_copy(update={"statement_timeout": _A_DAY})

    async def work() -> tuple[str | None, str | None]:
        async with engine_of(patient, connections=1, name="study-ingest migrate") as engine:
            before, after = await schema.migrate(engine, to)
            if before != after and after is not None and after >= _WITH_AUDIT:
                effect = {"before": before, "after": after}
                async with transaction(engine) as connection:
                    await audit.record(connection, by(reason), "migrate", "schema", effect)
            return before, after

    before, after = run(work())
    if as_json:
        answer({"before": before, "after": after})
    elif before == after:
        typer.echo(f"The schema is at version {after or 'none'}; nothing to do.")
    else:
        typer.echo(f"The schema went from version {before or 'none'} to {after or 'none'}.")


def apply_topology(as_json: Json = False) -> None:
    """Creates the broker's exchanges, queues and policies, and prints what it changed.

    You can run it again. It deletes nothing but partitions that INGEST_PARTITIONS no longer wants,
    once they are empty. It needs the management API, and a login with the
    right to configure.

    Example: study-ingest topology
    """
    from worker.broker import topology
    from worker.broker.management import Management

    settings = load_settings()

    async def work() -> list[topology.Step]:
        async with Management(settings) as management:
            changes = await topology.apply(management, settings)
            await topology.check(management, settings)
            return changes

    changes = run(work())
    if as_json:
        told = [{"verb": each.verb, "what": each.what, "detail": each.detail} for each in changes]
        answer({"changes": told})
        return
    for change in changes:
        typer.echo(printable(str(change)))


_ROLE = Annotated[str, typer.Argument(help="The role's name. The role may exist already.")]


def database_role(role: _ROLE, reason: Reason = "", as_json: Json = False) -> None:
    """Creates the database role of workers, with the rights that a worker needs and no others.

    Run it as the owner of the tables, and again after every `migrate`. It sets a new password each
    time, and prints it once. An existing role loses all other rights.

    Example: study-ingest database-role study_worker
    """
    from worker.store.operate import roles

    _ensure(roles.ensure_worker, role, "worker", reason, as_json)


def reader_role(role: _ROLE, reason: Reason = "", as_json: Json = False) -> None:
    """Creates a database role that may read the views for applications, and nothing else.

    Run it as the owner of the tables, and again after every `migrate`. It sets a new password each
    time, and prints it once. An existing role loses all other rights. docs/reading.md shows the
    views.

    Example: study-ingest reader-role study_reader
    """
    from worker.store.operate import roles

    _ensure(roles.ensure_reader, role, "reader", reason, as_json)


def _ensure(
    ensure: "Callable[[AsyncConnection, str], Awaitable[str]]",
    role: str,
    kind: str,
    reason: str,
    as_json: bool,
) -> None:
    from worker.store import audit, schema
    from worker.store.engine import transaction

    operation = "database-role" if kind == "worker" else "reader-role"

    async def work() -> str:
        async with engine_of(load_settings(), connections=1, name="study-ingest role") as engine:
            await schema.check(engine)
            async with transaction(engine) as connection:
                password = await ensure(connection, role)
                await audit.record(connection, by(reason), operation, f"role {role}", {})
                return password

    password = run(work())
    if as_json:
        answer({"role": role, "password": password})
    else:
        typer.echo(f"Role {role} has the rights of a {kind} and no others.")
        typer.echo(f"Password (shown only once): {password}")
