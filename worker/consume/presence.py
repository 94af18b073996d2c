"""A worker says every few seconds that it is there, for `study-ingest status` and the console.

Nothing depends on it: whatever fails here, the worker goes on.
"""

import asyncio
import itertools
import os
import secrets
import socket
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from worker import __version__
from worker.consume.consumer import Consumer
from worker.errors import IngestError
from worker.store import workers
from worker.store.engine import transaction

_LOOK: Final = 1.0
"""Seconds between two looks at what the consumer does."""
_LOOKS: Final = 5
"""After so many looks the worker says that it is there, although nothing has changed."""

_log = structlog.get_logger(__name__)


def new_name() -> str:
    """A name for a worker that no other has: its host, its process, and something random."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}:{secrets.token_hex(3)}"


class Presence:
    """Says it for one worker, until it is told to stop."""

    def __init__(self, engine: AsyncEngine, consumer: Consumer, name: str) -> None:
        self._engine = engine
        self._consumer = consumer
        self._name = name
        self._started_at = datetime.now(UTC)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ends `run`, which takes the worker off the list."""
        self._stopping.set()

    async def run(self) -> None:
        """Says it again and again, and soon when the consumer does something else."""
        said, failed = None, False
        for look in itertools.cycle(range(_LOOKS)):
            if self._stopping.is_set():
                break
            doing = (self._consumer.state, self._consumer.why_paused)
            if look == 0 or doing != said:
                said = doing
                failed = not await self._say(is_known=failed)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _LOOK)
        with suppress(Exception):  # then the others find it silent
            async with transaction(self._engine) as connection:
                await workers.leave(connection, self._name)

    async def _say(self, *, is_known: bool) -> bool:
        """Returns whether it worked. A failure that `is_known` is not logged again."""
        consumer = self._consumer
        try:
            async with transaction(self._engine) as connection:
                await workers.keep(
                    connection,
                    self._name,
                    __version__,
                    self._started_at,
                    consumer.state,
                    consumer.in_hand,
                    consumer.why_paused,
                )
        except IngestError:
            return False  # the database is away, which others have logged
        except Exception:  # noqa: BLE001  # a right that is missing, say
            if not is_known:
                _log.exception("presence.failed", meaning="status does not list this worker")
            return False
        return True
