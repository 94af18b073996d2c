"""A proxy on the loopback that reads the messages, so that a test can stop a connection at one of
them.

    async with Wire(url, PostgreSQL) as wire:
        stop = wire.hold("to_server", "COMMIT .*INTO outbox")
        ...  # whoever connects through wire.url gets to that message, and it is held there
        await stop.wait()
        wire.cut()  # it never arrives

A message has a text. For PostgreSQL it is a statement when it is executed and when it is done, and
a COMMIT with the last statement before it. For AMQP it is a method with the connection's name and
its subject. Everything else passes without a text. It understands both protocols as far as that,
without TLS.
"""

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

from pamqp import commands, frame

from chaos.link import Direction, Link


class Decoder(Protocol):
    """Reads one connection in both directions."""

    async def read(self, way: Direction, reader: asyncio.StreamReader) -> tuple[bytes, str]:
        """The next message and its text. Raises IncompleteReadError at the end."""
        ...


class PostgreSQL:
    """Version 3 of the protocol, with one statement at a time, as the drivers use it."""

    def __init__(self) -> None:
        self._begun = False
        self._parsed: dict[bytes, str] = {}
        self._bound = self._running = self._last = ""

    async def read(self, way: Direction, reader: asyncio.StreamReader) -> tuple[bytes, str]:
        if way == "to_server" and not self._begun:
            self._begun = True
            head = await reader.readexactly(4)
            return head + await reader.readexactly(int.from_bytes(head) - 4), ""
        head = await reader.readexactly(5)
        body = await reader.readexactly(int.from_bytes(head[1:]) - 4)
        text = self._sent(head[:1], body) if way == "to_server" else self._answered(head[:1])
        return head + body, text

    def _sent(self, kind: bytes, body: bytes) -> str:
        match kind:
            case b"P":
                name, text, _ = body.split(b"\0", 2)
                # Without the schema that each name has, so that patterns need not know it.
                self._parsed[name] = text.decode().replace('"public".', "")
            case b"B":
                _, name, _ = body.split(b"\0", 2)
                self._bound = self._parsed.get(name, "")
            case b"E":
                self._running = self._last = self._bound
                return self._running
            case b"Q":
                self._running = body[:-1].decode()
                if self._running.startswith("COMMIT"):
                    self._running = f"COMMIT of {self._last}"
                return self._running
        return ""

    def _answered(self, kind: bytes) -> str:
        return self._running if kind == b"C" else ""


_HEADER: Final = 8
"""The bytes with which a client begins: the protocol's name and version."""


class AMQP:
    """Version 0-9-1."""

    def __init__(self) -> None:
        self._begun = False
        self._name = "?"

    async def read(self, way: Direction, reader: asyncio.StreamReader) -> tuple[bytes, str]:
        if way == "to_server" and not self._begun:
            self._begun = True
            return await reader.readexactly(_HEADER), ""
        head = await reader.readexactly(7)
        data = head + await reader.readexactly(int.from_bytes(head[3:]) + 1)
        return data, self._text(data) if data[0] == 1 else ""

    def _text(self, data: bytes) -> str:
        _, _, method = frame.unmarshal(data)
        about = ""
        match method:
            case commands.Connection.StartOk():
                self._name = str((method.client_properties or {}).get("connection_name"))
            case commands.Basic.Publish():
                about = f" {method.exchange}/{method.routing_key}"
            case commands.Basic.Deliver():
                about = f" {method.exchange}/{method.routing_key}"
        return f"{self._name}: {method.name}{about}"


@dataclass(eq=False, slots=True)
class _Stop:
    way: Direction
    pattern: re.Pattern[str]
    left: int
    holds: bool
    reached: asyncio.Event = field(default_factory=asyncio.Event)


class Wire(Link):
    """A link to the server of `url`. It accepts clients at `Wire.url` while it is entered."""

    def __init__(self, url: str, decoder: type[Decoder]) -> None:
        super().__init__()
        self._target = urlsplit(url)
        self._decoder = decoder
        self._stops: list[_Stop] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._released = asyncio.Event()
        self.passed: list[tuple[int, str]] = []
        """What was sent to the server so far: the number of the connection, and the text."""

    @property
    def url(self) -> str:
        """The server's URL through this proxy."""
        login = self._target.netloc.rpartition("@")[0]
        return self._target._replace(netloc=f"{login}@127.0.0.1:{self.port}").geturl()

    def hold(self, way: Direction, pattern: str, nth: int = 1) -> asyncio.Event:
        """Holds everything in that direction from the `nth` message whose text matches `pattern`.

        It applies to that connection only, and once. The event is set when the message is held.
        """
        return self._stop(way, pattern, nth, holds=True)

    def watch(self, way: Direction, pattern: str, nth: int = 1) -> asyncio.Event:
        """Like `hold`, but the message passes. The event is set when it has passed."""
        return self._stop(way, pattern, nth, holds=False)

    def release(self) -> None:
        """Releases what is held."""
        self._released.set()
        self._released = asyncio.Event()

    def cut(self) -> None:
        """Ends all connections. What is held never arrives."""
        for writer in list(self._writers):
            writer.transport.abort()

    def _stop(self, way: Direction, pattern: str, nth: int, *, holds: bool) -> asyncio.Event:
        stop = _Stop(way, re.compile(pattern, re.DOTALL), nth, holds)
        self._stops.append(stop)
        return stop.reached

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        ends = {writer}
        ways: list[asyncio.Task[None]] = []
        try:
            there, back = await asyncio.open_connection(self._target.hostname, self._target.port)
            ends.add(back)
            self._writers.add(back)
            decoder = self._decoder()
            ways = [
                asyncio.create_task(self._carry("to_server", decoder, reader, back)),
                asyncio.create_task(self._carry("to_client", decoder, there, writer)),
            ]
            # Either way's end is the end of both, and of what was held.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for end in ends:
                end.close()
            self._writers -= ends

    async def _carry(
        self,
        way: Direction,
        decoder: Decoder,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                data, text = await decoder.read(way, reader)
                reached = [stop for stop in self._stops if text and _comes_to(stop, way, text)]
                for stop in reached:
                    self._stops.remove(stop)
                    if stop.holds:
                        stop.reached.set()
                        await self._released.wait()
                writer.write(data)
                await writer.drain()
                if text and way == "to_server":
                    self.passed.append((id(decoder), text))
                for stop in reached:
                    stop.reached.set()


def _comes_to(stop: _Stop, way: Direction, text: str) -> bool:
    if stop.way != way or not stop.pattern.search(text):
        return False
    stop.left -= 1
    return stop.left == 0
