"""What several commands need: settings, an engine that is closed again, an event loop."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from worker.domain.patterns import Thresholds
from worker.settings import Settings
from worker.store.engine import make_engine

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's work to its end."""
    return asyncio.run(work)


@asynccontextmanager
async def engine_of(
    settings: Settings, *, connections: int, name: str
) -> AsyncIterator[AsyncEngine]:
    """A pool that is closed when the block ends."""
    engine = make_engine(settings, connections=connections, name=name)
    try:
        yield engine
    finally:
        await engine.dispose()


def thresholds_of(settings: Settings) -> Thresholds:
    """The settings that decide patterns."""
    return Thresholds(
        settings.mastered_stability_days,
        settings.leech_lapses,
        settings.stuck_attempts,
        settings.stuck_attempts_never_correct,
    )
