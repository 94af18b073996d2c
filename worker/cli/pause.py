"""Commands that affect all workers at once: `pause` and `resume`."""

from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.answers import answer
from worker.cli.asking import Json, by, printable
from worker.cli.shared import engine_of, load_settings, run

if TYPE_CHECKING:
    from worker.store.pause import Pause


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(pause)
    app.command()(resume)


def pause(
    reason: Annotated[str, typer.Option("--reason", help="The reason, which `status` shows.")] = "",
    as_json: Json = False,
) -> None:
    """Stops all workers from ingesting, within 2 seconds, until `resume`.

    The pause survives restarts of workers and servers. Workers finish their current transactions,
    messages wait in the queue, and results and follow-up jobs are still sent. Viewers only get
    their results later.

    Example: study-ingest pause --reason 'moving the database'
    """

    from worker.store import pause as stored
    from worker.store import schema
    from worker.store.engine import transaction

    async def work() -> tuple[stored.Pause, bool]:
        async with engine_of(load_settings(), connections=1, name="study-ingest pause") as engine:
            await schema.check(engine)
            async with transaction(engine) as connection:
                return await stored.pause(connection, by(reason))

    now, is_new = run(work())
    if as_json:
        answer({"paused": True, "changed": is_new} | _fields(now))
    elif is_new:
        typer.echo("Ingest is paused. `study-ingest resume` ends the pause.")
    else:
        typer.echo(f"Ingest was already paused {_described(now)}.")


def resume(
    reason: Annotated[
        str, typer.Option("--reason", help="The reason, which is kept in the audit.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Lets all workers ingest again, within 2 seconds.

    Example: study-ingest resume
    """

    from worker.store import pause as stored
    from worker.store import schema
    from worker.store.engine import transaction

    async def work() -> stored.Pause | None:
        async with engine_of(load_settings(), connections=1, name="study-ingest resume") as engine:
            await schema.check(engine)
            async with transaction(engine) as connection:
                return await stored.resume(connection, by(reason))

    ended = run(work())
    if as_json:
        fields = {} if ended is None else {"ended": _fields(ended)}
        answer({"paused": False, "changed": ended is not None} | fields)
    elif ended is None:
        typer.echo("Ingest was not paused; nothing to do.")
    else:
        typer.echo(f"Ingest has resumed. It was paused {_described(ended)}.")


def _fields(pause: "Pause") -> dict[str, str]:
    return {
        "since": pause.paused_at.isoformat(),
        "actor": pause.actor,
        "reason": pause.reason,
    }


def _described(pause: "Pause") -> str:
    since = pause.paused_at.isoformat(sep=" ", timespec="seconds")
    because = f" ({pause.reason})" if pause.reason else ""
    return printable(f"since {since} by {pause.actor}{because}")
