"""Commands that compute progress again from the attempts: `verify` and `rebuild`."""

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.asking import Json, bar
from worker.cli.shared import engine_of, load_settings, run

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_USER = Annotated[
    int | None, typer.Option("--user", help="Only this user. The default is all users.")
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(verify)
    app.command()(rebuild)


def verify(user: _USER = None, as_json: Json = False) -> None:
    """Computes all progress again from the attempts, and lists each difference.

    It changes nothing, and may run while workers ingest. It exits with 1 if anything differs.

    Example: study-ingest verify --user 42
    """
    from worker.operate import repair

    settings = load_settings()
    policy = settings.policy()
    found: list[str] = []

    async def one(engine: "AsyncEngine", user_id: int) -> None:
        for difference in await repair.verify(engine, user_id, policy):
            found.append(difference.describe())
            if not as_json:
                typer.echo(found[-1])

    users = run(_for_each_user("Verifying", user, one))
    if as_json:
        typer.echo(json.dumps({"users": users, "differences": found}))
    elif not found:
        typer.echo(f"The progress of {users} users agrees with their attempts.")
    else:
        typer.echo(f"{len(found)} differences. `study-ingest rebuild` corrects them.", err=True)
    if found:
        raise typer.Exit(1)


def rebuild(user: _USER = None, as_json: Json = False) -> None:
    """Corrects progress that differs from what the attempts give.

    It runs one transaction for each user, and may run while workers ingest. If it is interrupted,
    run it again.

    Example: study-ingest rebuild
    """
    from worker.operate import repair

    settings = load_settings()
    policy = settings.policy()
    changed = 0

    async def one(engine: "AsyncEngine", user_id: int) -> None:
        nonlocal changed
        changed += await repair.rebuild(engine, user_id, policy)

    users = run(_for_each_user("Rebuilding", user, one))
    if as_json:
        typer.echo(json.dumps({"users": users, "changed": changed}))
    else:
        typer.echo(f"Checked {users} users and corrected {changed} progress rows.")


async def _for_each_user(
    title: str, user: int | None, one: "Callable[[AsyncEngine, int], Awaitable[None]]"
) -> int:
    from worker.operate import repair

    settings = load_settings()
    async with engine_of(settings, connections=1, name=f"study-ingest {title.lower()}") as engine:
        users = [user] if user is not None else await repair.users(engine)
        with bar(title) as progress:
            for number, user_id in enumerate(users):
                progress(number, len(users))
                await one(engine, user_id)
    return len(users)
