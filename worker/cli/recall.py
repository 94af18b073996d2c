"""Commands for the time after a loss: `erasures` and `recall`."""

import os
import sys
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.answers import answer
from worker.cli.asking import DryRun, Json, Reason, Yes, bar, by, confirm, moment
from worker.cli.files import opened, written
from worker.cli.shared import engine_of, load_settings, run
from worker.errors import IngestError, RecallError
from worker.progress.nudging import nudging

if TYPE_CHECKING:
    from worker.operate.recall import Erasure, Recalled

_SINCE = "An age, such as 2d, or a time, such as 2026-11-28T09:00."


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(erasures)
    app.command()(recall)


def erasures(
    since: Annotated[
        datetime | None,
        typer.Option("--since", parser=moment, metavar="TIME", help=f"Only since then. {_SINCE}"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write. The default is standard output."),
    ] = None,
) -> None:
    """Writes who was erased, and when, with one JSON object on each line.

    Keep it outside the database, beside the backups: after a restore, `recall` needs it.

    Example: study-ingest erasures -o erasures.jsonl
    """
    from worker.operate.recall import erasures_since
    from worker.store import schema

    settings = load_settings()

    async def work() -> "list[Erasure]":
        async with engine_of(settings, connections=1, name="study-ingest erasures") as engine:
            await schema.check(engine)
            return await erasures_since(engine, since)

    found = run(work())
    with nullcontext(sys.stdout) if output is None else written(output) as file:
        file.writelines(each.line + "\n" for each in found)


def recall(
    since: Annotated[
        datetime,
        typer.Option(
            "--since", parser=moment, metavar="TIME", help=f"When the backup began. {_SINCE}"
        ),
    ],
    erasures: Annotated[
        Path | None,
        typer.Option(
            "--erasures",
            help="Who was erased since the backup, as `erasures` and `erase --record` write it, or"
            " - for standard input.",
        ),
    ] = None,
    no_erasures: Annotated[
        bool,
        typer.Option(
            "--no-erasures", help="Nobody was erased since the backup. Say in --reason who knows."
        ),
    ] = False,
    dry_run: DryRun = False,
    reason: Reason = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Asks all viewers to send again what the database has lost, after a backup was restored.

    Run it before workers start. It first erases the users in the file again, and refuses to run
    without the file, because viewers would send their answers too. Viewers get the message when
    they are next online. They ask which of their batches are missing, and publish those. You can
    run it again.

    Example: study-ingest recall --since 2026-11-28T02:00 --erasures erasures.jsonl
    """
    from worker.broker.management import Management
    from worker.operate import recall as operation
    from worker.store import schema

    settings = load_settings()
    if (erasures is None) is not no_erasures or (no_erasures and not reason.strip()):
        raise RecallError(
            "There is no list of the users who were erased since the backup, and viewers would send"
            " their answers again",
            "give their list with --erasures FILE, or --no-erasures and a --reason.",
        )
    made = _read(erasures)
    at = since.isoformat(timespec="seconds")
    if not dry_run:
        confirm(f"Erase {len(made)} users again, and ask all viewers for batches since {at}?", yes)

    async def work() -> "Recalled":
        async with (
            engine_of(settings, connections=1, name="study-ingest recall") as engine,
            Management(settings) as management,
            nudging(engine, settings) as on_change,
        ):
            await schema.check(engine)
            with bar("Erasing again") as progress:
                return await operation.recall(
                    *(engine, management, since, made, by(reason)),
                    dry_run=dry_run,
                    progress=progress,
                    on_change=on_change,
                )

    done = run(work())
    if as_json:
        answer(
            {
                "since": since.isoformat(),
                "dry_run": dry_run,
                "viewers": done.viewers,
                "without_queue": done.without_queue,
                "erased": done.erased,
                "known_erasures": done.known,
            }
        )
        return
    would = "Would erase" if dry_run else "Erased"
    ask = "ask" if dry_run else "asked"
    typer.echo(
        f"{would} {done.erased} users again ({done.known} were erased already), and {ask}"
        f" {done.viewers} viewers for batches since {at}."
    )
    if done.without_queue:
        typer.echo(
            f"{done.without_queue} of them have no queue for results and get no message: make it"
            " with `study-ingest viewer import`, and run this again.",
            err=True,
        )


def _read(path: Path | None) -> "list[Erasure]":
    from worker.operate.recall import read_erasures

    if path is None:
        return []
    try:
        with opened(path, RecallError) as (file, _):
            return read_erasures(line.decode() for line in file)
    except UnicodeDecodeError:
        raise RecallError(f"{path} is not text in UTF-8.") from None


def noted(path: Path, user_id: int, erased_at: datetime) -> None:
    """Appends an erasure to a file, and returns when it is on disk. Raises `IngestError`."""
    from worker.operate.recall import Erasure

    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(Erasure(user_id, erased_at).line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise IngestError(
            f"{path} can't be written ({error.strerror}), so user {user_id} was not erased",
            "name a file that can, or leave --record out.",
        ) from None
