"""The gate as workers see it: open unless an operator has paused ingest, for all at once.

Asked twice a second by each consumer, over a connection of its own pool's. May not know what a
consumer does while the gate is shut.
"""

from sqlalchemy.ext.asyncio import AsyncEngine

from worker.errors import TransientFault
from worker.store import pause
from worker.store.engine import transaction


class Gate:
    """Whether this worker may ingest; `enabled` is the setting that shuts it for good.

    An engine with one connection to spare keeps the question from waiting behind transactions.
    """

    def __init__(self, engine: AsyncEngine, *, enabled: bool = True) -> None:
        self._engine = engine
        self._enabled = enabled
        self._open = enabled

    async def __call__(self) -> bool:
        """Whether it is open; when it can't be told just now, whatever it was when last seen.

        Raises `DatabaseAway`.
        """
        if self._enabled:
            try:
                async with transaction(self._engine) as connection:
                    self._open = not await pause.is_paused(connection)
            except TransientFault:
                pass
        return self._open
