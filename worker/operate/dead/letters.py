"""Dead letters: what each says, read with today's code."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.attempt_batch import AttemptBatch, decode
from schemas.errors import Rejection
from worker.broker import field_table
from worker.store.engine import transaction
from worker.store.operate import dead as stored
from worker.store.operate.dead import Letter, Place, Wanted

OnProgress = Callable[[int, int], None]
"""Told how many letters have been seen, of how many."""

_NO_LIMIT: Final = 2**31
_AT_ONCE: Final = 50


async def letters(
    engine: AsyncEngine, wanted: Wanted, limit: int | None = None
) -> AsyncIterator[Letter]:
    """Each letter that is wanted, oldest first, at most `limit`; none of them is locked."""
    after: Place | None = None
    left = _NO_LIMIT if limit is None else limit
    while left:
        async with transaction(engine) as connection:
            page = await stored.page(connection, wanted, after, min(left, _AT_ONCE))
        if not page:
            return
        for letter in page:
            yield letter
        after = (page[-1].brief.died_at, page[-1].brief.id)
        left -= len(page)


def properties_of(letter: Letter) -> dict[str, Any]:
    """Its properties by name, `headers` among them; whatever they are, this does not fail."""
    return field_table.values_in(letter.properties)


def batch_in(letter: Letter) -> AttemptBatch | Rejection:
    """What the body holds, whatever the limits are now."""
    try:
        return decode(letter.body, max_body_bytes=_NO_LIMIT, max_attempts=_NO_LIMIT)
    except Rejection as rejection:
        return rejection
