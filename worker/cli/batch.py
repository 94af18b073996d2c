"""The commands for batches: `batch list | show`."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from worker.cli.answers import answer
from worker.cli.asking import Json, moment, printable, user_id
from worker.cli.shared import engine_of, load_settings, run

if TYPE_CHECKING:
    from worker.operate.batch import Life
    from worker.store.operate.batches import Batch


class _Status(StrEnum):
    """What became of a batch."""

    INGESTED = "ingested"
    VOIDED = "voided"
    ERASED = "erased"
    REJECTED = "rejected"


_commands = typer.Typer(
    name="batch",
    help="Batches: find them, and see what became of one.",
    no_args_is_help=True,
)


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    _commands.command("list")(list_batches)
    _commands.command()(show)
    app.add_typer(_commands)


def list_batches(
    user: Annotated[
        int | None,
        typer.Option("--user", parser=user_id, metavar="ID", help="Only this user's batches."),
    ] = None,
    viewer: Annotated[
        str | None, typer.Option("--viewer", help="Only batches from this viewer.")
    ] = None,
    topic: Annotated[
        int | None,
        typer.Option(
            "--topic", min=-(2**63), max=2**63 - 1, help="Only batches with answers to this topic."
        ),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            "--since",
            parser=moment,
            metavar="TIME",
            help="Only batches that arrived since this age (2h) or time. The default is 7d.",
        ),
    ] = None,
    status: Annotated[
        list[_Status] | None, typer.Option("--status", help="Only batches that ended like this.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="At most this many batches.")
    ] = 50,
    as_json: Json = False,
) -> None:
    """Lists batches that were ingested or rejected, the newest first.

    Nobody knows the user or the topic of a rejected batch, so --user and --topic leave them out.

    Example: study-ingest batch list --user 42 --since 30d
    """
    from worker.operate import batch as operation
    from worker.store import schema
    from worker.store.operate.batches import Wanted

    oldest = since or datetime.now(UTC) - timedelta(days=7)

    async def work() -> "list[Batch]":
        settings = load_settings()
        async with engine_of(settings, connections=1, name="study-ingest batch") as engine:
            await schema.check(engine)
            wanted = Wanted(oldest, user, viewer, topic, frozenset(status or _Status))
            return await operation.find(engine, wanted, limit)

    found = run(work())
    if as_json:
        answer({"since": oldest.isoformat(), "batches": [*map(_listed, found)]})
        return
    for each in found:
        what = each.reason or f"{_count(each.answers, 'answer')}, {each.skipped} skipped"
        whose = "" if each.user_id is None else f"user {each.user_id}"
        typer.echo(
            printable(
                f"{each.at:%Y-%m-%d %H:%M:%S}  {each.client_session_uuid or '-':36}"
                f"  {each.state:8}  {each.viewer or '-'}  {whose}  {what}"
            )
        )
    if len(found) == limit:
        typer.echo(f"These are the newest {limit}: raise --limit for more.")
    elif not found:
        typer.echo(f"No batch since {oldest:%Y-%m-%d %H:%M} fits.")


def show(
    uuid: Annotated[UUID, typer.Argument(help="The batch's client_session_uuid.")],
    as_json: Json = False,
) -> None:
    """Shows what became of one batch: its answers, what was skipped and why, its dead letters.

    Where nothing is stored about it, it says what waits in the broker.

    Example: study-ingest batch show 0b9c6a52-4c1e-4a9b-9c43-6d3b1f0a7a11
    """
    from worker.operate import batch as operation
    from worker.store import schema

    async def work() -> "Life":
        settings = load_settings()
        async with engine_of(settings, connections=1, name="study-ingest batch") as engine:
            await schema.check(engine)
            return await operation.life(engine, settings, uuid)

    life = run(work())
    if as_json:
        answer(_shown(life))
    else:
        for line in _lines(life):
            typer.echo(printable(line))


def _lines(life: "Life") -> list[str]:
    lines = [f"Batch {life.client_session_uuid}: {life.state}"]
    if (receipt := life.receipt) is not None:
        whose = "" if receipt.user_id is None else f" for user {receipt.user_id}"
        lines.append(f"Received {_when(receipt.received_at)} from {receipt.viewer or '-'}{whose}.")
        if receipt.erased_at is not None:
            lines.append(f"Its person's history was erased {_when(receipt.erased_at)}.")
        if life.result_is_pruned:
            lines.append("Its result is pruned, and with it what was skipped.")
        if life.result_waits_since is not None:
            lines.append(f"Its result waits in the outbox since {_when(life.result_waits_since)}.")
    lines += _noted(life)
    lines += [f"Job {job.kind} waits in the outbox since {_when(job.since)}." for job in life.jobs]
    for session in life.sessions:
        void = "" if session.voided_at is None else f", void since {_when(session.voided_at)}"
        lines.append(
            f"Topic {session.topic_id}: {session.correct} correct, {session.wrong} wrong,"
            f" {session.unsure} unsure{void}"
        )
    for attempt in life.attempts:
        notes = [
            *([f"its time was {attempt.time_was}"] if attempt.time_was else []),
            *([f"corrections: {attempt.times_corrected}"] if attempt.times_corrected else []),
        ]
        lines.append(
            f"  {attempt.position}: {_when(attempt.answered_at)}  {attempt.outcome:7}"
            f"  chose {attempt.selected_choice}, right was {attempt.correct_choice}"
            f"  question {attempt.question_id} ({' '.join(attempt.pub_ids) or 'not published'})"
            + "".join(f"; {note}" for note in notes)
        )
    lines += [
        f"  {each['position']}: skipped, {each['reason']}  ({each['question_pub_id']})"
        for each in life.skipped
    ]
    lines += [
        f"Dead letter {letter.id} of {_when(letter.died_at)}: {letter.reason}. {letter.detail}"
        for letter in life.letters
    ]
    return lines


def _noted(life: "Life") -> list[str]:
    """What is noted for a while only."""
    receipt, noted = life.receipt, life.moment
    if receipt is None:
        return []
    unknown = "not known"
    published = unknown if noted.published_at is None else _when(noted.published_at)
    committed = unknown
    if noted.worker is not None:
        committed = (
            f"by worker {noted.worker}, in a group of {noted.deliveries},"
            f" after {noted.milliseconds:.1f} ms"
        )
    told = unknown if noted.told_at is None else _when(noted.told_at)
    return [
        f"Published: {published}" + (f" by {noted.app}." if noted.app else "."),
        f"Committed: {committed}.",
        f"Its viewer was told: {told}.",
    ]


def _listed(batch: "Batch") -> dict[str, Any]:
    return {
        "at": batch.at.isoformat(),
        "client_session_uuid": _text(batch.client_session_uuid),
        "status": batch.state,
        "viewer": batch.viewer,
        "user_id": batch.user_id,
        "topic_ids": batch.topic_ids,
        "answers": batch.answers,
        "skipped": batch.skipped,
        "reason": batch.reason,
    }


def _shown(life: "Life") -> dict[str, Any]:
    receipt = life.receipt
    return {
        "client_session_uuid": str(life.client_session_uuid),
        "status": life.state,
        "viewer": receipt and receipt.viewer,
        "user_id": receipt and receipt.user_id,
        "received_at": receipt and receipt.received_at.isoformat(),
        "erased_at": _iso(receipt and receipt.erased_at),
        "result_pruned": life.result_is_pruned,
        "result_waits_since": _iso(life.result_waits_since),
        "published_at": _iso(life.moment.published_at),
        "published_by": life.moment.app,
        "worker": life.moment.worker,
        "group_size": life.moment.deliveries,
        "milliseconds": life.moment.milliseconds,
        "told_at": _iso(life.moment.told_at),
        "jobs_waiting": [{"kind": job.kind, "since": job.since.isoformat()} for job in life.jobs],
        "sessions": [
            each._asdict()
            | {
                "quiz_session_id": str(each.quiz_session_id),
                "voided_at": _iso(each.voided_at),
            }
            for each in life.sessions
        ],
        "attempts": [
            each._asdict()
            | {
                "answered_at": each.answered_at.isoformat(),
                "answered_at_sent": _iso(each.answered_at_sent),
            }
            for each in life.attempts
        ],
        "skipped": life.skipped,
        "dead_letters": [
            {
                "id": each.id,
                "died_at": each.died_at.isoformat(),
                "reason": each.reason,
                "detail": each.detail,
                "viewer": each.viewer,
            }
            for each in life.letters
        ],
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _when(time: datetime) -> str:
    return time.isoformat(sep=" ", timespec="seconds")


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _text(uuid: UUID | None) -> str | None:
    return None if uuid is None else str(uuid)
