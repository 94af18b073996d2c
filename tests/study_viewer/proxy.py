"""A TCP proxy that understands AMQP frames, so that a test can stop the talk at one of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlsplit

Direction = Literal["to broker", "to viewer"]
Method = tuple[int, int]

PUBLISH: Final = (60, 40)
DELIVER: Final = (60, 60)
ACK: Final = (60, 80)

_METHOD_FRAME = 1

PATIENCE = 60.0
"""Seconds after which something counts as not happening. A process may take many to start."""


@dataclass
class Proxy:
    """Made by `proxied`. At first everything passes."""

    port: int = 0
    connections: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _seen: dict[tuple[Direction, Method], asyncio.Event] = field(default_factory=dict)
    _held: set[tuple[Direction, Method]] = field(default_factory=set)

    def url(self, url: str) -> str:
        """`url` by way of this proxy."""
        netloc = urlsplit(url).netloc.rpartition("@")[0]
        return urlsplit(url)._replace(netloc=f"{netloc}@127.0.0.1:{self.port}").geturl()

    async def seen(self, direction: Direction, method: Method) -> None:
        """Waits until such a frame has come by, whether it passed or was held."""
        await asyncio.wait_for(self._event(direction, method).wait(), PATIENCE)

    def hold(self, direction: Direction, method: Method) -> None:
        """On each connection, lets nothing pass in that direction from the next such frame on."""
        self._held.add((direction, method))

    def release(self) -> None:
        """Takes back every `hold`, and cuts the connections that were held."""
        self._held.clear()
        self.reset()

    def reset(self) -> None:
        """Cuts all connections, without a goodbye."""
        for writer in list(self._writers):
            writer.transport.abort()

    def _event(self, direction: Direction, method: Method) -> asyncio.Event:
        return self._seen.setdefault((direction, method), asyncio.Event())

    async def _carry(
        self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        stopped = False
        with suppress(OSError, asyncio.IncompleteReadError):
            if direction == "to broker":
                writer.write(await reader.readexactly(8))  # the protocol's name and version
            while True:
                head = await reader.readexactly(7)
                rest = await reader.readexactly(int.from_bytes(head[3:]) + 1)
                method = (int.from_bytes(rest[:2]), int.from_bytes(rest[2:4]))
                is_method = head[0] == _METHOD_FRAME
                stopped = stopped or (is_method and (direction, method) in self._held)
                if not stopped:
                    writer.write(head + rest)
                    await writer.drain()
                if is_method:
                    self._event(direction, method).set()
        writer.transport.abort()


@asynccontextmanager
async def proxied(url: str, port: int = 0) -> AsyncIterator[Proxy]:
    """A proxy in front of the broker at `url`, on a free port of the loopback or on `port`."""
    target = urlsplit(url)
    proxy = Proxy()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        proxy.connections += 1
        there, back = await asyncio.open_connection(target.hostname, target.port)
        ends = {writer, back}
        proxy._writers |= ends
        both = {
            asyncio.create_task(proxy._carry("to broker", reader, back)),
            asyncio.create_task(proxy._carry("to viewer", there, writer)),
        }
        tasks.update(both)
        await asyncio.wait(both)
        tasks.difference_update(both)
        proxy._writers -= ends

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.reset()
        if tasks:
            await asyncio.wait(tasks)
        await server.wait_closed()
