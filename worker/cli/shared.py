"""What several commands need: settings, a database engine, and an event loop.

A command imports what it works with when it is called, so that help, completion and usage errors
do not wait for the database driver or the broker's client.
"""

import gc
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.settings import Settings

T = TypeVar("T")

_NEW_OBJECTS: Final = 50_000
"""The number of new objects after which the garbage collector runs: about 10 MB at most."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's work in an event loop."""
    import uvloop

    # Objects that exist by now stay, so the collector need not look at them again. A group creates
    # tens of thousands of objects with hardly any cycles. With the default of a collection after
    # every 700 objects, the collector takes a fifth of a worker's time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, 20, 100)
    return uvloop.run(work)


def load_settings() -> "Settings":
    """The settings from the environment. Raises `SettingsError`."""
    from worker import settings

    return settings.load_settings()


@asynccontextmanager
async def engine_of(
    settings: "Settings", *, connections: int, name: str
) -> "AsyncIterator[AsyncEngine]":
    """A pool of connections, which is closed when the block ends."""
    from worker.store.engine import make_engine

    engine = make_engine(settings, connections=connections, name=name)
    try:
        yield engine
    finally:
        await engine.dispose()
