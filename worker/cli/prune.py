"""The command `prune`: what is older than you want to keep it goes."""

import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from worker.cli.answers import answer
from worker.cli.asking import DryRun, Json, Reason, Yes, bar, by, confirm, duration
from worker.cli.shared import engine_of, load_settings, run
from worker.errors import IngestError, UsageError

if TYPE_CHECKING:
    from worker.store.prune import Before, Kind, Step

_TELL_EVERY: Final = 10.0
"""Seconds between two progress lines if there is no terminal."""
_WORDS: Final[dict["Kind", str]] = {
    "results": "results",
    "audit": "entries of the audit",
    "moments": "notes that are kept for 30 days",
}


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(prune)


def prune(
    results: Annotated[
        timedelta | None,
        typer.Option(
            "--results",
            parser=duration,
            metavar="AGE",
            help="Results that are older than this, such as 90d. The default is"
            " INGEST_KEEP_RESULTS.",
        ),
    ] = None,
    audit: Annotated[
        timedelta | None,
        typer.Option(
            "--audit",
            parser=duration,
            metavar="AGE",
            help="Entries of the audit that are older than this. The default is INGEST_KEEP_AUDIT.",
        ),
    ] = None,
    dry_run: DryRun = False,
    reason: Reason = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Deletes results and entries of the audit that are older than you want to keep them.

    A batch whose result is gone is still recognised when it comes again. What tells of an erasure
    stays in the audit. It runs in small steps while workers ingest. If it is interrupted, run it
    again. Without an age and without the settings only what is kept for 30 days anyway goes.

    Example: study-ingest prune --results 90d --dry-run
    """
    from worker.operate import prune as operation
    from worker.store import schema

    who, before = by(reason), _before(results, audit)
    named = " and ".join(
        f"{_WORDS[kind]} before {at.isoformat(sep=' ', timespec='minutes')}"
        for kind, at in before.items()
        if kind != "moments"
    )
    if named and not dry_run:
        confirm(f"Delete all {named} permanently?", yes)
    told = _Told()

    async def work() -> "dict[Kind, int]":
        settings = load_settings()
        async with engine_of(settings, connections=2, name="study-ingest prune") as engine:
            await schema.check(engine)
            if dry_run:
                return await operation.count(engine, before)
            with bar("Pruning") as progress:

                def step(done: "Step") -> None:
                    told.add(done)
                    progress(done.done, done.of)

                return await operation.prune(engine, before, who, step)

    try:
        gone = run(work())
    except (KeyboardInterrupt, IngestError):
        if told.gone:
            typer.echo(f"Stopped after {told.gone:,} rows. Run it again to go on.", err=True)
        raise
    if as_json:
        answer(
            {
                **{str(kind): gone.get(kind, 0) for kind in _WORDS},
                "results_before": _iso(before.get("results")),
                "audit_before": _iso(before.get("audit")),
                "dry_run": dry_run,
            }
        )
        return
    counts = ", ".join(f"{gone[kind]:,} {_WORDS[kind]}" for kind in _WORDS if kind in gone)
    typer.echo(f"Would delete {counts}." if dry_run else f"Deleted {counts}.")


def _before(results: timedelta | None, audit: timedelta | None) -> "Before":
    from worker.relay.prune import before
    from worker.store.prune import AUDIT_KEPT_MIN, RESULTS_KEPT_MIN

    now = datetime.now(UTC)
    found = dict(before(load_settings(), now))
    if results is not None:
        found["results"] = now - _at_least("--results", results, RESULTS_KEPT_MIN)
    if audit is not None:
        found["audit"] = now - _at_least("--audit", audit, AUDIT_KEPT_MIN)
    return found


def _at_least(option: str, age: timedelta, least: timedelta) -> timedelta:
    if age < least:
        raise UsageError(
            f"{option} is less than {least.days} days, which are always kept",
            "give a longer age.",
        )
    return age


class _Told:
    """What has gone so far, written from time to time where no terminal shows it."""

    def __init__(self) -> None:
        self.gone = 0
        self._at = time.monotonic()

    def add(self, step: "Step") -> None:
        """Counts a step."""
        self.gone += step.gone
        now = time.monotonic()
        if now - self._at >= _TELL_EVERY and not sys.stderr.isatty():
            self._at = now
            part = f", {step.done / step.of:.0%} of the inbox" if step.of else ""
            typer.echo(f"Pruning: {self.gone:,} rows{part}.", err=True)


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
