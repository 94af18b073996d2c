"""Commands that export and import the log of attempts: `export` and `import`."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from worker.cli.answers import answer
from worker.cli.asking import Json, Reason, User, bar, by
from worker.cli.files import written
from worker.cli.shared import engine_of, load_settings, run
from worker.errors import IngestError
from worker.progress.nudging import nudging

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.store.audit import By


class Format(StrEnum):
    """The format of an export."""

    JSONL = "jsonl"
    XAPI = "xapi"


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(export)
    app.command("import")(import_file)


def export(
    user: User = None,
    as_format: Annotated[
        Format,
        typer.Option(
            "--format", help="jsonl can be imported again; xapi is for a learning record store."
        ),
    ] = Format.JSONL,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write. The default is standard output."),
    ] = None,
    home_page: Annotated[
        str, typer.Option(help="For xapi: the IRI of the system that assigns the user ids.")
    ] = "https://study-ingest.invalid",
    reason: Reason = "",
) -> None:
    """Writes the log of attempts as of one moment, with one JSON object on each line.

    It needs little memory, however long the log is. If it fails, it leaves no incomplete file.

    Example: study-ingest export --user 42 --format xapi -o 42.xapi.jsonl
    """
    from worker.operate import repair
    from worker.operate.archive import json_lines, xapi
    from worker.store import schema

    settings = load_settings()

    async def work(write: Callable[[str], object]) -> None:
        async with engine_of(settings, connections=1, name="study-ingest export") as engine:
            await schema.check(engine)
            if user is not None:
                await repair.check_known(engine, user)
            subject = "all users" if user is None else f"user {user}"
            await record_export(engine, "export", subject, {"format": as_format.value}, by(reason))
            with bar("Exporting", shown=not (output is None and sys.stdout.isatty())) as progress:
                count = 0
                async for line in json_lines.export(engine, user):
                    count += 1
                    progress(count, 0)
                    if as_format is Format.JSONL:
                        write(line + "\n")
                    elif (record := json.loads(line))["record"] == "batch":
                        for statement in xapi.statements(record, home_page):
                            write(json.dumps(statement) + "\n")

    with nullcontext(sys.stdout) if output is None else written(output) as file:
        run(work(file.write))


async def record_export(
    engine: "AsyncEngine", operation: str, subject: str, effect: Mapping[str, object], who: "By"
) -> None:
    """Records the export in the audit, before it writes anything.

    On a server that accepts no writes (a replica, a read-only login) an export is still possible.
    It then reports that it is not in the audit.
    """
    from sqlalchemy.exc import DBAPIError

    from worker.store import audit
    from worker.store.engine import transaction

    try:
        async with transaction(engine) as connection:
            await audit.record(connection, who, operation, subject, effect)
    except (DBAPIError, IngestError):
        typer.echo(
            "This server accepts no writes, so the export is not recorded in the audit.", err=True
        )


def import_file(
    file: Annotated[Path, typer.Argument(help="A JSON Lines export, or - for standard input.")],
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Adds the batches of an export (jsonl) that are missing here, and updates progress.

    In an empty database it creates the same sessions, attempts and progress. It may be run again.
    An export does not contain publications, which belong to the study application.

    Example: study-ingest export | INGEST_DATABASE_URL=... study-ingest import -
    """
    from worker.operate.archive import json_lines
    from worker.store import schema

    settings = load_settings()

    async def work(lines: Iterator[str]) -> json_lines.Imported:
        async with (
            engine_of(settings, connections=1, name="study-ingest import") as engine,
            nudging(engine, settings) as on_change,
        ):
            await schema.check(engine)
            policy = settings.policy()
            return await json_lines.import_lines(engine, lines, policy, by(reason), on_change)

    try:
        with sys.stdin if str(file) == "-" else file.open(encoding="utf-8") as source:
            size = 0 if source is sys.stdin else file.stat().st_size
            with bar("Importing") as progress:
                done = run(work(_watched(source, size, progress)))
    except (OSError, UnicodeDecodeError) as error:
        raise IngestError(f"{file} can't be read: {error}.") from None
    if as_json:
        counts = {"batches": done.batches, "known": done.known, "erased": done.erased}
        answer(counts | {"attempts": done.attempts, "users": len(done.users)})
    else:
        typer.echo(
            f"Added {done.attempts} attempts in {done.batches} batches of {len(done.users)} users."
            f" {done.known} batches were already there."
        )
        if done.erased:
            typer.echo(
                f"{done.erased} of those were erased here, and stay erased: what the export has of"
                " them is not in this database.",
                err=True,
            )


def _watched(source: TextIO, size: int, progress: Callable[[int, int], None]) -> Iterator[str]:
    read = 0
    for line in source:
        read += len(line)
        progress(read, size)
        yield line
