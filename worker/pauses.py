"""Why a consumer is paused just now, and how long it may hold what it has in hand.

One log line for each change. Knows nothing of brokers or databases.
"""

import asyncio
from collections.abc import Callable
from typing import Literal

import structlog

_log = structlog.get_logger(__name__)

Cause = Literal["database", "gate", "publishing"]


class Pauses:
    """The causes that hold now; true while there is one. `on_change` is called on each change."""

    def __init__(self, hold_timeout: float, on_change: Callable[[], None]) -> None:
        self._hold_timeout = hold_timeout
        self._on_change = on_change
        self._since: dict[Cause, float] = {}

    def __bool__(self) -> bool:
        return bool(self._since)

    def __contains__(self, cause: Cause) -> bool:
        return cause in self._since

    @property
    def hold_left(self) -> float:
        """Seconds for which messages may stay in hand; 0 when they must be given back."""
        held = _now() - min(self._since.values(), default=_now())
        return max(0.0, self._hold_timeout - held)

    def begin(self, cause: Cause, reason: str) -> None:
        """Pauses for `cause`, if it isn't already."""
        if cause not in self._since:
            self._since[cause] = _now()
            _log.warning("consumer.paused", cause=cause, reason=reason)
            self._on_change()

    def end(self, cause: Cause) -> None:
        """Resumes, as far as `cause` goes."""
        since = self._since.pop(cause, None)
        if since is not None:
            _log.info("consumer.resumed", cause=cause, seconds=round(_now() - since, 3))
            self._on_change()


def _now() -> float:
    return asyncio.get_running_loop().time()
