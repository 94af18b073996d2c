"""A value that is read again in the background, so that no page waits for a slow server.

However many people look, it is read once at a time, and after the start only while somebody looks.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """What `read` found last. It is read again if that is more than `fresh` seconds ago."""

    def __init__(self, read: Callable[[T | None], Awaitable[T]], fresh: float) -> None:
        """`read` gets what was found before, so that it can keep what is still known."""
        self._read = read
        self._fresh = fresh
        self._found: T | None = None
        self._at = float("-inf")
        self._is_outdated = True
        self._reading: asyncio.Task[T] | None = None
        self._tasks: set[asyncio.Task[T]] = set()

    async def get(self, patience: float) -> T:
        """The newest value, or after `patience` seconds the one before it.

        The first call, and the first after `outdate`, waits for as long as it takes. Raises what
        `read` raises.
        """
        if self._found is not None and time.monotonic() - self._at < self._fresh:
            return self._found
        reading = self.start()
        if self._found is None or self._is_outdated:
            return await asyncio.shield(reading)
        await asyncio.wait((reading,), timeout=patience)
        return reading.result() if reading.done() else self._found

    def start(self) -> asyncio.Task[T]:
        """Reads in the background, unless that is under way, so that whoever comes first need not
        wait.
        """
        if self._reading is None:
            self._reading = asyncio.create_task(self._again())
            self._tasks.add(self._reading)
            self._reading.add_done_callback(self._ended)
        return self._reading

    def outdate(self) -> None:
        """Has the next call read again, because something was changed."""
        self._at = float("-inf")
        self._is_outdated = True
        self._reading = None  # it may have seen what was before

    async def _again(self) -> T:
        this = asyncio.current_task()
        try:
            found = await self._read(self._found)
            if self._reading is this:
                self._found, self._at, self._is_outdated = found, time.monotonic(), False
            return found
        finally:
            if self._reading is this:
                self._reading = None

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits or asks again, and nobody may

    async def close(self) -> None:
        """Ends readings that are under way."""
        for task in (tasks := [*self._tasks]):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
