"""The command that brings in answers from before: `answers import`."""

from typing import TYPE_CHECKING, Final

import typer

from worker.cli.answers import answer
from worker.cli.asking import DryRun, Json, Lines, Reason, bar, by, printable
from worker.cli.files import opened
from worker.cli.shared import engine_of, load_settings, run
from worker.errors import AnswersError

if TYPE_CHECKING:
    from worker.operate.old_answers import Imported

_SHOWN: Final = 10
"""Refused sessions that are printed. With --json all of them are."""

_commands = typer.Typer(
    name="answers",
    help="Answers that were given before study-ingest was there.",
    no_args_is_help=True,
)


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    _commands.command("import")(import_file)
    app.add_typer(_commands)


# Without it, typer makes a command that is alone in its group the group itself.
@_commands.callback()
def _group() -> None: ...


def import_file(
    file: Lines,
    dry_run: DryRun = False,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Ingests answers that your application has stored before, without follow-up jobs.

    Each line has user_id, pub_id, answered_at, and selected_choice or is_unsure; optionally session
    and duration_ms. Sort the file by user_id, session and answered_at. It may run while workers
    ingest, and again: what is in already does not change. It exits with 1 if sessions are refused.

    Example: study-ingest answers import old-answers.csv --dry-run
    """
    from worker.operate import old_answers
    from worker.store import schema

    settings = load_settings()

    with opened(file, AnswersError) as (source, is_csv):

        async def work() -> "Imported":
            async with engine_of(settings, connections=1, name="study-ingest answers") as engine:
                await schema.check(engine)
                with bar("Importing") as progress:
                    return await old_answers.bring_in(
                        engine,
                        source,
                        settings.policy(),
                        by(reason),
                        is_csv=is_csv,
                        max_attempts=settings.max_attempts,
                        turns=settings.turns(),
                        dry_run=dry_run,
                        progress=progress,
                    )

        done = run(work())
    if as_json:
        answer(
            {
                "dry_run": dry_run,
                "answers": done.answers,
                "users": done.users,
                "sessions": done.sessions,
                "left_out": done.left_out,
                "added": done.added,
                "known": done.known,
                "empty": done.empty,
                "replaced_times": done.replaced_times,
                "refused": [each._asdict() for each in done.refused],
            }
        )
    else:
        _print(done, dry_run)
    raise typer.Exit(1 if done.refused else 0)


def _print(done: "Imported", dry_run: bool) -> None:
    typer.echo(
        f"The file has {done.answers} answers of {done.users} users in {done.sessions} sessions."
    )
    for reason, count in sorted(done.left_out.items()):
        example = ""
        if done.example is not None and reason == "unknown_publication":
            pub_id, line = done.example
            example = f" The first is {pub_id!r} on line {line}."
        typer.echo(printable(f"{count} answers are left out ({reason}).{example}"))
    if dry_run:
        typer.echo("Nothing was changed.")
        return
    typer.echo(
        f"Added {done.added} sessions. {done.known} were already there, and {done.empty} have no"
        " answer to a published question."
    )
    if done.replaced_times:
        typer.echo(f"{done.replaced_times} answers have a time that can't be true.")
    for each in done.refused[:_SHOWN]:
        typer.echo(printable(f"Refused, from line {each.line}: {each.reason}: {each.detail}"))
    if len(done.refused) > _SHOWN:
        typer.echo(f"{len(done.refused)} sessions are refused. --json lists all of them.")
