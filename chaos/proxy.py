"""A TCP proxy on the loopback that can behave like a bad network.

    async with Proxy("127.0.0.1", 5672) as link:
        link.slow(0.2, jitter=0.1)      # each piece of data takes 0.1 to 0.3 s longer
        link.black_hole()               # nothing passes, nothing closes; new connections too
        link.half_open("to_client")     # these connections permanently lose one direction
        link.cut(); link.reset()        # these connections end, politely or with RST
        link.refuse()                   # new connections are refused
        link.heal()                     # open connections continue, and new ones are accepted

Bytes that a black hole held back arrive after it heals, as TCP would retransmit them. Those of a
lost direction never arrive.
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
"""The number of bytes read at once, which is also the most that one direction holds."""
_RST: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, with 0 seconds: the kernel drops unsent data and sends RST."""


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
    """A link to `host`:`port`. It accepts clients at its `port` of the loopback address `at` while
    it is entered.
    """

    def __init__(self, host: str, port: int, *, seed: int = 0, at: str = "127.0.0.1") -> None:
        super().__init__(at)
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
        """The number of connections that are open through it now."""
        return len(self._connections)

    # The troubles that it can have.

    def slow(
        self, delay: float, *, jitter: float = 0.0, bytes_per_second: float | None = None
    ) -> None:
        """Delays each piece of data by `delay` seconds, plus or minus `jitter`, which limits the
        rate.
        """
        self._delay, self._jitter, self._bytes_per_second = delay, jitter, bytes_per_second

    def lead_to(self, port: int) -> None:
        """Leads new connections to another port of the same host. Open ones stay where they are."""
        self._target = (self._target[0], port)

    def black_hole(self) -> None:
        """From now on nothing passes, and nobody is informed. Connecting seems to work."""
        self._open.clear()

    def half_open(self, direction: Direction) -> int:
        """Permanently loses one direction of each open connection. Returns their number."""
        for connection in self._connections:
            connection.lost.add(direction)
        return len(self._connections)

    def refuse(self) -> None:
        """Refuses new connections from now on."""
        self._refuses = True

    def cut(self) -> int:
        """Ends each open connection with FIN, as a restarted middlebox might. Returns their
        number.
        """
        return self._end(abruptly=False)

    def reset(self) -> int:
        """Ends each open connection with RST. Returns their number."""
        return self._end(abruptly=True)

    def heal(self) -> None:
        """Lets everything pass again at full speed. Lost directions stay lost."""
        self.slow(0.0)
        self._refuses = False
        self._open.set()

    # How it forwards.

    def _end(self, *, abruptly: bool) -> int:
        connections = list(self._connections)
        for connection in connections:
            connection.end(abruptly=abruptly)
        return len(connections)

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
        """Forwards one direction until it ends. Then it ends the other side, if that is
        possible.
        """
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
