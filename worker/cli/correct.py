"""Commands that put the record right: `void`, `rescore` and `erase`."""

import json
from typing import Annotated
from uuid import UUID

import typer

from worker.cli.asking import Json, Reason, Yes, bar, by, confirm
from worker.cli.shared import engine_of, run, thresholds_of
from worker.errors import Unfinished
from worker.operate import erase as erasing
from worker.operate import rescore as rescoring
from worker.operate import void as voiding
from worker.settings import load_settings
from worker.store import schema

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
    """Takes a session out of its user's progress; its attempts stay on record.

    A redelivery of it stays a duplicate. Doing it again changes nothing. There is no way back.

    Example: study-ingest void 0b9c6a52-4c1e-4a9b-9c43-6d3b1f0a7a11 --reason 'a test'
    """
    settings = load_settings()
    confirm(f"Take session {session} out of its user's progress?", yes)

    async def work() -> voiding.Effect:
        async with engine_of(settings, connections=1, name="study-ingest void") as engine:
            await schema.check(engine)
            return await voiding.void(engine, session, thresholds_of(settings), by(reason))

    done = run(work())
    if as_json:
        typer.echo(json.dumps(done._asdict()))
    elif not done.sessions:
        typer.echo(f"Session {session} was void before; nothing to do.")
    else:
        typer.echo(
            f"Voided {done.attempts} attempts of user {done.user_id}; {done.progress} questions"
            " have other progress now."
        )


def rescore(
    question: Annotated[int, typer.Argument(metavar="QUESTION", min=1, max=_INT64 - 1)],
    correct_choice: Annotated[
        int | None,
        typer.Option(
            "--correct-choice",
            min=-_INT32,
            max=_INT32 - 1,
            help="Set the question's correct choice to this. Default: as it stands.",
        ),
    ] = None,
    reason: Reason = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Scores all attempts on a question again, after its answer key was wrong.

    Progress is folded again, and the viewer of each session that changed is sent its result with
    the new counts (status already_ingested). Doing it again changes nothing.

    Example: study-ingest rescore 17 --correct-choice 3 --reason 'typo in the key'
    """
    settings = load_settings()
    confirm(f"Score all attempts on question {question} again?", yes)

    async def work() -> rescoring.Effect:
        async with engine_of(settings, connections=1, name="study-ingest rescore") as engine:
            await schema.check(engine)
            return await rescoring.rescore(
                engine, question, correct_choice, thresholds_of(settings), by(reason)
            )

    done = run(work())
    if as_json:
        typer.echo(json.dumps(done._asdict()))
    elif not done.attempts:
        typer.echo("No attempt had to be scored again.")
    else:
        typer.echo(
            f"Scored {done.attempts} attempts of {done.sessions} sessions again; {done.told}"
            " results tell of it."
        )


def erase(
    user: Annotated[int, typer.Option("--user", help="Whose traces.")],
    reason: Reason = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Erases all that ingest knows of a user: attempts, progress, batches, dead letters.

    A line of audit stays, and the bare uuid of each batch, so that a redelivery brings nothing
    back. Withdraw the user's publications first: a batch that was never ingested is new. Doing
    it again finishes what was interrupted.

    Example: study-ingest erase --user 42 --reason 'asked to be forgotten'
    """
    settings = load_settings()

    async def work() -> dict[str, int]:
        async with engine_of(settings, connections=1, name="study-ingest erase") as engine:
            await schema.check(engine)
            with bar("Looking through the dead letters") as progress:
                found = await erasing.survey(engine, settings, user, progress)
            confirm(
                f"Erase {found.attempts} attempts in {found.batches} batches and"
                f" {len(found.letters)} dead letters of user {user}, for good?",
                yes,
            )
            with bar("Erasing") as progress:
                erased, letters = await erasing.erase(
                    engine, settings, user, found, by(reason), progress
                )
            return erased._asdict() | {
                "dead_letters": letters,
                "dead_letters_left": len(found.letters) - letters,
                "unattributed_dead_letters": found.unattributed,
            }

    done = run(work())
    if as_json:
        typer.echo(json.dumps({"user_id": user} | done))
    else:
        typer.echo(
            f"Erased {done['attempts']} attempts, {done['batches']} batches, {done['progress']}"
            f" progress rows, {done['messages']} messages and {done['dead_letters']} dead letters."
        )
        if done["unattributed_dead_letters"]:
            typer.echo(
                f"{done['unattributed_dead_letters']} dead letters name no question there is, so"
                " whose they are nobody can say: look with `study-ingest dead show`.",
                err=True,
            )
    if done["dead_letters_left"]:
        raise Unfinished(
            f"{done['dead_letters_left']} dead letters of user {user} were in another command's"
            " hand: run this one again."
        )
