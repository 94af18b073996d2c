"""Commands for dead letters: `dead list | show | replay | discard`."""

import json
import sys
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.table import Table

from schemas.words import RejectReason
from worker.cli.asking import Json, JsonLines, Yes, bar, by, confirm, duration, printable
from worker.cli.shared import engine_of, load_settings, run
from worker.errors import SettingsError

if TYPE_CHECKING:
    from worker.operate.dead.compare import Difference
    from worker.operate.dead.letters import Letter, Wanted
    from worker.settings import Settings

_PIPED_WIDTH = 1_000

_Reasons = Annotated[
    list[RejectReason] | None,
    typer.Option("--reason", metavar="REASON", help="Only those dead of this, or these."),
]
_Viewers = Annotated[
    list[str] | None, typer.Option("--viewer", metavar="VIEWER", help="Only its, or theirs.")
]
_Uuids = Annotated[
    list[UUID] | None, typer.Option("--uuid", metavar="UUID", help="Only this client_session_uuid.")
]
_Older = Annotated[
    timedelta | None,
    typer.Option("--older-than", parser=duration, metavar="AGE", help="As 90s, 15m, 2h, 7d, 1w."),
]
_Newer = Annotated[
    timedelta | None,
    typer.Option("--newer-than", parser=duration, metavar="AGE", help="As 90s, 15m, 2h, 7d, 1w."),
]

_commands = typer.Typer(
    name="dead",
    help="Messages that were refused or gave up: look, replay after a mend, discard.",
    no_args_is_help=True,
)


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    _commands.command("list")(list_letters)
    for command in (show, replay, discard):
        _commands.command()(command)
    app.add_typer(_commands)


def list_letters(
    reason: _Reasons = None,
    viewer: _Viewers = None,
    uuid: _Uuids = None,
    older_than: _Older = None,
    newer_than: _Newer = None,
    as_json: Json = False,
) -> None:
    """Lists dead letters, oldest first; takes none away.

    Example: study-ingest dead list --reason nothing_resolved --newer-than 2h
    """
    settings = load_settings()
    found = run(_look(settings, _wanted(reason, viewer, uuid, older_than, newer_than)))
    if as_json:
        typer.echo(json.dumps({"count": len(found), "letters": found}))
        return
    if not found:
        typer.echo("No dead letters.")
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    table = Table(box=None, pad_edge=False)
    for heading in ("died at", "reason", "viewer", "session", "bytes"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "bytes" else "left")
    table.add_column("detail", overflow="fold")
    for letter in found:
        at = str(letter["died_at"] or "?")[:19].replace("T", " ")
        session = letter["client_session_uuid"] or "?"
        cells = (at, letter["reason"], letter["viewer"] or "?", session, str(letter["bytes"]))
        table.add_row(*(printable(cell) for cell in cells), printable(letter["detail"]))
    console.print(table, markup=False, highlight=False)
    counts = Counter(letter["reason"] for letter in found)
    typer.echo(f"{len(found)}: " + ", ".join(f"{n} {word}" for word, n in counts.most_common()))


def show(
    reason: _Reasons = None,
    viewer: _Viewers = None,
    uuid: _Uuids = None,
    older_than: _Older = None,
    newer_than: _Newer = None,
    as_json: JsonLines = False,
) -> None:
    """Shows dead letters whole: properties, headers, body; takes none away.

    A reused uuid is shown with each difference from the batch that was ingested.

    Example: study-ingest dead show --uuid 0b9c6a52-4c1e-4a9b-9c43-6d3b1f0a7a11
    """
    from schemas.attempt_batch import AttemptBatch
    from worker.broker.dead_queue import open_dead_queue
    from worker.operate.dead.compare import differences
    from worker.operate.dead.letters import letters
    from worker.store.engine import transaction

    settings = load_settings()
    wanted = _wanted(reason, viewer, uuid, older_than, newer_than)

    async def work() -> int:
        count = 0
        async with (
            engine_of(settings, connections=1, name="study-ingest dead show") as engine,
            open_dead_queue(settings) as queue,
        ):
            with bar("Reading", shown=not sys.stdout.isatty()) as progress:
                async for letter in letters(queue, settings, wanted, progress):
                    found = None
                    batch = letter.batch()
                    if letter.reason == RejectReason.UUID_REUSED and isinstance(
                        batch, AttemptBatch
                    ):
                        async with transaction(engine) as connection:
                            found = await differences(connection, batch)
                    if as_json:
                        typer.echo(json.dumps(_whole(letter, found), default=str))
                    else:
                        _print_whole(letter, found)
                    count += 1
        return count

    if not run(work()) and not as_json:
        typer.echo("No dead letters.")


def replay(
    reason: _Reasons = None,
    viewer: _Viewers = None,
    uuid: _Uuids = None,
    older_than: _Older = None,
    newer_than: _Newer = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many, oldest first.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what each would write; change nothing.")
    ] = False,
    as_json: JsonLines = False,
) -> None:
    """Puts dead letters back into the workers' queue, as they once came: all of them by default.

    Each is in the queue before it leaves the dead letters, so nothing is lost when this is
    killed; what is then there twice is a duplicate. What still can't be ingested is parked again.

    Example: study-ingest dead replay --dry-run && study-ingest dead replay
    """
    from worker.operate.dead import replay as replaying

    settings = load_settings()
    wanted = _wanted(reason, viewer, uuid, older_than, newer_than)
    if dry_run:
        run(_rehearse(settings, wanted, limit, as_json))
        return

    async def work() -> int:
        with bar("Replaying") as progress:
            return await replaying.replay(settings, wanted, progress, limit)

    count = run(work())
    typer.echo(json.dumps({"replayed": count}) if as_json else f"Replayed {count} dead letters.")


def discard(
    reason: _Reasons = None,
    viewer: _Viewers = None,
    uuid: _Uuids = None,
    older_than: _Older = None,
    newer_than: _Newer = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Instead of a filter: every dead letter.")
    ] = False,
    because: Annotated[str, typer.Option("--because", help="Why; kept in the audit.")] = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Throws dead letters away for good, after asking. A letter that comes meanwhile stays.

    Example: study-ingest dead discard --reason malformed --older-than 30d
    """
    from worker.broker.dead_queue import open_dead_queue
    from worker.operate.dead import discard as discarding
    from worker.operate.dead.letters import letters
    from worker.store import audit, schema
    from worker.store.engine import transaction

    settings = load_settings()
    wanted = _wanted(reason, viewer, uuid, older_than, newer_than)
    if wanted.is_everything and not everything:
        raise SettingsError("Which dead letters? Give a filter, or --all.")

    async def work() -> int:
        keys: set[bytes] = set()
        reasons: Counter[str] = Counter()
        with bar("Reading") as progress:
            async with open_dead_queue(settings) as queue:
                async for letter in letters(queue, settings, wanted, progress):
                    keys.add(letter.key)
                    reasons[letter.reason] += 1
        if not keys:
            return 0
        confirm(f"Throw {reasons.total()} dead letters away, for good?", yes)
        async with engine_of(settings, connections=1, name="study-ingest discard") as engine:
            await schema.check(engine)
            async with transaction(engine) as connection:
                await audit.record(connection, by(because), "discard", "dead letters", reasons)
        with bar("Discarding") as progress:
            return await discarding.discard(settings, keys, progress)

    count = run(work())
    typer.echo(json.dumps({"discarded": count}) if as_json else f"Discarded {count} dead letters.")


def _wanted(
    reasons: list[RejectReason] | None,
    viewers: list[str] | None,
    uuids: list[UUID] | None,
    older_than: timedelta | None,
    newer_than: timedelta | None,
) -> "Wanted":
    from worker.operate.dead.letters import Wanted

    return Wanted(
        frozenset(map(str, reasons or ())),
        frozenset(viewers or ()),
        frozenset(uuids or ()),
        older_than,
        newer_than,
    )


async def _look(settings: "Settings", wanted: "Wanted") -> list[dict[str, Any]]:
    from worker.broker.dead_queue import open_dead_queue
    from worker.operate.dead.letters import letters

    with bar("Reading") as progress:
        async with open_dead_queue(settings) as queue:
            return [_brief(each) async for each in letters(queue, settings, wanted, progress)]


async def _rehearse(
    settings: "Settings", wanted: "Wanted", limit: int | None, as_json: bool
) -> None:
    from worker.broker.dead_queue import open_dead_queue
    from worker.cli import rehearsed
    from worker.operate.dead.letters import letters
    from worker.operate.dead.rehearse import rehearse
    from worker.store import schema

    counts: Counter[str] = Counter()
    policy = settings.policy()
    async with engine_of(settings, connections=1, name="study-ingest dry run") as engine:
        await schema.check(engine)
        async with open_dead_queue(settings) as queue:
            with bar("Rehearsing", shown=not sys.stdout.isatty()) as progress:
                async for letter in letters(queue, settings, wanted, progress):
                    seen = await rehearse(
                        engine,
                        letter.replayed(settings),
                        policy,
                    )
                    counts[seen.disposition] += 1
                    if as_json:
                        typer.echo(json.dumps(_brief(letter) | rehearsed.as_json(seen)))
                    else:
                        typer.echo(printable(rehearsed.as_text(letter, seen)))
                    if counts.total() == limit:
                        break
    if not as_json:
        what = ", ".join(f"{n} {word}" for word, n in counts.most_common()) or "no dead letters"
        typer.echo(f"Nothing was changed. A replay would give: {what}.")


def _brief(letter: "Letter") -> dict[str, Any]:
    uuid = letter.client_session_uuid
    return {
        "died_at": letter.died_at.isoformat() if letter.died_at else None,
        "reason": letter.reason,
        "detail": letter.detail,
        "viewer": letter.envelope.viewer,
        "routing_key": letter.envelope.routing_key,
        "client_session_uuid": str(uuid) if uuid else None,
        "bytes": len(letter.delivery.body),
    }


def _whole(letter: "Letter", found: "list[Difference] | None") -> dict[str, Any]:
    properties = letter.delivery.properties
    return _brief(letter) | {
        "type": properties.message_type,
        "message_id": properties.message_id,
        "timestamp": properties.timestamp,
        "headers": letter.delivery.headers,
        "body": letter.delivery.body.decode("utf-8", "backslashreplace"),
        "differences": None if found is None else [each._asdict() for each in found],
    }


def _print_whole(letter: "Letter", found: "list[Difference] | None") -> None:
    whole = _whole(letter, found)
    body, _ = whole.pop("body"), whole.pop("differences")
    headers = whole.pop("headers")
    for name, value in whole.items():
        typer.echo(printable(f"{name}: {value}"))
    for name, value in headers.items():
        typer.echo(printable(f"header {name}: {value}"))
    with suppress(ValueError, RecursionError):
        body = json.dumps(json.loads(body), indent=2)
    typer.echo(printable(body))
    if found is not None:
        typer.echo(f"{len(found)} differences from the batch that was ingested under this uuid")
        for position, field, was, now in found:
            typer.echo(printable(f"  attempt {position}, {field}: ingested {was}, here {now}"))
    typer.echo("")
