"""The conditions under which a consumer works: the causes of a pause, and whether it drains.

Each change is one log line, and wakes everybody who waits for it.
"""

import time
from collections.abc import Callable
from typing import Literal

import structlog

from worker.consume.changes import Signal
from worker.telemetry import metrics

_log = structlog.get_logger(__name__)

Cause = Literal["database", "gate", "publishing"]


class Conditions:
    """The consumer's causes to pause, and whether it drains.

    `held_since` returns when the oldest delivery in hand arrived, by the monotonic clock. `turned`
    signals these, and everything else that concerns a subscription. `changed` signals every change,
    including each arrival and each settled group.
    """

    def __init__(self, hold_timeout: float, held_since: Callable[[], float | None]) -> None:
        self.turned = Signal()
        self.changed = Signal()
        self.draining = False
        self._hold_timeout = hold_timeout
        self._held_since = held_since
        self._since: dict[Cause, float] = {}
        self._reasons: dict[Cause, str] = {}

    def tell(self) -> None:
        """Reports that something has changed that may concern everybody."""
        self.turned.tell()
        self.changed.tell()

    @property
    def paused(self) -> bool:
        """Whether there is any cause to pause."""
        return bool(self._since)

    def paused_for(self, cause: Cause) -> bool:
        """Whether this is one of the causes."""
        return cause in self._since

    @property
    def reason(self) -> str | None:
        """Why it is paused, as a sentence; None when it isn't."""
        return next(iter(self._reasons.values()), None)

    @property
    def hold_left(self) -> float:
        """The number of seconds that deliveries may still stay in hand. At 0 they must be
        returned.

        It is measured from the oldest delivery, as the broker does, however many pauses there were.
        """
        since = self._held_since()
        held = 0.0 if since is None else _now() - since
        return max(0.0, self._hold_timeout - held)

    def pause(self, cause: Cause, reason: str) -> None:
        """Pauses for `cause`. If it already does, the newest reason replaces the earlier one."""
        if cause in self._since:
            if self._reasons[cause] != reason:
                self._reasons[cause] = reason
                _log.warning("consumer.still_paused", cause=cause, reason=reason)
        else:
            self._reasons[cause] = reason
            self._since[cause] = _now()
            metrics.PAUSED.labels(cause).inc()
            metrics.IS_PAUSED.labels(cause).set(1)
            _log.warning("consumer.paused", cause=cause, reason=reason)
            self.tell()

    def resume(self, cause: Cause) -> None:
        """Ends the pause for this cause."""
        since = self._since.pop(cause, None)
        if since is not None:
            del self._reasons[cause]
            metrics.IS_PAUSED.labels(cause).set(0)
            _log.info("consumer.resumed", cause=cause, seconds=round(_now() - since, 3))
            self.tell()

    def drain(self) -> None:
        """Begins to drain. It can't be undone."""
        self.draining = True
        self.tell()

    async def passes(self, cause: Cause) -> bool:
        """Waits while `cause` lasts. Returns False if the deliveries in hand must be returned
        first.
        """
        await self.turned.until(
            lambda: self.draining or not self.paused_for(cause), timeout=self.hold_left
        )
        return not self.paused_for(cause)


def _now() -> float:
    return time.monotonic()
