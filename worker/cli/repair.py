"""Commands that compute progress again from the attempts: `verify` and `rebuild`."""

import re
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from worker.cli.answers import answer
from worker.cli.asking import Json, Reason, User, bar, by, moment
from worker.cli.shared import engine_of, load_settings, run
from worker.errors import IngestError
from worker.progress.nudging import nudging

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.domain.records import OnChange
    from worker.store.audit import By
    from worker.store.operate.repair import Part


def _one_of(text: str) -> tuple[int, int]:
    """Reads `3/16`."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise typer.BadParameter("write it as 3/16, for the third of sixteen parts")
    return int(match[1]), int(match[2])


_SINCE = Annotated[
    datetime | None,
    typer.Option(
        "--since",
        parser=moment,
        metavar="TIME",
        help="Only users with sessions ingested or corrected since this age (2d) or time.",
    ),
]
_SHARD = Annotated[
    Any,
    typer.Option(
        "--shard",
        parser=_one_of,
        metavar="N/OF",
        help="Only this part of the users, such as 3/16, to run several parts at the same time.",
    ),
]
_AFTER = Annotated[
    int | None,
    typer.Option(
        "--after", metavar="USER", help="Start after this user, to continue an interrupted run."
    ),
]
_TELL_EVERY: Final = 10.0
"""Seconds between two progress lines if there is no terminal."""
One = Callable[["AsyncEngine", int, "OnChange"], Awaitable[None]]


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(verify)
    app.command()(rebuild)


def verify(
    user: User = None,
    since: _SINCE = None,
    shard: _SHARD = None,
    after: _AFTER = None,
    as_json: Json = False,
) -> None:
    """Computes all progress again from the attempts, and lists each difference.

    It changes nothing, and may run while workers ingest. It exits with 1 if anything differs.

    Example: study-ingest verify --user 42
    """
    from worker.operate import repair

    settings = load_settings()
    policy = settings.policy()
    found: list[str] = []

    async def one(engine: "AsyncEngine", user_id: int, _: "OnChange") -> None:
        for difference in await repair.verify(engine, user_id, policy):
            found.append(difference.describe())
            if not as_json:
                typer.echo(found[-1])

    walk = _Walk("Verifying", after)
    walk.run(user, _part(since, shard), one)
    users = walk.done
    if as_json:
        answer({"users": users, "differences": found})
    elif not found:
        typer.echo(f"The progress of {users} users agrees with their attempts.")
    else:
        typer.echo(f"{len(found)} differences. `study-ingest rebuild` corrects them.", err=True)
    if found:
        raise typer.Exit(1)


def rebuild(
    user: User = None,
    since: _SINCE = None,
    shard: _SHARD = None,
    after: _AFTER = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Corrects progress that differs from what the attempts give.

    Attempts that version 0.1.0 stored with a time that can't be true get a better one first.
    It runs one transaction for each user, and may run while workers ingest. If it is interrupted,
    it says how to continue.

    Example: study-ingest rebuild
    """
    from worker.operate import repair

    settings = load_settings()
    policy = settings.policy()
    changed = times = 0

    async def one(engine: "AsyncEngine", user_id: int, on_change: "OnChange") -> None:
        nonlocal changed, times
        rebuilt = await repair.rebuild(engine, user_id, policy, on_change)
        changed += rebuilt.progress
        times += rebuilt.times

    walk = _Walk("Rebuilding", after)
    try:
        walk.run(user, _part(since, shard), one)
    finally:
        if changed:
            subject = "all users" if user is None else f"user {user}"
            run(_record(subject, {"users": walk.done, "progress": changed}, by(reason)))
    users = walk.done
    if as_json:
        answer({"users": users, "changed": changed, "times": times})
    else:
        typer.echo(
            f"Checked {users} users and corrected {changed} progress rows. {times} attempts got"
            " another time, because theirs can't be true."
        )


async def _record(subject: str, effect: dict[str, int], who: "By") -> None:
    from worker.store import audit
    from worker.store.engine import transaction

    async with (
        engine_of(load_settings(), connections=1, name="study-ingest rebuild") as engine,
        transaction(engine) as connection,
    ):
        await audit.record(connection, who, "rebuild", subject, effect)


class _Walk:
    """The progress of a command."""

    def __init__(self, doing: str, after: int | None) -> None:
        self.doing = doing
        self.done = 0
        self.last = after
        self._told = time.monotonic()

    def run(self, user: int | None, part: "Part", one: "One") -> None:
        """Calls `one` with each user. If it is interrupted, it says how to continue."""
        try:
            run(self._each(user, part, one))
        except (KeyboardInterrupt, IngestError):
            if user is None and self.last is not None:
                typer.echo(
                    f"Stopped after user {self.last}. To continue, repeat the command with"
                    f" --after {self.last}.",
                    err=True,
                )
            raise

    async def _each(self, user: int | None, part: "Part", one: "One") -> None:
        from worker.operate import repair
        from worker.store.operate.repair import BEFORE_ALL

        settings = load_settings()
        name = f"study-ingest {self.doing.lower()}"
        async with (
            engine_of(settings, connections=1, name=name) as engine,
            nudging(engine, settings) as on_change,
        ):
            if user is not None:
                await repair.check_known(engine, user)
                await one(engine, user, on_change)
                self.done = 1
                return
            after = BEFORE_ALL if self.last is None else self.last
            with bar(self.doing) as progress:
                async for user_id in repair.users(engine, part, after):
                    await one(engine, user_id, on_change)
                    self.done += 1
                    self.last = user_id
                    progress(self.done, 0)
                    self._tell()

    def _tell(self) -> None:
        """Writes a log line from time to time. On a terminal, the bar shows the progress."""
        now = time.monotonic()
        if now - self._told >= _TELL_EVERY and not sys.stderr.isatty():
            self._told = now
            typer.echo(f"{self.doing}: {self.done:,} users, up to user {self.last}.", err=True)


def _part(since: datetime | None, shard: tuple[int, int] | None) -> "Part":
    from worker.store.operate.repair import Part

    return Part(since) if shard is None else Part(since, *shard)
