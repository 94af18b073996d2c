"""`dead discard`: letters that nobody needs are taken away, and nothing else is.

What is to go was looked at before: a letter that came since then stays.
"""

from collections.abc import Mapping
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from worker.operate.dead.letters import OnProgress
from worker.store import audit
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate import dead as stored

_AT_ONCE: Final = 5_000
"""Letters in one transaction, for whose end a worker may have to wait that rejects one of them."""


async def discard(
    engine: AsyncEngine, letters: Mapping[int, str], by: By, progress: OnProgress
) -> int:
    """Takes away the letters with these ids, of which each has its reason; returns how many.

    Raises `DatabaseAway`; the letters that were not reached stay.
    """
    discarded = 0
    ids = [*letters]
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        async with transaction(engine) as connection:
            discarded += await stored.discard(connection, some)
            await audit.record(
                connection, by, "discard", "dead letters", audit.counted(map(letters.get, some))
            )
        progress(start + len(some), len(ids))
    return discarded
