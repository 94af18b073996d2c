"""What several commands share: common options, confirmation, and a progress bar."""

import os
import pwd
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.progress import Progress

from worker.cli.shared import load_settings
from worker.errors import NotConfirmed

if TYPE_CHECKING:
    from worker.store.audit import By


def user_id(text: str) -> int:
    """Reads the id of a user: any bigint of the study application."""
    try:
        number = int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None
    if not -(2**63) <= number < 2**63:
        raise typer.BadParameter(f"{text} does not fit into 64 bits")
    return number


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object on each line.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
User = Annotated[
    int | None,
    typer.Option(
        "--user", parser=user_id, metavar="ID", help="Only this user. The default is all users."
    ),
]
Lines = Annotated[
    Path, typer.Argument(help="A CSV file (.csv) or JSON Lines, or - for JSON Lines on stdin.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, and change nothing.")]
Reason = Annotated[str, typer.Option("--reason", help="The reason, which is kept in the audit.")]

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def by(reason: str) -> "By":
    """The reason, and who acts: INGEST_ACTOR if it is set, and always the operating system's user,
    which environment variables cannot change.
    """
    from worker.store.audit import By

    try:
        actor = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # the user of a container may not have a name
        actor = f"uid {os.getuid()}"
    if not reason.isprintable():
        raise typer.BadParameter("the reason must be one line of printable text in UTF-8")
    named = load_settings().actor
    return By(actor if named is None else f"{named} ({actor})", reason)


def confirm(question: str, yes: bool) -> None:
    """Asks for confirmation, unless `yes`.

    Raises `NotConfirmed` if there is no terminal to ask on. If the answer is no, the program exits
    with 1.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise NotConfirmed(
            "There is no terminal to ask for confirmation, so nothing was done",
            "add --yes.",
        )
    typer.confirm(question, abort=True, err=True)


def duration(text: str) -> timedelta:
    """Reads `90s`, `15m`, `2h`, `7d` or `1w`."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter("write it as 90s, 15m, 2h, 7d or 1w")
    try:
        age = timedelta(**{_UNITS[match[2]]: float(match[1])})
        _ = datetime.now(UTC) - age  # which the database computes too
    except OverflowError:
        raise typer.BadParameter("that age is too long") from None
    return age


def moment(text: str) -> datetime:
    """Reads an age, such as `2d`, or a time in ISO 8601, which is UTC if it has no offset."""
    try:
        return time(text)
    except typer.BadParameter:
        try:
            return datetime.now(UTC) - duration(text)
        except (typer.BadParameter, OverflowError):
            raise typer.BadParameter(
                "write an age, such as 12h or 7d, or a time, such as 2026-11-28T09:00"
            ) from None


def time(text: str) -> datetime:
    """Reads a time in ISO 8601, which is UTC if it has no offset."""
    try:
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter("write a time, such as 2026-11-28T09:00") from None


At = Annotated[
    datetime | None,
    typer.Option(
        "--at",
        parser=time,
        metavar="TIME",
        help="As of this time, such as 2026-11-28T09:00, instead of now.",
    ),
]


@contextmanager
def bar(title: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, drawn only on a terminal.

    Call the result with (done, total). A total of 0 means that it is unknown.
    """
    console = Console(stderr=True)
    with Progress(
        console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as progress:
        task = progress.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total or None)

        yield advance


def printable(text: str) -> str:
    """`text` on one line and without control characters, because anybody may have written it."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
