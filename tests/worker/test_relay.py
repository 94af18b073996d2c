"""The relay in trouble: it tells once, publishes nothing that it can't forget, and is no fool."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from schemas import amqp
from worker.errors import DatabaseAway, Unconfirmed
from worker.relay import Relay
from worker.settings import Settings
from worker.store import outbox
from worker.store.driver import write
from worker.store.engine import transaction
from worker.store.outbox import Message

_SETTINGS = Settings(
    database_url="postgresql://unused",  # type: ignore[arg-type]
    amqp_url="amqp://unused",  # type: ignore[arg-type]
    pause_delay_min=0.01,
    pause_delay_max=0.02,
    relay_poll_interval=0.01,
)


class _Publisher:
    """Counts, and refuses while `away`."""

    def __init__(self) -> None:
        self.away = False
        self.tries = 0
        self.tried = asyncio.Event()

    async def publish(self, *_: Any, **__: Any) -> None:
        self.tries += 1
        self.tried.set()
        if self.away:
            raise Unconfirmed("The broker is away.")


@pytest.fixture
async def waiting(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """A database with one message in its outbox."""
    message = Message(uuid4(), amqp.RESULTS_EXCHANGE, "result.ada", "t", {}, "{}")
    async with transaction(engine) as connection:
        await write(connection, outbox.recording([message]))
    yield engine


def _relay(engine: AsyncEngine, publisher: Any) -> Relay:
    return Relay(engine, publisher, _SETTINGS)


async def test_a_database_that_is_read_only_lets_nothing_leave(waiting: AsyncEngine) -> None:
    # Or every try would publish again what it then can't delete.
    async with waiting.begin() as connection:
        name = await connection.scalar(text("SELECT current_database()"))
        await connection.execute(
            text(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        )
    await waiting.dispose()  # the setting is for new connections
    publisher = _Publisher()
    with pytest.raises(DatabaseAway):
        await _relay(waiting, publisher).relay()
    assert publisher.tries == 0


async def test_nothing_to_relay_does_not_mean_that_the_broker_is_back(
    waiting: AsyncEngine,
) -> None:
    publisher = _Publisher()
    publisher.away = True
    relay = _relay(waiting, publisher)
    with capture_logs() as lines:
        running = asyncio.create_task(relay.run())
        await publisher.tried.wait()
        async with waiting.begin() as connection:
            await connection.execute(text("DELETE FROM outbox"))  # another relay took it
        await asyncio.sleep(0.1)
        assert relay.trouble == "The broker is away."
        relay.stop()
        await running
    assert [line["event"] for line in lines] == ["relay.paused"]
