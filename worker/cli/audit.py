"""The command `audit`: what operators did, when, and why."""

from datetime import datetime
from typing import Annotated

import typer

from worker.cli.answers import answer
from worker.cli.asking import Json, moment, printable
from worker.cli.shared import engine_of, load_settings, run


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(audit)


def audit(
    operation: Annotated[
        str | None, typer.Option("--operation", help="Only this operation, such as erase.")
    ] = None,
    actor: Annotated[
        str | None, typer.Option("--actor", help="Only the actions of this person or login.")
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option("--subject", help="Only actions on this subject, such as 'user 42'."),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            "--since",
            parser=moment,
            metavar="TIME",
            help="Only actions since this age (7d) or time.",
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option("--limit", min=1, max=100_000, help="The number of actions, newest first."),
    ] = 50,
    as_json: Json = False,
) -> None:
    """Shows what operators changed: when, who, what, and why. The newest comes first.

    Example: study-ingest audit --operation erase --since 30d
    """
    from worker.store import audit as stored
    from worker.store import schema
    from worker.store.engine import transaction

    async def work() -> list[stored.Entry]:
        async with engine_of(load_settings(), connections=1, name="study-ingest audit") as engine:
            await schema.check(engine)
            async with transaction(engine) as connection:
                return await stored.entries(
                    connection,
                    operation=operation,
                    actor=actor,
                    subject=subject,
                    since=since,
                    limit=limit,
                )

    found = run(work())
    if as_json:
        rows = [each._asdict() | {"happened_at": each.happened_at.isoformat()} for each in found]
        answer({"entries": rows})
        return
    for each in found:
        effect = ", ".join(f"{name} {value}" for name, value in each.effect.items())
        parts = [
            each.happened_at.isoformat(sep=" ", timespec="seconds"),
            each.actor,
            each.operation,
            each.subject,
            *([f"({effect})"] if effect else []),
            *([f"because: {each.reason}"] if each.reason else []),
        ]
        typer.echo(printable("  ".join(parts)))
    if not found:
        typer.echo("The audit has no such entries.")
