"""The command `report`: a user's report, as a page or as JSON."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.answers import answer
from worker.cli.asking import user_id
from worker.cli.files import written
from worker.cli.shared import engine_of, load_settings, run
from worker.errors import NoHistory

if TYPE_CHECKING:
    from worker.operate.report.picture import Picture


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(report)


def report(
    user: Annotated[
        int, typer.Option("--user", parser=user_id, metavar="ID", help="The user to report on.")
    ],
    html: Annotated[
        Path | None,
        typer.Option("--html", help="The file to write. The default is report-USER.html."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and write no file.")
    ] = False,
) -> None:
    """Writes a page that shows what a user knows, forgets and should review.

    The page needs no server. It is personal data, so only you can read the file.

    Example: study-ingest report --user 42 --html report.html
    """
    from worker.operate.report.page import page

    found = run(_picture(user))
    if as_json:
        answer(_fields(found))
        return
    path = html or Path(f"report-{user}.html")
    with written(path) as file:
        file.write(page(found))
    typer.echo(f"Wrote {path}: open it in a browser.")


def _fields(picture: "Picture") -> dict[str, Any]:
    """The report as JSON has it: times and days in ISO 8601."""
    fields = asdict(picture) | {"made_at": picture.made_at.isoformat()}
    days = [{"day": each.day.isoformat(), "due": each.due} for each in picture.forecast]
    weeks = [asdict(each) | {"monday": each.monday.isoformat()} for each in picture.weeks]
    stubborn = [
        asdict(each) | {"due_at": each.due_at.isoformat(), "due_from": each.due_from.isoformat()}
        for each in picture.stubborn
    ]
    return fields | {"forecast": days, "weeks": weeks, "stubborn": stubborn}


async def _picture(user_id: int) -> "Picture":
    from worker.operate.report.picture import picture, since
    from worker.store import schema
    from worker.store.engine import transaction
    from worker.store.operate import report as stored

    now = datetime.now(UTC)
    async with engine_of(load_settings(), connections=1, name="study-ingest report") as engine:
        await schema.check(engine)
        # One snapshot, so that the parts agree with each other.
        async with transaction(engine, isolation="repeatable_read") as connection:
            questions = await stored.questions(connection, user_id)
            weeks = await stored.weeks(connection, user_id, since(now))
    if not questions:
        raise NoHistory(f"User {user_id} has no study history.")
    return picture(user_id, questions, weeks, now)
