"""Commands that prepare the servers: `migrate` and `topology`."""

import json
from typing import Annotated, Final

import typer

from worker.broker import topology
from worker.broker.management import Management
from worker.cli.shared import engine_of, run
from worker.settings import load_settings
from worker.store import schema
from worker.store.engine import transaction
from worker.store.operate import roles

_A_DAY: Final = 86_400.0


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(migrate)
    app.command("topology")(apply_topology)
    app.command()(database_role)


def migrate(
    to: Annotated[
        str, typer.Option(help="A version, 'head', or 'base' to take everything down.")
    ] = "head",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before 'base'.")] = False,
) -> None:
    """Brings the database's schema to this program's version.

    Safe to run again, and by several at once.

    Example: study-ingest migrate
    """
    if to == "base" and not yes:
        typer.confirm("This deletes every table with everything in it. Go on?", abort=True)

    # A large table takes longer than any statement of a worker may.
    patient = load_settings().model_copy(update={"statement_timeout": _A_DAY})

    async def work() -> tuple[str | None, str | None]:
        async with engine_of(patient, connections=1, name="study-ingest migrate") as engine:
            return await schema.migrate(engine, to)

    before, after = run(work())
    if before == after:
        typer.echo(f"The schema is at version {after or 'none'}; nothing to do.")
    else:
        typer.echo(f"The schema went from version {before or 'none'} to {after or 'none'}.")


def apply_topology() -> None:
    """Creates the broker's exchanges, queues and policies, and says what it changed.

    Safe to run again; deletes nothing. Needs a login that may do so, and the management API.

    Example: study-ingest topology
    """
    settings = load_settings()

    async def work() -> list[topology.Change]:
        async with Management(settings) as management:
            changes = await topology.apply(management, settings)
            await topology.check(management, settings)
            return changes

    for change in run(work()):
        typer.echo(str(change))


def database_role(
    role: Annotated[str, typer.Argument(help="The role's name; one that exists is put in order.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object instead of sentences.")
    ] = False,
) -> None:
    """Makes the database role of workers: it can do what a worker does, and no DDL.

    To be run as the owner of the tables, and again after every `migrate`. The password is new
    each time, and shown this once; what exists of the role beside a worker's rights is taken.

    Example: study-ingest database-role study_worker
    """

    async def work() -> str:
        async with engine_of(load_settings(), connections=1, name="study-ingest role") as engine:
            await schema.check(engine)
            async with transaction(engine) as connection:
                return await roles.ensure_worker(connection, role)

    password = run(work())
    if as_json:
        typer.echo(json.dumps({"role": role, "password": password}))
    else:
        typer.echo(f"Role {role} may do what a worker does, and nothing else.")
        typer.echo(f"Password, shown this once: {password}")
