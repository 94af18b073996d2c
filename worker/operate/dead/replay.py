"""`dead replay`: letters go back to the workers, each as the message that it once was.

The command only asks: a relay publishes each letter and takes it away once the broker has confirmed
it, so that nothing is lost or forgotten however either of them ends.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from worker.operate.dead.letters import OnProgress
from worker.store import audit
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate import dead as stored
from worker.store.operate.dead import Asked

_AT_ONCE: Final = 1_000
_LOOK_AGAIN: Final = 0.2
_UNDECIDED: Final = ("leaving", "in the queue")


async def replay(
    engine: AsyncEngine,
    letters: Mapping[int, str],
    by: By,
    progress: OnProgress,
    rate: float | None = None,
) -> list[Asked]:
    """Asks for the replay of the letters with these ids, of which each has its reason, in their
    order; at most `rate` in a second. Returns those that were not asked for before.

    Raises `DatabaseAway`: then some may have been asked for, and the rest is where it was.
    """
    asked: list[Asked] = []
    ids = [*letters]
    at_once = _AT_ONCE if rate is None else max(1, min(_AT_ONCE, int(rate)))
    for start in range(0, len(ids), at_once):
        if start and rate is not None:
            await asyncio.sleep(at_once / rate)
        some = ids[start : start + at_once]
        async with transaction(engine) as connection:
            asked += await stored.ask_for_replay(connection, some)
            await audit.record(
                connection, by, "replay", "dead letters", audit.counted(map(letters.get, some))
            )
        progress(start + len(some), len(ids))
    return asked


async def outcomes(
    engine: AsyncEngine, asked: list[Asked], progress: OnProgress, patience: float
) -> dict[str, int]:
    """What became of replays, once that is decided for all, or nothing has changed for `patience`
    seconds: how many were `ingested`, `rejected: <reason>` again, are `leaving`, or `in the queue`.
    """
    loop = asyncio.get_running_loop()
    before: dict[str, int] | None = None
    changed_at = loop.time()
    while True:
        async with transaction(engine) as connection:
            found = await stored.outcomes(connection, asked)
        open_ones = sum(found.get(word, 0) for word in _UNDECIDED)
        progress(len(asked) - open_ones, len(asked))
        if found != before:
            before, changed_at = found, loop.time()
        if not open_ones or loop.time() - changed_at > patience:
            return found
        await asyncio.sleep(_LOOK_AGAIN)
