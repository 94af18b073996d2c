"""A whole worker in the test's own process, and viewers made as an operator makes them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

from tests.broker_fixtures import PATIENCE
from worker.broker.accounts import Accounts
from worker.broker.publisher import Publisher
from worker.consume.collect import Collector
from worker.consume.consumer import Consumer
from worker.consume.gate import Gate
from worker.consume.presence import Presence
from worker.ingest.transaction import Ingest
from worker.ingest.trial import try_writing
from worker.operate import viewers
from worker.operate.viewers import Access
from worker.progress.nudges import Nudges
from worker.progress.requests import Requests
from worker.relay.prune import Pruner
from worker.relay.relay import Relay
from worker.relay.replays import Replays
from worker.settings import Settings
from worker.store.audit import By

WORKER = "a-host:1:abc"
"""The name of the worker."""


@asynccontextmanager
async def working(settings: Settings, engine: AsyncEngine) -> AsyncIterator[Consumer]:
    """Consumes, ingests and relays while the block runs, as `study-ingest worker` does."""
    async with (
        Publisher(settings, "copies") as copies,
        Publisher(settings, "relay") as outgoing,
        Publisher(settings, "replays") as replayed,
        Publisher(settings, "progress") as told,
    ):
        quick = settings.model_copy(update={"relay_poll_interval": 0.05})
        relay = Relay(engine, outgoing, quick)
        replays = Replays(engine, replayed, quick)
        collector = Collector(engine, settings)
        nudges = Nudges(engine, told)
        asked = Requests(engine, told, nudges, settings)

        async def trial() -> None:
            await try_writing(engine)

        consumer = Consumer(
            settings,
            Ingest(
                engine,
                settings.policy(),
                turns=settings.turns(),
                worker=WORKER,
                on_change=nudges.note,
            ),
            copies,
            trial=trial,
            gate_open=Gate(engine),
        )
        presence = Presence(engine, consumer, WORKER)
        pruner = Pruner(engine, settings, WORKER)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(presence.run())
            tasks.create_task(pruner.run())
            tasks.create_task(relay.run())
            tasks.create_task(consumer.run())
            tasks.create_task(replays.run())
            tasks.create_task(collector.run())
            tasks.create_task(asked.run())
            tasks.create_task(nudges.run())
            try:
                assert await consumer.changed.until(lambda: consumer.state == "consuming", PATIENCE)
                yield consumer
            finally:
                await consumer.drain()
                presence.stop()
                pruner.stop()
                relay.stop()
                replays.stop()
                collector.stop()
                asked.stop()
                nudges.stop()


@dataclass(frozen=True)
class Login:
    """A viewer's login."""

    name: str
    password: str
    url: str
    """AMQP, with the login in it."""


class Viewers:
    """Makes viewers whose names are nobody else's, since the broker's users are everybody's."""

    def __init__(self, accounts: Accounts, engine: AsyncEngine, settings: Settings) -> None:
        self.accounts = accounts
        self._engine = engine
        self._settings = settings
        self._made: list[str] = []

    async def add(self, *users: int, access: Access | None = None, name: str = "") -> Login:
        """A new viewer that may write for `users`."""
        if name:
            self._made.append(name)
        name = name or self.name()
        password = await viewers.add(
            self.accounts, self._engine, name, users, access or Access(), By("tests", "")
        )
        return self.login(name, password)

    def name(self) -> str:
        """A name for a viewer that the test makes itself."""
        self._made.append(f"test-{uuid4().hex[:12]}")
        return self._made[-1]

    def login(self, name: str, password: str) -> Login:
        url = urlsplit(self._settings.amqp_url.get_secret_value())
        netloc = f"{name}:{password}@{url.netloc.rpartition('@')[2]}"
        return Login(name, password, url._replace(netloc=netloc).geturl())

    async def remove_all(self) -> None:
        there = await self.accounts.users()
        for name in self._made:
            if name in there:
                await self.accounts.delete_user(name)
