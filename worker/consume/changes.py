"""A signal that tasks of a worker, and tests, wait for instead of sleeping. It depends on asyncio
only.
"""

import asyncio
from collections.abc import Callable


class Signal:
    """Wakes everybody who waits for a condition, each time the state changes."""

    def __init__(self) -> None:
        self._told = asyncio.Event()

    def tell(self) -> None:
        """Reports that the state has changed."""
        self._told.set()
        self._told = asyncio.Event()

    async def until(
        self,
        condition: Callable[[], bool],
        timeout: float | None = None,  # noqa: ASYNC109  # an outcome here, not an error
    ) -> bool:
        """Waits until `condition()` is true. Returns False if it is not true after `timeout`
        seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._told.wait()
        except TimeoutError:
            return condition()
        return True
