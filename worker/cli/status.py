"""The commands `status`, which shows the state once, and `top`, which refreshes it."""

import asyncio
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker.cli.answers import answer
from worker.cli.asking import Json, printable
from worker.cli.shared import engine_of, load_settings, run
from worker.cli.tables import fitting
from worker.errors import BrokerAway, DatabaseAway

if TYPE_CHECKING:
    from worker.operate.status import Attention, DatabaseStatus, Status
    from worker.settings import Settings

_STYLES: Final = {"danger": "bold red", "warning": "yellow", "note": "cyan"}


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(status)
    app.command()(top)


def status(as_json: Json = False) -> None:
    """Shows queues, workers, rates, dead letters, outbox, pause and schema.

    It changes nothing. What needs attention comes first, the worst at the top. It exits with 1 if
    there is a warning or a danger, with 5 if the database is unreachable, and with 6 if the broker
    is. The broker's counts lag by up to 5 seconds.

    Example: study-ingest status --json
    """
    from worker.broker.management import Management
    from worker.operate.status import Status, look

    settings = load_settings()

    async def work() -> Status:
        async with (
            engine_of(settings, connections=1, name="study-ingest status") as engine,
            Management(settings) as management,
        ):
            return await look(settings, engine, management)

    seen = run(work())
    if as_json:
        answer(_fields(seen))
    else:
        console = _console()
        console.print(_shown(seen, console))
    raise typer.Exit(_exit_code(seen))


def top(
    interval: Annotated[
        float, typer.Option("--interval", min=0.5, help="Seconds between refreshes.")
    ] = 2.0,
) -> None:
    """Shows the same as `status`, and refreshes it until q or Ctrl-C. In a pipe it prints once.

    Example: study-ingest top
    """
    console = _console()
    if not console.is_terminal:
        status()
    run(_live(load_settings(), console, interval))


async def _live(settings: "Settings", console: Console, interval: float) -> None:
    from worker.broker.management import Management
    from worker.operate.status import Status, look

    over = asyncio.Event()
    seen: Status | None = None
    async with (
        engine_of(settings, connections=1, name="study-ingest top") as engine,
        Management(settings) as management,
    ):
        with _ended_by_q(over), Live(console=console, screen=True, auto_refresh=False) as live:
            while not over.is_set():
                seen = await look(settings, engine, management)
                shown = Group(_shown(seen, console), Text("\nq ends", style="dim"))
                live.update(shown, refresh=True)
                with suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), interval)


@contextmanager
def _ended_by_q(over: asyncio.Event) -> Iterator[None]:
    """Sets the event when q is typed, and leaves the terminal as it was."""
    if not sys.stdin.isatty():
        yield
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    loop = asyncio.get_running_loop()

    def typed() -> None:
        if sys.stdin.read(1) in ("q", "Q", ""):
            over.set()

    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, typed)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _console() -> Console:
    """Uses colors only on a terminal, and never wraps piped lines."""
    console = Console()
    return console if console.is_terminal else Console(width=160, no_color=True)


def _fields(seen: "Status") -> dict[str, Any]:
    fields = asdict(seen)
    if seen.broker is not None:
        fields["broker"]["listening"] = len(seen.broker.listening)
        del fields["broker"]["older"]  # named by what needs attention
    fields["workers"] = [asdict(each) for each in seen.workers]
    fields["other_workers"] = seen.others
    fields["partitions"] = [asdict(each) for each in seen.partitions]
    if seen.database is not None:
        pause, outbox = seen.database.pause, seen.database.outbox
        dead = seen.database.dead
        for name in ("leases", "workers", "silent"):  # named elsewhere
            del fields["database"][name]
        fields["database"]["granted"] = len(seen.database.granted)
        fields["database"]["dead"] = None if dead is None else dead._asdict()
        fields["database"]["pause"] = None if pause is None else pause._asdict()
        fields["database"]["outbox"] = None if outbox is None else outbox._asdict()
        fields["database"]["jobs"] = [each._asdict() for each in seen.database.jobs]
        fields["database"]["sizes"] = [each._asdict() for each in seen.database.sizes]
        growth, pruning = seen.database.growth, seen.database.pruning
        fields["database"]["growth"] = growth and {
            **growth._asdict(),
            "bytes_per_day": growth.bytes_per_day,
        }
        fields["database"]["pruning"] = pruning and pruning._asdict()
    fields["attention"] = [each._asdict() for each in seen.attention]
    return {"healthy": seen.is_healthy, **_plain(fields)}


def _exit_code(seen: "Status") -> int:
    codes = {each.code for each in seen.attention}
    if "database_away" in codes:
        return DatabaseAway.exit_code
    if "broker_away" in codes:
        return BrokerAway.exit_code
    return 0 if seen.is_healthy else 1


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.isoformat() if isinstance(value, datetime) else value


def _shown(seen: "Status", console: Console) -> Group:
    # What needs attention comes first: a short terminal cuts off the end.
    parts: list[Any] = [Text("All is well.", style="green")] if seen.is_healthy else []
    parts += [*map(_line, seen.attention), Text()]
    if seen.broker is not None:
        parts += [fitting(console, _queues(seen)), Text()]
    if seen.workers:
        parts += [fitting(console, _workers(seen)), Text()]
    if seen.others:
        are = "worker is" if seen.others == 1 else "workers are"
        parts += [Text(f"{seen.others} more {are} of a version that is not listed."), Text()]
    if seen.database is not None:
        parts += _database(seen.database)
        if seen.database.sizes:
            parts += [Text(), fitting(console, _kept(seen.database)), *_grows(seen.database)]
    return Group(*parts)


def _line(each: "Attention") -> Text:
    line = Text(f"{each.severity}: ", style=_STYLES[each.severity])
    line.append(printable(each.found), style="default")
    line.append(f" {printable(each.remedy)}" if each.remedy else "", style="bold")
    return line


def _queues(seen: "Status") -> Table:
    broker = seen.broker
    assert broker is not None
    workers = {each.name: ", ".join(each.workers) for each in seen.partitions}
    table = Table(
        box=None, pad_edge=False, title=f"RabbitMQ {broker.version}", title_justify="left"
    )
    table.add_column("queue", overflow="fold")
    for name in ("ready", "in hand", "consumers", "in/s", "done/s"):
        table.add_column(name, justify="right")
    if workers:
        table.add_column("worker", overflow="fold")
    for queue in broker.queues:
        rates = (queue.published_per_second, queue.acknowledged_per_second)
        table.add_row(
            queue.name,
            str(queue.ready),
            str(queue.unacknowledged),
            str(queue.consumers),
            *("-" if rate is None else f"{rate:.1f}" for rate in rates),
            *([printable(workers.get(queue.name, ""))] if workers else ()),
        )
    return table


def _workers(seen: "Status") -> Table:
    partitioned = any(each.partitions for each in seen.workers)
    table = Table(box=None, pad_edge=False)
    for name in ("worker", "version", "since"):
        table.add_column(name, overflow="fold")
    table.add_column("in hand", justify="right")
    if partitioned:
        table.add_column("partitions", justify="right")
    table.add_column("state", overflow="fold")
    for each in seen.workers:
        state = each.state if each.paused_for is None else f"{each.state}: {each.paused_for}"
        table.add_row(
            printable(each.name),
            printable(each.version),
            f"{_ago(each.since)} ago",
            str(each.in_hand),
            *([str(len(each.partitions))] if partitioned else ()),
            printable(f"silent for {_ago(each.seen_at)}" if each.is_silent else state),
        )
    return table


def _database(database: "DatabaseStatus") -> Iterator[Text]:
    if (dead := database.dead) is not None and dead.letters:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dead.by_reason.items())
        oldest = "" if dead.oldest is None else f"; the oldest died {_ago(dead.oldest)} ago"
        leaving = f"; {dead.leaving} are being replayed" if dead.leaving else ""
        yield Text(f"dead letters  {printable(reasons)}{oldest}{leaving}")
    if (waiting := database.outbox) is not None:
        oldest = f", the oldest for {waiting.oldest_age:.0f} s" if waiting.messages else ""
        yield Text(f"outbox        {waiting.messages} wait{oldest}")
    yield Text(f"ingest        {'paused' if database.pause else 'open'}")
    yield Text(f"schema        {database.schema or 'none'}")


def _kept(database: "DatabaseStatus") -> Table:
    from worker.operate.status.facts import sized

    table = Table(box=None, pad_edge=False)
    table.add_column("kept")
    for name in ("size", "rows, about"):
        table.add_column(name, justify="right")
    table.add_column("since")
    for each in database.sizes:
        table.add_row(
            each.what,
            sized(each.bytes),
            "-" if each.rows is None else f"{each.rows:,}",
            "-" if each.oldest is None else f"{each.oldest:%Y-%m-%d}",
        )
    return table


def _grows(database: "DatabaseStatus") -> Iterator[Text]:
    from worker.operate.status.facts import sized

    if (growth := database.growth) is not None:
        yield Text(
            f"growth        {sized(growth.bytes_per_day)} a day:"
            f" {growth.batches_per_day:,.0f} batches of {growth.bytes_per_batch:,.0f} bytes"
        )
    if (pruning := database.pruning) is not None:
        last = "never" if pruning.finished_at is None else f"{_ago(pruning.finished_at)} ago"
        at_work = "" if pruning.worker is None else f"; {printable(pruning.worker)} is at work"
        yield Text(
            f"pruned        {pruning.results:,} results and {pruning.audit:,} entries of the audit;"
            f" a worker last finished {last}{at_work}"
        )


def _ago(then: datetime) -> str:
    seconds = int((datetime.now(UTC) - then).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
