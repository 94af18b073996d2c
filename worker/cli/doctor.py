"""The command `doctor`: finds everything that is known to cause trouble, and says what to do."""

from collections import Counter
from typing import TYPE_CHECKING, Final

import typer
from rich.console import Console
from rich.text import Text

from worker.cli.answers import answer
from worker.cli.asking import Json, printable
from worker.cli.shared import engine_of, load_settings, run

if TYPE_CHECKING:
    from worker.operate.doctor import Severity

_MARKS: "Final[dict[Severity, str]]" = {
    "ok": "green",
    "note": "cyan",
    "warning": "yellow",
    "danger": "bold red",
}


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(doctor)


def doctor(as_json: Json = False) -> None:
    """Checks settings, broker and database for everything that is known to cause trouble.

    It changes nothing. It exits with 1 if there is a warning or a danger. Run it with the login and
    the settings of the workers.

    Example: study-ingest doctor
    """
    from worker.broker.inspection import Inspection
    from worker.operate.doctor import Finding, examine

    settings = load_settings()

    async def work() -> list[Finding]:
        async with (
            engine_of(settings, connections=1, name="study-ingest doctor") as engine,
            Inspection(settings) as inspection,
        ):
            return await examine(settings, engine, inspection)

    found = run(work())
    counts = Counter(each.severity for each in found)
    healthy = not (counts["warning"] or counts["danger"])
    if as_json:
        findings = [each._asdict() for each in found]
        answer({"healthy": healthy, "findings": findings})
    else:
        console = Console(soft_wrap=True)
        for each in found:
            line = Text(f"{each.severity:8}", style=_MARKS[each.severity])
            line.append(f"{each.check}: {printable(each.found)}", style="default")
            if each.remedy:
                line.append(f" {printable(each.remedy)}", style="bold")
            console.print(line)
        said = ", ".join(f"{counts[word]} {word}" for word in reversed(_MARKS) if counts[word])
        console.print(Text(f"\n{said}"))
    raise typer.Exit(0 if healthy else 1)
