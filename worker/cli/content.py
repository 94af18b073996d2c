"""The commands for content: `content import | list | withdraw | restore | check | touched`."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.answers import answer
from worker.cli.asking import DryRun, Json, Lines, Reason, bar, by, printable
from worker.cli.files import opened
from worker.cli.shared import engine_of, load_settings, run
from worker.errors import ContentError
from worker.progress.nudging import nudging

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.operate.content.change import Touched
    from worker.operate.content.lines import Line
    from worker.operate.doctor import Finding
    from worker.store.operate.content import Question, Topic

_PUB_IDS = Annotated[
    list[str], typer.Argument(metavar="PUB_ID...", help="The published ids of questions.")
]

_commands = typer.Typer(
    name="content",
    help="The topics and questions that viewers ask about: bring them in, and check them.",
    no_args_is_help=True,
)


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    _commands.command("import")(import_file)
    _commands.command("list")(list_content)
    for command in (withdraw, restore, check, touched):
        _commands.command()(command)
    app.add_typer(_commands)


def import_file(
    file: Lines,
    dry_run: DryRun = False,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Adds topics and questions, and publishes the questions: all of the file, or nothing.

    Each line has pub_id, topic (its name) or topic_id, correct_choice, and optionally user_id (the
    owner), title and text. Importing a file again changes nothing.

    Example: study-ingest content import questions.csv --dry-run
    """
    from worker.operate.content.bring_in import Imported, bring_in

    lines = _read(file)

    async def work() -> Imported:
        async with _database("import") as engine:
            with bar("Importing") as progress:
                return await bring_in(engine, lines, by(reason), dry_run=dry_run, progress=progress)

    done = run(work())
    if as_json:
        answer({"dry_run": dry_run, "lines": len(lines)} | asdict(done))
        return
    typer.echo(
        f"{'Would add' if dry_run else 'Added'} {done.topics} topics and {done.questions}"
        f" questions. {done.moved} questions change their topic, {done.texts} their title or"
        f" text, and {done.unchanged} stay as they are."
    )
    if done.withdrawn:
        typer.echo(
            f"{done.withdrawn} of the questions are withdrawn, and stay so:"
            " `study-ingest content restore` publishes them again."
        )


def _read(file: Path) -> "list[Line]":
    from worker.operate.content.lines import FORMAT, without_duplicates

    with opened(file, ContentError) as (source, is_csv):
        return without_duplicates(FORMAT.read(source, is_csv=is_csv))


def list_content(
    user: Annotated[
        int | None,
        typer.Option("--user", min=1, max=2**63 - 1, help="Only topics of this owner."),
    ] = None,
    topic: Annotated[
        int | None,
        typer.Option(
            "--topic", min=1, max=2**63 - 1, help="List the questions of this topic instead."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1_000_000, help="At most this many.")
    ] = 1_000,
    as_json: Json = False,
) -> None:
    """Lists topics with the numbers of their questions, or the questions of one topic.

    Example: study-ingest content list --topic 7
    """
    from worker.store.engine import transaction
    from worker.store.operate import content as stored

    async def work() -> "tuple[list[Topic], list[Question]]":
        async with _database("list") as engine, transaction(engine) as connection:
            if topic is None:
                return await stored.list_topics(connection, user, limit), []
            return [], await stored.list_questions(connection, topic, limit)

    topics, questions = run(work())
    if as_json:
        if topic is None:
            answer({"topics": [each._asdict() for each in topics]})
        else:
            answer({"questions": [each._asdict() for each in questions]})
        return
    for found in topics:
        typer.echo(
            f"topic {found.topic_id} of {_owner(found.user_id)}: {_quoted(found.name)},"
            f" {found.questions} questions ({found.published} published, {found.withdrawn}"
            f" withdrawn, {found.deleted} deleted)"
        )
    for each in questions:
        title = f" {_quoted(each.title)}" if each.title else ""
        typer.echo(
            f"question {each.question_id} of {_owner(each.user_id)}: {each.state}"
            + ("" if each.pub_id is None else f" as {_quoted(each.pub_id)}")
            + f", correct choice {each.correct_choice}{title}"
        )
    if not topics and not questions:
        typer.echo("There are none: study-ingest content import FILE adds topics and questions.")


def withdraw(pub_ids: _PUB_IDS, reason: Reason = "", as_json: Json = False) -> None:
    """Withdraws publications: workers skip answers to them. All that was answered stays.

    Example: study-ingest content withdraw q-17 --reason 'two choices are right'
    """
    _set_withdrawn(pub_ids, True, reason, as_json)


def restore(pub_ids: _PUB_IDS, reason: Reason = "", as_json: Json = False) -> None:
    """Publishes withdrawn questions again, under the same ids.

    Example: study-ingest content restore q-17
    """
    _set_withdrawn(pub_ids, False, reason, as_json)


def _set_withdrawn(pub_ids: list[str], withdrawn: bool, reason: str, as_json: bool) -> None:
    from worker.operate.content import change

    wanted = {*pub_ids}

    async def work() -> int:
        async with (
            _database("withdraw" if withdrawn else "restore") as engine,
            nudging(engine, load_settings()) as on_change,
        ):
            return await change.set_withdrawn(
                engine, wanted, by(reason), withdrawn=withdrawn, on_change=on_change
            )

    changed = run(work())
    state = "withdrawn" if withdrawn else "published"
    if as_json:
        answer({"changed": changed, "unchanged": len(wanted) - changed})
    elif changed == len(wanted):
        typer.echo(f"{changed} questions are {state} now.")
    else:
        typer.echo(
            f"{changed} questions are {state} now, and {len(wanted) - changed} were so before."
        )


def check(as_json: Json = False) -> None:
    """Looks for content that makes workers skip or reject answers. It changes nothing.

    It finds questions whose topic has another owner or is missing, publications that lead to no
    question, and questions that are published twice. It exits with 1 if there is a warning or a
    danger.

    Example: study-ingest content check
    """
    from worker.operate.content import check as operation

    async def work() -> "list[Finding]":
        async with _database("check") as engine:
            return await operation.check(engine)

    found = run(work())
    healthy = all(each.severity in ("ok", "note") for each in found)
    if as_json:
        answer({"healthy": healthy, "findings": [each._asdict() for each in found]})
    else:
        for each in found:
            if each.severity != "ok":
                typer.echo(printable(f"{each.severity:8}{each.found} {each.remedy}"))
        if healthy:
            typer.echo("Nothing in the content makes workers skip or reject answers.")
    raise typer.Exit(0 if healthy else 1)


def touched(
    pub_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PUB_ID...]", help="The published ids of changed questions."),
    ] = None,
    question: Annotated[
        list[int] | None,
        typer.Option("--question", help="The id of a changed question. Can be repeated."),
    ] = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Lets progress follow the content after your application has changed it by itself.

    Run it after you moved questions to other topics, or changed a correct choice. Without any id
    it looks at all questions. It may run while workers ingest, and again.

    Example: study-ingest content touched q-17 q-18
    """
    from worker.operate.content import change

    async def work() -> "Touched":
        async with (
            _database("touched") as engine,
            nudging(engine, load_settings()) as on_change,
        ):
            return await change.touched(
                engine, pub_ids or (), question or (), by(reason), on_change
            )

    done = run(work())
    if as_json:
        answer(done._asdict() | {"to_rescore": [*done.to_rescore]})
        return
    typer.echo(f"{done.moved} rows of progress of {done.users} users followed their questions.")
    for question_id in done.to_rescore:
        typer.echo(
            f"Question {question_id} has answers that were scored by another correct choice:"
            f" study-ingest rescore {question_id}"
        )


@asynccontextmanager
async def _database(doing: str) -> "AsyncIterator[AsyncEngine]":
    from worker.store import schema

    name = f"study-ingest content {doing}"
    async with engine_of(load_settings(), connections=1, name=name) as engine:
        await schema.check(engine)
        yield engine


def _owner(user_id: int | None) -> str:
    return "the shared bank" if user_id is None else f"user {user_id}"


def _quoted(text: str) -> str:
    return printable(json.dumps(text, ensure_ascii=False))
