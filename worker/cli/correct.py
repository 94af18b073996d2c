"""Commands that correct the record: `void`, `rescore` and `erase`."""

from datetime import datetime
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from worker.cli.answers import answer
from worker.cli.asking import Json, Reason, Yes, bar, by, confirm, user_id
from worker.cli.recall import noted
from worker.cli.shared import engine_of, load_settings, run
from worker.progress.nudging import nudging

_INT32 = 2**31
_INT64 = 2**63


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(void)
    app.command()(rescore)
    app.command()(erase)


def void(
    session: Annotated[
        UUID, typer.Argument(metavar="SESSION_UUID", help="The batch's client_session_uuid.")
    ],
    reason: Reason = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Takes a session out of its user's progress. Its attempts stay on record.

    If the session is delivered again, it is a duplicate. Running the command again changes nothing.
    It cannot be undone.

    Example: study-ingest void 0b9c6a52-4c1e-4a9b-9c43-6d3b1f0a7a11 --reason 'a test'
    """
    from worker.operate import void as operation
    from worker.store import schema

    settings = load_settings()
    confirm(f"Take session {session} out of its user's progress?", yes)

    async def work() -> operation.VoidCounts:
        async with (
            engine_of(settings, connections=1, name="study-ingest void") as engine,
            nudging(engine, settings) as on_change,
        ):
            await schema.check(engine)
            return await operation.void(engine, session, settings.policy(), by(reason), on_change)

    done = run(work())
    if as_json:
        answer(done._asdict())
    elif not done.sessions:
        typer.echo(f"Session {session} is already void; nothing to do.")
    else:
        typer.echo(
            f"Voided {done.attempts} attempts of user {done.user_id}. The progress of"
            f" {done.progress} questions changed."
        )


def rescore(
    question: Annotated[
        int | None, typer.Argument(metavar="QUESTION", min=1, max=_INT64 - 1)
    ] = None,
    pub_id: Annotated[
        str | None,
        typer.Option("--pub-id", help="The question's published id, instead of its own id."),
    ] = None,
    correct_choice: Annotated[
        int | None,
        typer.Option(
            "--correct-choice",
            min=-_INT32,
            max=_INT32 - 1,
            help="The new correct choice. If it is not given, the key stays as it is.",
        ),
    ] = None,
    reason: Reason = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Scores all attempts on a question again, after a wrong answer key was corrected.

    It also computes the progress again, and sends a new result (with the status already_ingested)
    to the viewer of each session whose counts changed. Running the command again changes nothing.

    Example: study-ingest rescore 17 --correct-choice 3 --reason 'typo in the key'
    """
    from worker.operate import rescore as operation
    from worker.store import schema

    if (question is None) is (pub_id is None):
        raise typer.BadParameter("name the question: by its id, or by --pub-id")
    settings = load_settings()
    named = f"question {question}" if pub_id is None else f"question {pub_id!r}"
    confirm(f"Score all attempts on {named} again?", yes)

    async def work() -> operation.RescoreCounts:
        async with (
            engine_of(settings, connections=1, name="study-ingest rescore") as engine,
            nudging(engine, settings) as on_change,
        ):
            await schema.check(engine)
            question_id = question or await operation.published_as(engine, pub_id or "")
            with bar("Scoring users again") as progress:
                return await operation.rescore(
                    *(engine, question_id, correct_choice, settings.policy(), by(reason)),
                    progress=progress,
                    on_change=on_change,
                )

    done = run(work())
    if as_json:
        answer(done._asdict())
    elif not done.attempts:
        typer.echo("All attempts are already scored with this key; nothing to do.")
    else:
        typer.echo(
            f"Scored {done.attempts} attempts of {done.sessions} sessions again, and sent"
            f" {done.told} results."
        )


def erase(
    user: Annotated[
        int, typer.Option("--user", parser=user_id, metavar="ID", help="The user to erase.")
    ],
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            help="Also append the erasure to this file, before it is committed. After a backup was"
            " restored, `recall` needs it.",
        ),
    ] = None,
    reason: Reason = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Deletes everything about a user: attempts, progress, batches and dead letters.

    Nothing that the user answered before comes back, even if it still waits in a queue or on a
    phone. A record in the audit, the uuid of each batch and the moment of the erasure stay. If the
    command is interrupted, run it again.

    Example: study-ingest erase --user 42 --reason 'asked to be forgotten'
    """
    from worker.operate import erase as operation
    from worker.store import schema

    settings = load_settings()

    def note(at: datetime) -> None:
        if record is not None:
            noted(record, user, at)

    async def work() -> dict[str, int]:
        async with (
            engine_of(settings, connections=1, name="study-ingest erase") as engine,
            nudging(engine, settings) as on_change,
        ):
            await schema.check(engine)
            with bar("Reading the dead letters") as progress:
                found = await operation.survey(engine, user, progress)
            confirm(
                f"Erase {found.attempts} attempts in {found.batches} batches and"
                f" {len(found.letters)} dead letters of user {user} permanently?",
                yes,
            )
            erased, letters = await operation.erase(
                *(engine, user, found, by(reason), on_change),
                before_commit=note,
            )
            return erased._asdict() | {
                "dead_letters": letters,
                "unattributed_dead_letters": found.unattributed,
            }

    done = run(work())
    if as_json:
        answer({"user_id": user} | done)
    else:
        typer.echo(
            f"Erased {done['attempts']} attempts, {done['batches']} batches, {done['progress']}"
            f" progress rows, {done['messages']} messages and {done['dead_letters']} dead letters."
        )
        if done["unattributed_dead_letters"]:
            typer.echo(
                f"{done['unattributed_dead_letters']} dead letters name no known question, so"
                " they cannot be attributed to a user: look at them with `study-ingest dead show`.",
                err=True,
            )
