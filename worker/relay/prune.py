"""Prunes by itself what the settings say, once a day, beside the relay.

One worker at a time does it, in small steps with pauses. If it ends in between, another one goes
on.
"""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.errors import IngestError, Pruning
from worker.settings import Settings
from worker.store import prune as stored
from worker.store.engine import transaction
from worker.telemetry import metrics

_LOOK: Final = 60.0
"""Seconds until a worker asks again whether somebody should prune."""
_PAUSE: Final = 0.2
"""Seconds between two steps, which take some hundredths."""

_log = structlog.get_logger(__name__)


def before(settings: Settings, now: datetime) -> stored.Before:
    """What may go by the settings. What only the moment knows always does."""
    found: dict[stored.Kind, datetime] = {"moments": now - stored.MOMENTS_KEPT}
    if settings.keep_audit is not None:
        found["audit"] = now - timedelta(days=settings.keep_audit)
    if settings.keep_results is not None:
        found["results"] = now - timedelta(days=settings.keep_results)
    return found


class Pruner:
    """Prunes until it is stopped. `name` is that of its worker, which no other has."""

    def __init__(self, engine: AsyncEngine, settings: Settings, name: str) -> None:
        self._engine = engine
        self._settings = settings
        self._name = name
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ends `run` after the step that is being done."""
        self._stopping.set()

    async def run(self) -> None:
        """Looks from time to time whether it is time. A failure says nothing about any message, so
        it is only logged.
        """
        while not self._stopping.is_set():
            try:
                await self._prune()
            except Pruning:
                pass  # another one does it, or has done it
            except IngestError as error:
                _log.info("prune.waiting", problem=str(error))
            except Exception:  # noqa: BLE001  # a right that is missing, say
                _log.exception("prune.failed", meaning="what is old stays until this is fixed")
            await self._wait(_LOOK)

    async def _prune(self) -> None:
        gone: dict[str, int] = dict.fromkeys(stored.KINDS, 0)
        async for step in stored.steps(
            self._engine, before(self._settings, datetime.now(UTC)), self._claim
        ):
            gone[step.kind] += step.gone
            metrics.PRUNED.labels(step.kind).inc(step.gone)
            await self._wait(_PAUSE)
            if self._stopping.is_set():
                return
        async with transaction(self._engine) as connection:
            await stored.finish(connection, self._name)
        if any(gone.values()):
            _log.info("prune.finished", **gone)

    async def _claim(self, connection: AsyncConnection) -> None:
        await stored.claim(connection, self._name)

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
