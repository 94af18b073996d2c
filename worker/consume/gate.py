"""The gate: open unless an operator has paused ingest for all workers.

Each consumer asks it twice a second, over a connection from its own pool.
"""

from sqlalchemy.ext.asyncio import AsyncEngine

from worker.errors import DatabaseAway, TransientFault
from worker.store import pause
from worker.store.engine import reason_of, transaction


class Gate:
    """Whether this worker may ingest. The setting `enabled` closes it permanently.

    The engine needs one spare connection, so that the question does not wait behind transactions.
    """

    def __init__(self, engine: AsyncEngine, *, enabled: bool = True) -> None:
        self._engine = engine
        self._enabled = enabled
        self._open = enabled

    async def __call__(self) -> bool:
        """Whether the gate is open. If the database can't tell at the moment, the last answer
        counts.

        Raises `DatabaseAway`, whatever it is that keeps the pause from being read.
        """
        if self._enabled:
            try:
                async with transaction(self._engine) as connection:
                    self._open = not await pause.is_paused(connection)
            except TransientFault:
                pass
            except DatabaseAway:
                raise
            except Exception as error:
                raise DatabaseAway(f"The pause can't be read: {reason_of(error)}.") from error
        return self._open
