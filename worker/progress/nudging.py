"""After an operator's command: nudges the devices of everybody whose progress it has changed.

A command does not wait for the broker's client to be imported, unless it has something to tell.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from worker.errors import IngestError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.domain.records import Mark, OnChange
    from worker.settings import Settings

_USERS_MAX: Final = 10_000
"""The most users whose devices are nudged, so that memory stays constant. The others ask by
themselves.
"""
_PATIENCE: Final = 3.0
"""Seconds that this takes at most."""


@asynccontextmanager
async def nudging(engine: "AsyncEngine", settings: "Settings") -> "AsyncIterator[OnChange]":
    """Nudges at the end of the block, however that ends.

    Where the broker can't be reached, the devices learn of the changes when they next ask.
    """
    changed: dict[int, Mark] = {}

    def note(user_id: int, mark: "Mark") -> None:
        if len(changed) < _USERS_MAX:
            changed[user_id] = mark

    try:
        yield note
    finally:
        if changed:
            with suppress(IngestError, TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await _nudge(engine, settings, changed)


async def _nudge(engine: "AsyncEngine", settings: "Settings", changed: "dict[int, Mark]") -> None:
    from worker.broker.publisher import Publisher
    from worker.domain.records import Change
    from worker.progress.nudges import Nudges

    async with Publisher(settings, "nudges") as publisher:
        nudges = Nudges(engine, publisher)
        nudges.note([Change(user_id, None, mark) for user_id, mark in changed.items()])
        await nudges.nudge()
