"""The proxy does what it promises to a connection, and heals."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chaos.proxy import Proxy

_SOON = 2.0
_NOTHING_FOR = 0.15


@asynccontextmanager
async def _echo() -> AsyncIterator[int]:
    """A server that sends back what it gets; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class _Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def says(self, word: bytes) -> bytes:
        self.writer.write(word)
        return await asyncio.wait_for(self.reader.readexactly(len(word)), _SOON)

    async def hears_nothing(self) -> bool:
        try:
            await asyncio.wait_for(self.reader.read(1), _NOTHING_FOR)
        except TimeoutError:
            return True
        return False


_clients: list[_Client] = []


async def _connect(link: Proxy) -> _Client:
    client = _Client(*await asyncio.open_connection("127.0.0.1", link.port))
    _clients.append(client)
    return client


@pytest.fixture(autouse=True)
async def _close_clients() -> AsyncIterator[None]:
    yield
    for client in _clients:
        client.writer.transport.abort()
    _clients.clear()
    await asyncio.sleep(0)


@pytest.fixture
async def link() -> AsyncIterator[Proxy]:
    async with _echo() as port, Proxy("127.0.0.1", port) as link:
        yield link


async def test_a_new_proxy_passes_everything(link: Proxy) -> None:
    client = await _connect(link)
    assert await client.says(b"x" * 1_000_000) == b"x" * 1_000_000
    assert link.connections == 1


async def test_when_one_side_closes_the_other_is_closed_too(link: Proxy) -> None:
    client = await _connect(link)
    assert await client.says(b"hello") == b"hello"
    client.writer.close()
    async with asyncio.timeout(_SOON):
        while link.connections:  # noqa: ASYNC110  # it has no event to offer
            await asyncio.sleep(0.01)


async def test_data_held_by_a_black_hole_arrives_after_it_heals(link: Proxy) -> None:
    old = await _connect(link)
    assert await old.says(b"hello") == b"hello"
    link.black_hole()
    old.writer.write(b"lost?")
    new = await _connect(link)
    new.writer.write(b"and I?")
    assert await old.hears_nothing()
    assert await new.hears_nothing()
    link.heal()
    assert await asyncio.wait_for(old.reader.readexactly(5), _SOON) == b"lost?"
    assert await asyncio.wait_for(new.reader.readexactly(6), _SOON) == b"and I?"


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
async def test_a_lost_direction_stays_lost_and_new_connections_pass(
    link: Proxy, direction: str
) -> None:
    old = await _connect(link)
    assert await old.says(b"hello") == b"hello"
    assert link.half_open("to_server" if direction == "to_server" else "to_client") == 1
    link.heal()
    old.writer.write(b"anybody?")
    assert await old.hears_nothing()
    assert await (await _connect(link)).says(b"hello") == b"hello"


async def test_slow_delays_data(link: Proxy) -> None:
    client = await _connect(link)
    link.slow(0.1)
    began = asyncio.get_running_loop().time()
    assert await client.says(b"hello") == b"hello"
    assert asyncio.get_running_loop().time() - began >= 0.2  # there and back


async def test_cut_ends_politely_and_reset_does_not(link: Proxy) -> None:
    client = await _connect(link)
    assert await client.says(b"hello") == b"hello"
    assert link.cut() == 1
    assert await asyncio.wait_for(client.reader.read(), _SOON) == b""

    client = await _connect(link)
    assert await client.says(b"hello") == b"hello"
    assert link.reset() == 1
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(client.reader.read(), _SOON)


async def test_refuse_sends_new_connections_away(link: Proxy) -> None:
    old = await _connect(link)
    assert await old.says(b"hello") == b"hello"
    link.refuse()
    new = await _connect(link)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await new.says(b"hello")
    assert await old.says(b"hello") == b"hello"
    link.heal()
    assert await (await _connect(link)).says(b"hello") == b"hello"


async def test_a_server_that_is_away_ends_the_connection() -> None:
    async with _echo() as port:
        pass
    async with Proxy("127.0.0.1", port) as link:
        client = await _connect(link)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.says(b"hello")
