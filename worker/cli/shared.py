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


def start_without_collecting() -> None:
    """Keeps the garbage collector from running until `run`: imports create many objects that stay,
    and looking for garbage among them takes a fifth of the start.
    """
    gc.disable()
    # A group creates tens of thousands of objects with hardly any cycles. With the default of a
    # collection after every 700 objects, the collector takes a fifth of a worker's time.
    gc.set_threshold(_NEW_OBJECTS, 20, 100)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's work in an event loop."""
    import uvloop

    if not gc.isenabled():
        gc.freeze()  # what exists by now stays, so the collector need not look at it again
        gc.enable()
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
