"""What all pages share: connections, what the servers last said, and who may come in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request

from worker.broker.inspection import Inspection
from worker.console.latest import Latest
from worker.console.who import Entrance
from worker.errors import BrokerAway, TopologyError
from worker.operate.doctor import Finding, examine
from worker.operate.status import BrokerStatus, DatabaseStatus, Status, look
from worker.operate.status.history import History, history
from worker.operate.viewers import Viewer, listed
from worker.settings import Settings
from worker.store.engine import make_engine, transaction
from worker.store.operate import grants
from worker.store.operate.dead import Asked

PATIENCE: Final = 0.1
"""Seconds that a page waits for newer figures before it shows those that are known."""
_FRESH: Final = 4.0
_EXAMINED: Final = 60.0
_VIEWERS_FRESH: Final = 10.0
"""Seconds for the list of viewers, which costs a broker with thousands of them seconds."""
_CONNECTIONS_TO_LOOK: Final = 3
_CONNECTIONS_TO_ACT: Final = 2
_HASTE: Final = {
    "statement_timeout": 2.0,
    "lock_timeout": 1.0,
    "idle_in_transaction_timeout": 5.0,
    "transaction_timeout": 5.0,
}
"""The settings that differ for questions: whoever looks must not slow ingest."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The servers at a glance. One that is away is shown as it was last, at the time given."""

    status: Status
    broker: BrokerStatus | None
    broker_at: datetime
    database: DatabaseStatus | None
    database_at: datetime
    history: History


@dataclass(frozen=True, slots=True)
class Examined:
    """What the doctor found."""

    at: datetime
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class Everybody:
    """All viewers. If the broker is `away`, only those with a grant are known."""

    found: list[Viewer]
    away: str | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """Letters that were replayed together."""

    at: datetime
    actor: str
    letters: list[Asked]


@dataclass(frozen=True, slots=True)
class Console:
    """What the handlers work with. `looking` is for questions and has a short timeout, `acting` is
    for acts.
    """

    settings: Settings
    entrance: Entrance
    looking: AsyncEngine
    acting: AsyncEngine
    broker: Inspection
    seen: Latest[Seen]
    examined: Latest[Examined]
    viewers: Latest[Everybody]
    replays: dict[str, Replayed] = field(default_factory=dict)
    """What was replayed here lately, by a name for its page, the oldest first."""

    def outdate(self) -> None:
        """Has pages show what an act has changed."""
        self.seen.outdate()
        self.viewers.outdate()


def of(request: Request) -> Console:
    """The console that serves the request."""
    console: Console = request.app.state.console
    return console


@asynccontextmanager
async def running(settings: Settings, entrance: Entrance) -> AsyncIterator[Console]:
    """A console with its connections, which are opened when they are needed."""
    name = "study-ingest console"
    looking = make_engine(
        settings.model_copy(update=_HASTE), connections=_CONNECTIONS_TO_LOOK, name=name
    )
    acting = make_engine(settings, connections=_CONNECTIONS_TO_ACT, name=name)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(looking.dispose)
        stack.push_async_callback(acting.dispose)
        broker = await stack.enter_async_context(Inspection(settings))

        async def see(before: Seen | None) -> Seen:
            status, past = await asyncio.gather(
                look(settings, looking, broker), history(looking, broker)
            )
            at = status.at
            now = Seen(status, status.broker, at, status.database, at, past)
            if before is not None and now.broker is None:
                now = replace(now, broker=before.broker, broker_at=before.broker_at)
            if before is not None and now.database is None:
                now = replace(now, database=before.database, database_at=before.database_at)
            return now

        async def examined(_: Examined | None) -> Examined:
            # With the timeouts of workers, about which it has something to say.
            return Examined(datetime.now(UTC), await examine(settings, acting, broker))

        async def everybody(_: Everybody | None) -> Everybody:
            try:
                return Everybody(await listed(broker, looking))
            except (BrokerAway, TopologyError) as error:
                async with transaction(looking) as connection:
                    granted = await grants.all_of(connection)
                found = [Viewer(name, False, tuple(users)) for name, users in granted.items()]
                return Everybody(found, f"{error.found.rstrip('.')}.")

        console = Console(
            settings,
            entrance,
            looking,
            acting,
            broker,
            Latest(see, _FRESH),
            Latest(examined, _EXAMINED),
            Latest(everybody, _VIEWERS_FRESH),
        )
        for latest in (console.seen, console.examined, console.viewers):
            stack.push_async_callback(latest.close)
        console.seen.start()
        yield console
