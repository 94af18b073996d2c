"""The application: its commands, and its exit codes.

Exit codes: 0 success; 1 `verify`, `status` or `doctor` found something, or nothing has that name,
or the answer to a confirmation was no; 2 usage, settings or installation; 3 schema; 4 the broker is
not set up safely; 5 the database is unreachable; 6 the broker is unreachable; 7 stuck (`worker`);
8 the database refused a statement; 130 interrupted.
"""

import sys
from typing import Annotated, Any, NoReturn

import typer

from worker import __version__
from worker.cli import (
    audit,
    batch,
    content,
    correct,
    dead,
    doctor,
    due,
    export,
    old_answers,
    pause,
    prune,
    recall,
    repair,
    report,
    run,
    settings,
    setup,
    status,
    viewer,
)
from worker.cli.answers import answer, failed
from worker.cli.asking import printable
from worker.cli.shared import start_without_collecting
from worker.errors import DatabaseRefused, Declined, IngestError, UsageError

app = typer.Typer(
    name="study-ingest",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"study-ingest {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Ingests learners' study sessions from RabbitMQ into PostgreSQL, exactly once."""


setup.add_to(app)
settings.add_to(app)
run.add_to(app)
status.add_to(app)
doctor.add_to(app)
pause.add_to(app)
repair.add_to(app)
correct.add_to(app)
recall.add_to(app)
batch.add_to(app)
dead.add_to(app)
export.add_to(app)
content.add_to(app)
old_answers.add_to(app)
viewer.add_to(app)
due.add_to(app)
report.add_to(app)
audit.add_to(app)
prune.add_to(app)


def _end(error: IngestError, said: bool = False) -> NoReturn:
    """Says what is wrong on standard error, and with --json also as the one object."""
    if not said:
        typer.echo(f"study-ingest: {printable(str(error))}", err=True)
    if "--json" in sys.argv:
        answer(failed(error))
    sys.exit(error.exit_code)


def _refusal(error: Exception) -> DatabaseRefused | None:
    """What the database said to a statement of ours, in one line without its values; None for an
    error that is not the database's.
    """
    from sqlalchemy.exc import DBAPIError

    if not isinstance(error, DBAPIError):
        return None
    state = getattr(error.orig, "sqlstate", None) or "unknown"
    said = str(error.orig).partition("\n")[0].rpartition(">: ")[2]
    return DatabaseRefused(
        f"The database refused ({said}; SQLSTATE {state})",
        "`study-ingest doctor` looks for why.",
    )


def main() -> None:
    """The entry point. A known error is one sentence on standard error and its exit code."""
    start_without_collecting()
    try:
        sys.exit(app(standalone_mode=False))
    except IngestError as error:
        _end(error)
    except typer.TyperException as error:
        shown: Any = error
        shown.show()  # with the usage of the command
        remedy = "`--help` shows how the command is used."
        _end(UsageError(error.format_message(), remedy), said=True)
    except typer.Abort:
        _end(Declined("Nobody confirmed it, so nothing was done."))
    except Exception as error:
        if (refused := _refusal(error)) is None:
            raise
        _end(refused)
    except KeyboardInterrupt:
        sys.exit(130)
