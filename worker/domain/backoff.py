"""Growing delays with jitter, for everything that is tried again.

This module has no clock and no settings. The caller sleeps.
"""

import random


class Backoff:
    """Delays that double from `shortest` to `longest` seconds, each with jitter between half and
    all of it.

    The jitter keeps many workers that lost the same server from coming back at the same moment.
    """

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest = shortest
        self._longest = longest
        self._next = shortest

    def next(self) -> float:
        """The delay before the next attempt, in seconds."""
        wait, self._next = self._next, min(self._next * 2, self._longest)
        return random.uniform(wait / 2, wait)  # noqa: S311  # jitter, not a secret

    def reset(self) -> None:
        """Starts again with the shortest delay, after an attempt that succeeded."""
        self._next = self._shortest
