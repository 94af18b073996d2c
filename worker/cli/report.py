"""The command `report`: a user's report, as a page or as JSON."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from worker.cli.answers import answer
from worker.cli.asking import At, user_id
from worker.cli.files import written
from worker.cli.shared import engine_of, load_settings, run

if TYPE_CHECKING:
    from worker.operate.report.picture import Picture


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(report)


_YEARS: Final = range(1970, 9000)
"""The years that a report can be about: before and after them, weeks can't be counted."""


def report(
    user: Annotated[
        int, typer.Option("--user", parser=user_id, metavar="ID", help="The user to report on.")
    ],
    at: At = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="The file to write. The default is report-USER.html."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and write no file.")
    ] = False,
) -> None:
    """Writes a page that shows what a user knows, forgets and should review.

    The page needs no server. It is personal data, so only you can read the file. With --at, it
    leaves out every answer that was given later.

    Example: study-ingest report --user 42 --html report.html
    """
    from worker.operate.report.page import page

    if at is not None and at.year not in _YEARS:
        raise typer.BadParameter(
            f"the year must be from {_YEARS.start} to {_YEARS.stop - 1}", param_hint="--at"
        )
    made_at = datetime.now(UTC)
    found = run(_picture(user, at or made_at))
    if as_json:
        answer(_fields(found) | {"made_at": made_at.isoformat()})
        return
    path = html or Path(f"report-{user}.html")
    with written(path) as file:
        file.write(page(found))
    typer.echo(f"Wrote {path}: open it in a browser.")


def _fields(picture: "Picture") -> dict[str, Any]:
    """The report as JSON has it: times and days in ISO 8601."""
    fields = asdict(picture) | {"at": picture.at.isoformat()}
    days = [{"day": each.day.isoformat(), "due": each.due} for each in picture.forecast]
    weeks = [asdict(each) | {"monday": each.monday.isoformat()} for each in picture.weeks]
    due = [asdict(each) | {"due_from": each.due_from.isoformat()} for each in picture.next]
    stubborn = [
        asdict(each) | {"due_at": each.due_at.isoformat(), "due_from": each.due_from.isoformat()}
        for each in picture.stubborn
    ]
    return fields | {"forecast": days, "weeks": weeks, "next": due, "stubborn": stubborn}


async def _picture(user_id: int, at: datetime) -> "Picture":
    from worker.operate.report.gather import gather
    from worker.store import schema

    settings = load_settings()
    async with engine_of(settings, connections=1, name="study-ingest report") as engine:
        await schema.check(engine)
        return await gather(engine, settings.policy(), user_id, at)
