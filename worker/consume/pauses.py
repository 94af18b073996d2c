"""Under what conditions a consumer works just now: what it is paused for, and whether it drains.

One log line for each change, and signals for whoever waits for one. Knows nothing of brokers or
databases.
"""

import asyncio
from typing import Literal

import structlog

from worker.consume.changes import Signal
from worker.telemetry import metrics

_log = structlog.get_logger(__name__)

Cause = Literal["database", "gate", "publishing"]


class Conditions:
    """The consumer's causes to pause, and its wish to drain.

    `turned` tells of these and of all that may concern a subscription; `changed` of anything at
    all, each arrival and each settled group included.
    """

    def __init__(self, hold_timeout: float) -> None:
        self.turned = Signal()
        self.changed = Signal()
        self.draining = False
        self._hold_timeout = hold_timeout
        self._since: dict[Cause, float] = {}

    def tell(self) -> None:
        """Says that something has changed that may concern everybody."""
        self.turned.tell()
        self.changed.tell()

    @property
    def paused(self) -> bool:
        """Whether there is a cause to pause."""
        return bool(self._since)

    def paused_for(self, cause: Cause) -> bool:
        """Whether this is one of the causes."""
        return cause in self._since

    @property
    def hold_left(self) -> float:
        """Seconds for which messages may stay in hand; 0 when they must be given back."""
        held = _now() - min(self._since.values(), default=_now())
        return max(0.0, self._hold_timeout - held)

    def pause(self, cause: Cause, reason: str) -> None:
        """Pauses for `cause`, if it isn't already."""
        if cause not in self._since:
            self._since[cause] = _now()
            metrics.PAUSED.labels(cause).inc()
            metrics.IS_PAUSED.labels(cause).set(1)
            _log.warning("consumer.paused", cause=cause, reason=reason)
            self.tell()

    def resume(self, cause: Cause) -> None:
        """Resumes, as far as `cause` goes."""
        since = self._since.pop(cause, None)
        if since is not None:
            metrics.IS_PAUSED.labels(cause).set(0)
            _log.info("consumer.resumed", cause=cause, seconds=round(_now() - since, 3))
            self.tell()

    def drain(self) -> None:
        """Begins to drain; there is no way back."""
        self.draining = True
        self.tell()

    async def passes(self, cause: Cause) -> bool:
        """Waits while `cause` lasts; False when what is in hand has to be given back first."""
        await self.turned.until(
            lambda: self.draining or not self.paused_for(cause), timeout=self.hold_left
        )
        return not self.paused_for(cause)


def _now() -> float:
    return asyncio.get_running_loop().time()
