"""The base of links on the loopback interface: accepts clients, serves each of them, and ends."""

import asyncio
from abc import ABC, abstractmethod
from typing import Literal, Self

Direction = Literal["to_server", "to_client"]


class Link(ABC):
    """Accepts clients at `port` of a loopback address while it is entered."""

    def __init__(self, at: str = "127.0.0.1") -> None:
        self._at = at
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, self._at, 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)

    @abstractmethod
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connects one client with the server until either ends, and leaves nothing open."""
