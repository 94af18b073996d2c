"""A value that is read again in the background, so that no page waits for a slow server.

However many people look, it is read once at a time, and only while somebody looks.
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
        self._at = 0.0
        self._reading: asyncio.Task[T] | None = None

    async def get(self, patience: float) -> T:
        """The newest value, or after `patience` seconds the one before it.

        The first call waits for as long as it takes. Raises what `read` raises.
        """
        if self._found is not None and time.monotonic() - self._at < self._fresh:
            return self._found
        if self._reading is None:
            self._reading = asyncio.create_task(self._again())
            # A failure is told to whoever asks again: nobody may be waiting any more.
            self._reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        reading = self._reading
        if self._found is None:
            return await asyncio.shield(reading)
        await asyncio.wait((reading,), timeout=patience)
        return reading.result() if reading.done() else self._found

    async def _again(self) -> T:
        try:
            self._found = await self._read(self._found)
            self._at = time.monotonic()
            return self._found
        finally:
            self._reading = None

    async def close(self) -> None:
        """Ends a reading that is under way."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
