"""What commands that change or take long have in common: who asks, a confirmation, a bar."""

import os
import pwd
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import Progress

from worker.errors import NotConfirmed
from worker.store.audit import By

Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of sentences.")]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object on each line.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before doing it.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the audit.")]

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def by(reason: str) -> By:
    """The operating system's user, who can't be told by the environment, and the reason."""
    try:
        actor = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user need not have a name
        actor = f"uid {os.getuid()}"
    return By(actor, reason)


def confirm(question: str, yes: bool) -> None:
    """Asks, unless `yes`.

    Raises `NotConfirmed` where nobody can be asked; ends the program with 1 on a no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise NotConfirmed("Nobody is there to confirm it, and nothing was done: add --yes.")
    typer.confirm(question, abort=True, err=True)


def duration(text: str) -> timedelta:
    """Reads `90s`, `15m`, `2h`, `7d` or `1w`."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter("write it as 90s, 15m, 2h, 7d or 1w")
    return timedelta(**{_UNITS[match[2]]: float(match[1])})


@contextmanager
def bar(title: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, told of (done, total or 0); none where nobody watches."""
    console = Console(stderr=True)
    with Progress(
        console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as progress:
        task = progress.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total or None)

        yield advance


def printable(text: str) -> str:
    """`text` without what could drive a terminal: a message's words are a stranger's."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
