"""The command `due`: what a user should review."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.answers import answer
from worker.cli.asking import At, Json, printable, user_id
from worker.cli.shared import engine_of, load_settings, run

if TYPE_CHECKING:
    from worker.operate.due import Due


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(due)


def due(
    user: Annotated[
        int, typer.Option("--user", parser=user_id, metavar="ID", help="The user to look at.")
    ],
    at: At = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1_000_000, help="At most this many questions.")
    ] = 50,
    as_json: Json = False,
) -> None:
    """Lists the published questions that are due for a user, the most forgotten first.

    It computes the time --at from today's progress, as if the user answered nothing in between.

    Example: study-ingest due --user 42 --limit 10
    """
    from worker.operate import due as operation
    from worker.store import schema

    moment = at or datetime.now(UTC)

    async def work() -> "list[Due]":
        async with engine_of(load_settings(), connections=1, name="study-ingest due") as engine:
            await schema.check(engine)
            return await operation.due(engine, user, moment)

    found = run(work())
    shown = found[:limit]
    if as_json:
        answer(
            {
                "user_id": user,
                "at": moment.isoformat(),
                "count": len(found),
                "due": [
                    {
                        "question_id": question.question_id,
                        "topic_id": question.topic_id,
                        "pub_ids": question.pub_ids,
                        "title": question.title,
                        "due_from": question.due_from.isoformat(),
                        "last_answered_at": question.last_answered_at.isoformat(),
                        "pattern": question.pattern,
                        "retrievability": recall,
                    }
                    for question, recall in shown
                ],
            }
        )
        return
    for question, recall in shown:
        title = f"  {question.title}" if question.title else ""
        typer.echo(
            printable(
                f"{recall:4.0%}  due since {question.due_from:%Y-%m-%d %H:%M}"
                f"  {question.pattern:10}  {' '.join(question.pub_ids)}{title}"
            )
        )
    typer.echo(f"{len(found)} questions are due for user {user}.")
