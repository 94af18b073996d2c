"""A TCP proxy on the loopback that can behave like a bad network.

    async with Proxy("127.0.0.1", 5672) as link:
        link.slow(0.2, jitter=0.1)      # each piece of data takes 0.1 to 0.3 s longer
        link.black_hole()               # nothing passes, nothing closes; new connections too
        link.half_open("to_client")     # these connections have lost one direction for good
        link.cut(); link.reset()        # these connections end, politely or with RST
        link.refuse()                   # whoever connects is sent away
        link.heal()                     # whatever is open goes on, and new connections pass

Bytes held back by a black hole come through when it heals, as TCP's repetitions would bring them;
those of a lost direction never do. Knows bytes; may not know what they mean.
"""

import asyncio
import random
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from chaos.link import Direction, Link

_PIECE: Final = 65_536
"""Bytes read at once; also what one direction holds in hand, at most."""
_RST: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: on, for 0 seconds: the kernel forgets what is unsent, and says so with RST."""


@dataclass(eq=False, slots=True)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    lost: set[Direction] = field(default_factory=set)

    def end(self, *, abruptly: bool) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                _end(writer, abruptly=abruptly)


class Proxy(Link):
    """A link to `host`:`port`, open for clients at `port` of the loopback while it is entered."""

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        super().__init__()
        self._target = (host, port)
        self._random = random.Random(seed)  # jitter, not a secret
        self._open = asyncio.Event()
        self._open.set()
        self._refuses = False
        self._delay = self._jitter = 0.0
        self._bytes_per_second: float | None = None
        self._connections: set[_Connection] = set()

    @property
    def connections(self) -> int:
        """How many connections are open through it now."""
        return len(self._connections)

    # What can be done to it.

    def slow(
        self, delay: float, *, jitter: float = 0.0, bytes_per_second: float | None = None
    ) -> None:
        """Holds each piece of data for `delay` seconds, give or take `jitter`; bounds the rate."""
        self._delay, self._jitter, self._bytes_per_second = delay, jitter, bytes_per_second

    def black_hole(self) -> None:
        """From now on nothing passes, and nobody learns of it; connecting seems to work."""
        self._open.clear()

    def half_open(self, direction: Direction) -> int:
        """Loses one direction of each open connection, for good; returns of how many."""
        for connection in self._connections:
            connection.lost.add(direction)
        return len(self._connections)

    def refuse(self) -> None:
        """Sends away whoever connects from now on."""
        self._refuses = True

    def cut(self) -> int:
        """Ends each open connection with FIN, as a restarted middlebox might; returns how many."""
        return self._end(abruptly=False)

    def reset(self) -> int:
        """Ends each open connection with RST; returns how many."""
        return self._end(abruptly=True)

    def heal(self) -> None:
        """Lets everything pass again, at full speed. Lost directions stay lost."""
        self.slow(0.0)
        self._refuses = False
        self._open.set()

    # How it does it.

    def _end(self, *, abruptly: bool) -> int:
        connections = list(self._connections)
        for connection in connections:
            connection.end(abruptly=abruptly)
        return len(connections)

    def _abort(self) -> None:
        self.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer)
        self._connections.add(connection)
        try:
            await self._carry_both(connection, reader)
        finally:
            connection.end(abruptly=True)
            self._connections.discard(connection)

    async def _carry_both(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        if self._refuses:
            return
        await self._open.wait()
        there, connection.server = await asyncio.open_connection(*self._target)
        if connection.client.is_closing():
            return
        ways = (
            asyncio.create_task(self._carry(connection, "to_server", reader, connection.server)),
            asyncio.create_task(self._carry(connection, "to_client", there, connection.client)),
        )
        try:
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()

    async def _carry(
        self,
        connection: _Connection,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Carries one direction until it ends; then the other end is told, if that can pass."""
        with suppress(ConnectionError):
            while piece := await reader.read(_PIECE):
                if direction in connection.lost:
                    continue
                await self._wait_for(len(piece))
                writer.write(piece)
                await writer.drain()
        await self._open.wait()
        if direction not in connection.lost:
            # All our protocols end both ways at once, so a half-closed connection is over.
            connection.end(abruptly=False)

    async def _wait_for(self, size: int) -> None:
        if self._delay or self._jitter:
            await asyncio.sleep(max(0.0, self._delay + self._random.uniform(-1, 1) * self._jitter))
        if self._bytes_per_second:
            await asyncio.sleep(size / self._bytes_per_second)
        await self._open.wait()


def _end(writer: asyncio.StreamWriter, *, abruptly: bool) -> None:
    if abruptly:
        opened: socket.socket | None = writer.get_extra_info("socket")
        if opened is not None and not writer.is_closing():
            with suppress(OSError):
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        writer.transport.abort()
    else:
        writer.close()
