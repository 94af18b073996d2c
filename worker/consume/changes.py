"""Awaitable changes: what tasks of one worker wait on instead of sleeping, and tests too.

Knows asyncio alone.
"""

import asyncio
from collections.abc import Callable


class Signal:
    """Wakes whoever waits for a condition over some state, each time that state is told of."""

    def __init__(self) -> None:
        self._told = asyncio.Event()

    def tell(self) -> None:
        """Says that the state has changed."""
        self._told.set()
        self._told = asyncio.Event()

    async def until(
        self,
        condition: Callable[[], bool],
        timeout: float | None = None,  # noqa: ASYNC109  # an outcome here, not an error
    ) -> bool:
        """Waits until `condition()` holds; False when it doesn't after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._told.wait()
        except TimeoutError:
            return condition()
        return True
