"""Commands that prepare the servers: `migrate` and `topology`."""

from typing import Annotated

import typer

from worker.broker import topology
from worker.broker.management import Management
from worker.cli.shared import engine_of, run
from worker.settings import load_settings
from worker.store import schema


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(migrate)
    app.command("topology")(apply_topology)


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

    async def work() -> tuple[str | None, str | None]:
        async with engine_of(load_settings(), connections=1, name="study-ingest migrate") as engine:
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
