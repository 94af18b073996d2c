"""`prune`: what is older than somebody wants to keep it goes, in steps that hold nobody up.

It may be killed at any moment and run again. The audit says how much has gone, whatever happens.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.errors import TransientFault
from worker.store import audit
from worker.store import prune as stored
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.prune import Before, Kind, Step

_SHORTEST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 1.0
_TRIES: Final = 10
"""How often in a row a step may meet a lock, of a migration say, before it is given up."""

OnStep = Callable[[Step], None]


async def count(engine: AsyncEngine, before: Before) -> dict[Kind, int]:
    """What would go."""
    async with transaction(engine) as connection:
        return await stored.count(connection, before)


async def prune(engine: AsyncEngine, before: Before, by: By, progress: OnStep) -> dict[Kind, int]:
    """Prunes, alone, and returns how many rows of each kind have gone. `engine` needs two
    connections.

    Raises `Pruning` if another command prunes, `DatabaseAway` and `TransientFault`. What has gone
    until then is in the audit.
    """
    gone: dict[Kind, int] = dict.fromkeys(before, 0)
    until = {f"{kind}_before": time.isoformat() for kind, time in before.items()}

    def effect(now: dict[Kind, int]) -> dict[str, object]:
        return {**{str(kind): count for kind, count in now.items()}, **until}

    async with stored.alone(engine):
        async with transaction(engine) as connection:
            entry = await audit.record(connection, by, "prune", ", ".join(before), effect(gone))

        async def record(connection: AsyncConnection, step: Step) -> None:
            if step.gone:
                now = gone | {step.kind: gone[step.kind] + step.gone}
                await audit.amend(connection, entry, effect(now))

        left = _TRIES
        while left:
            try:
                began = time.monotonic()
                async for step in stored.steps(engine, before, record=record):
                    gone[step.kind] += step.gone
                    progress(step)
                    left = _TRIES
                    # As long as it took, so that half of the time is everybody else's.
                    took = time.monotonic() - began
                    await asyncio.sleep(min(max(took, _SHORTEST_PAUSE), _LONGEST_PAUSE))
                    began = time.monotonic()
                break
            except TransientFault:
                left -= 1
                if not left:
                    raise
                await asyncio.sleep(_LONGEST_PAUSE)
    return gone
