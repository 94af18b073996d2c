"""Logs: one line for each change of state, not one for each try."""

import asyncio
import logging
from collections.abc import Iterator

import pytest

from devtools.state import free_ports
from worker.broker.connection import connect
from worker.errors import BrokerAway
from worker.settings import Settings
from worker.telemetry import logs


@pytest.fixture
def settings() -> Iterator[Settings]:
    """Of a broker that nobody started; logging is put back as it was."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield Settings(
        database_url="postgresql://unused",  # type: ignore[arg-type]
        amqp_url=f"amqp://127.0.0.1:{free_ports(1)[0]}",  # type: ignore[arg-type]
        log_format="json",
    )
    root.handlers[:], level = before
    root.setLevel(level)


async def test_tries_to_reach_a_broker_that_is_away_are_not_logged_by_the_client(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(settings)
    for _ in range(3):
        with pytest.raises(BrokerAway):
            await connect(settings, "tests")
    assert capsys.readouterr().err == ""


async def test_writes_to_a_socket_that_is_gone_are_not_logged_one_by_one(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(settings)
    gone = asyncio.Event()

    async def leave(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        gone.set()

    server = await asyncio.start_server(leave, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await gone.wait()
    for _ in range(20):
        writer.write(b"publish")
        await asyncio.sleep(0.001)
    writer.transport.abort()
    server.close()
    assert capsys.readouterr().err == ""
