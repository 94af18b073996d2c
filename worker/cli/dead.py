"""The commands for dead letters: `dead list | show | replay | discard | export`."""

import base64
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from functools import wraps
from inspect import Signature, signature
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.table import Table

from schemas.words import RejectReason
from worker.cli.answers import answer
from worker.cli.asking import Json, JsonLines, Yes, bar, by, confirm, duration, printable
from worker.cli.export import record_export
from worker.cli.shared import engine_of, load_settings, run
from worker.cli.tables import fitting
from worker.errors import SettingsError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.operate.dead.compare import Discrepancy
    from worker.settings import Settings
    from worker.store.operate.dead import Brief, Group, Letter, Wanted

_PIPED_WIDTH = 1_000
_SHOWN = 50
_ASKED_ABOVE = 100
"""Letters that are replayed without asking."""
_PATIENCE = 60.0
"""Seconds without any change after which `replay --wait` ends."""

_Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="At most this many, the oldest first.")
]

_Because = Annotated[str, typer.Option("--because", help="The reason, which is kept in the audit.")]
_Age = Annotated[
    timedelta | None, typer.Option(parser=duration, metavar="AGE", help="As 90s, 15m, 2h, 7d, 1w.")
]


def _wanted(
    id: Annotated[list[int] | None, typer.Option(metavar="ID", help="Only this letter.")] = None,
    reason: Annotated[
        list[RejectReason] | None,
        typer.Option(metavar="REASON", help="Only letters with this reason."),
    ] = None,
    viewer: Annotated[
        list[str] | None, typer.Option(metavar="VIEWER", help="Only letters from this viewer.")
    ] = None,
    uuid: Annotated[
        list[UUID] | None,
        typer.Option(metavar="UUID", help="Only letters with this client_session_uuid."),
    ] = None,
    older_than: _Age = None,
    newer_than: _Age = None,
) -> "Wanted":
    from worker.store.operate.dead import Wanted

    return Wanted(
        frozenset(id or ()),
        frozenset(map(str, reason or ())),
        frozenset(viewer or ()),
        frozenset(uuid or ()),
        older_than,
        newer_than,
    )


def _filtered(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each filter instead of its parameter `wanted`."""
    filters = signature(_wanted).parameters
    _, *others = signature(command).parameters.values()

    @wraps(command)
    def with_options(**options: Any) -> None:
        wanted = _wanted(**{name: options.pop(name) for name in filters})
        command(wanted, **options)

    parameters = [*filters.values(), *others]
    with_options.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_options


_commands = typer.Typer(
    name="dead",
    help="Dead letters: list them, show them, replay them after a fix, or discard them.",
    no_args_is_help=True,
)


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    _commands.command("list")(list_letters)
    for command in (show, replay, discard, export):
        _commands.command()(command)
    app.add_typer(_commands)


@_filtered
def list_letters(
    wanted: "Wanted",
    single: Annotated[
        bool, typer.Option("--letters", help="List single letters, oldest first, not groups.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="At most this many groups or letters.")
    ] = _SHOWN,
    as_json: Json = False,
) -> None:
    """Lists dead letters in groups by reason, detail and viewer, the largest group first.

    Example: study-ingest dead list --reason nothing_resolved --newer-than 2h
    """
    from worker.store.engine import transaction
    from worker.store.operate import dead as stored

    settings = load_settings()

    async def work() -> "tuple[int, list[Group], list[Brief]]":
        async with _database(settings, "list") as engine, transaction(engine) as connection:
            if single:
                briefs = await stored.briefs(connection, wanted, limit)
                return await stored.count(connection, wanted), [], briefs
            groups = await stored.groups(connection, wanted, limit)
            return await stored.count(connection, wanted), groups, []

    count, groups, briefs = run(work())
    if as_json:
        found = (
            {"letters": [*map(_brief, briefs)]} if single else {"groups": [*map(_group, groups)]}
        )
        answer({"count": count} | found)
    elif not count:
        typer.echo("There are no dead letters." if wanted.is_everything else "No dead letter fits.")
    elif single:
        _print_briefs(briefs)
        if count > len(briefs):
            typer.echo(f"{count - len(briefs)} more letters: raise --limit.")
    else:
        _print_groups(groups)
        shown = sum(group.letters for group in groups)
        more = (
            f", {count - shown} of them in smaller groups: raise --limit" if shown < count else ""
        )
        typer.echo(f"{count} dead letters{more}.")


@_filtered
def show(
    wanted: "Wanted",
    limit: _Limit = None,
    as_json: JsonLines = False,
) -> None:
    """Shows dead letters with their properties, headers and body, oldest first.

    For a reused uuid it also shows each difference from the batch that was ingested.

    Example: study-ingest dead show --uuid 0b9c6a52-4c1e-4a9b-9c43-6d3b1f0a7a11
    """
    from schemas.attempt_batch import AttemptBatch
    from worker.operate.dead.compare import differences
    from worker.operate.dead.letters import batch_in, letters
    from worker.store.engine import transaction

    settings = load_settings()

    async def work() -> int:
        count = 0
        async with _database(settings, "show") as engine:
            async for letter in letters(engine, wanted, limit):
                found = None
                batch = batch_in(letter)
                if letter.brief.reason == RejectReason.UUID_REUSED and isinstance(
                    batch, AttemptBatch
                ):
                    async with transaction(engine) as connection:
                        found = await differences(connection, batch)
                if as_json:
                    answer(_whole(letter, found))
                else:
                    _print_whole(letter, found)
                count += 1
        return count

    if not run(work()) and not as_json:
        typer.echo("No dead letter fits.")


@_filtered
def replay(
    wanted: "Wanted",
    limit: _Limit = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.1, help="At most this many letters a second.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the workers, and report the outcomes.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what each letter would write; change nothing.")
    ] = False,
    because: _Because = "",
    yes: Yes = False,
    as_json: JsonLines = False,
) -> None:
    """Sends dead letters back to the workers, oldest first. Without a filter, it sends all of them.

    A running worker (or relay) publishes each letter, and deletes it once the broker has confirmed
    it, so nothing is lost if either of them is killed. A letter that still cannot be ingested
    becomes a dead letter again. Asks for confirmation above 100 letters.

    Example: study-ingest dead replay --dry-run && study-ingest dead replay --wait
    """
    from worker.operate.dead import replay as operation
    from worker.store.engine import transaction
    from worker.store.operate import dead as stored

    settings = load_settings()
    if dry_run:
        run(_rehearse(settings, wanted, limit, as_json))
        return

    async def work() -> tuple[int, int, dict[str, int]]:
        async with _database(settings, "replay") as engine:
            async with transaction(engine) as connection:
                meant = await stored.count(connection, wanted)
                chosen = await stored.ids(connection, wanted, replayable=True, limit=limit)
            if len(chosen) > _ASKED_ABOVE:
                confirm(f"Replay {len(chosen)} dead letters?", yes)
            with bar("Replaying") as progress:
                asked = await operation.replay(engine, chosen, by(because), progress, rate)
            left_out = meant - len(chosen) if limit is None else 0
            if not wait or not asked:
                return len(asked), left_out, {}
            with bar("Waiting") as progress:
                ends = await operation.outcomes(engine, asked, progress, _PATIENCE)
            return len(asked), left_out, ends

    count, left_out, outcomes = run(work())
    if as_json:
        told = {"replayed": count, "left_out": left_out}
        answer(told | ({"outcomes": outcomes} if wait else {}))
        return
    typer.echo(f"Replayed {count} dead letters." if wait else f"{count} dead letters are replayed.")
    if left_out:
        typer.echo(
            f"{left_out} were left out, because they are being replayed already or only the"
            " beginning of their body is kept."
        )
    for outcome, number in outcomes.items():
        typer.echo(f"  {number} {outcome}")


@_filtered
def discard(
    wanted: "Wanted",
    limit: _Limit = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All dead letters, instead of a filter.")
    ] = False,
    because: _Because = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Deletes dead letters for good, after confirmation. A letter that arrives meanwhile stays.

    Example: study-ingest dead discard --reason malformed --older-than 30d
    """
    from worker.operate.dead import discard as operation
    from worker.store.engine import transaction
    from worker.store.operate import dead as stored

    settings = load_settings()
    if wanted.is_everything and not everything:
        raise SettingsError(
            "No filter is given",
            "add one, or --all for every dead letter.",
        )

    async def work() -> int:
        async with _database(settings, "discard") as engine:
            async with transaction(engine) as connection:
                chosen = await stored.ids(connection, wanted, limit=limit)
            if not chosen:
                return 0
            confirm(f"Delete {len(chosen)} dead letters for good?", yes)
            with bar("Discarding") as progress:
                return await operation.discard(engine, chosen, by(because), progress)

    count = run(work())
    if as_json:
        answer({"discarded": count})
    else:
        typer.echo(f"Discarded {count} dead letters.")


@_filtered
def export(
    wanted: "Wanted",
    limit: _Limit = None,
    because: _Because = "",
) -> None:
    """Writes dead letters to standard output, one JSON object on each line, bodies in base64.

    Example: study-ingest dead export --viewer phone > letters.jsonl
    """
    from worker.operate.dead.letters import letters

    settings = load_settings()

    async def work() -> None:
        async with _database(settings, "export") as engine:
            await record_export(engine, "dead export", "dead letters", {}, by(because))
            async for letter in letters(engine, wanted, limit):
                whole = _whole(letter, None)
                del whole["body"], whole["differences"]
                whole["properties_base64"] = base64.b64encode(letter.properties).decode()
                whole["body_base64"] = base64.b64encode(letter.body).decode()
                answer(whole)

    run(work())


@asynccontextmanager
async def _database(settings: "Settings", command: str) -> "AsyncIterator[AsyncEngine]":
    from worker.store import schema

    async with engine_of(settings, connections=1, name=f"study-ingest dead {command}") as engine:
        await schema.check(engine)
        yield engine


async def _rehearse(
    settings: "Settings", wanted: "Wanted", limit: int | None, as_json: bool
) -> None:
    from worker.cli import rehearsed
    from worker.operate.dead.letters import letters
    from worker.operate.dead.rehearse import rehearse, replayed

    counts: Counter[str] = Counter()
    policy = settings.policy()
    async with _database(settings, "replay --dry-run") as engine:
        async for letter in letters(engine, wanted, limit):
            if not letter.brief.is_whole:
                counts["left out (only the beginning of the body is kept)"] += 1
                continue
            seen = await rehearse(engine, replayed(letter, settings), policy)
            counts[seen.disposition] += 1
            if as_json:
                answer(_brief(letter.brief) | rehearsed.as_json(seen))
            else:
                for line in rehearsed.as_lines(letter.brief, seen):
                    typer.echo(printable(line))
    if not as_json:
        what = ", ".join(f"{n} {word}" for word, n in counts.most_common()) or "no dead letters"
        typer.echo(f"Nothing was changed. A replay would give: {what}.")


def _brief(brief: "Brief") -> dict[str, Any]:
    uuid = brief.client_session_uuid
    return {
        "id": brief.id,
        "died_at": brief.died_at.isoformat(),
        "reason": brief.reason,
        "detail": brief.detail,
        "viewer": brief.viewer,
        "routing_key": brief.routing_key.decode(errors="backslashreplace"),
        "client_session_uuid": str(uuid) if uuid else None,
        "bytes": brief.body_bytes,
        "whole": brief.is_whole,
        "replaying": brief.is_leaving,
    }


def _group(group: "Group") -> dict[str, Any]:
    times = {"first": group.first.isoformat(), "last": group.last.isoformat()}
    return group._asdict() | times


def _whole(letter: "Letter", found: "list[Discrepancy] | None") -> dict[str, Any]:
    from worker.operate.dead.letters import properties_of

    digest = letter.body_sha256
    return _brief(letter.brief) | {
        "body_sha256": None if digest is None else digest.hex(),
        "properties": _plain(properties_of(letter)),
        "body": letter.body.decode("utf-8", "backslashreplace"),
        "differences": None if found is None else [each._asdict() for each in found],
    }


def _plain(value: Any) -> Any:
    """As JSON has it: bytes as text with escapes, times by ISO 8601."""
    match value:
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case list():
            return [_plain(each) for each in value]
        case bytes() | bytearray():
            return value.decode("utf-8", "backslashreplace")
        case datetime():
            return value.isoformat()
        case str() | bool() | int() | None:
            return value
        case _:  # a decimal, or a number that JSON does not have
            return str(value)


def _print_groups(groups: "list[Group]") -> None:
    table = _table("letters", "reason", "viewer", "first", "last", "example", "detail")
    for group in groups:
        table.add_row(
            str(group.letters),
            printable(group.reason),
            _or_unknown(group.viewer),
            _minute(group.first),
            _minute(group.last),
            str(group.example),
            printable(group.detail),
        )
    _print(table)


def _print_briefs(briefs: "list[Brief]") -> None:
    table = _table("id", "died at", "reason", "viewer", "session", "bytes", "detail")
    for brief in briefs:
        state = "" if brief.is_whole else " (only its beginning is kept)"
        state += " (is being replayed)" if brief.is_leaving else ""
        table.add_row(
            str(brief.id),
            _minute(brief.died_at),
            printable(brief.reason),
            _or_unknown(brief.viewer),
            _or_unknown(brief.client_session_uuid),
            str(brief.body_bytes),
            printable(brief.detail + state),
        )
    _print(table)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings[:-1]:
        right = heading in ("letters", "example", "id", "bytes")
        table.add_column(heading, no_wrap=True, justify="right" if right else "left")
    table.add_column(headings[-1], overflow="fold")
    return table


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    console.print(fitting(console, table), markup=False, highlight=False)


def _print_whole(letter: "Letter", found: "list[Discrepancy] | None") -> None:
    whole = _whole(letter, found)
    body, properties = whole.pop("body"), whole.pop("properties")
    del whole["differences"]
    for name, value in whole.items():
        typer.echo(printable(f"{name}: {value}"))
    for name, value in properties.pop("headers", {}).items():
        typer.echo(printable(f"header {name}: {value}"))
    for name, value in properties.items():
        typer.echo(printable(f"property {name}: {value}"))
    if not letter.brief.is_whole:
        typer.echo(f"The first {len(letter.body)} bytes of the body, which is all that is kept:")
    with suppress(ValueError, RecursionError):
        body = json.dumps(json.loads(body), indent=2)
    for line in body.split("\n"):
        # Set off, so that no body can look like the lines above.
        typer.echo(f"  {printable(line)}")
    if found is not None:
        typer.echo(f"{len(found)} differences from the batch that was ingested under this uuid")
        for position, field, was, now in found:
            typer.echo(printable(f"  attempt {position}, {field}: ingested {was}, here {now}"))
    typer.echo("")


def _or_unknown(value: object) -> str:
    return "?" if value is None else printable(str(value))


def _minute(at: datetime) -> str:
    return at.isoformat(sep=" ", timespec="minutes")[:16]
