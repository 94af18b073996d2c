"""Growing waits with jitter, for anything that is tried again.

Knows no clock and no settings: the caller sleeps.
"""

import random


class Backoff:
    """Waits that double from `shortest` to `longest` seconds, each between half and all of it.

    The jitter keeps many workers that lost one server from coming back in step.
    """

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest = shortest
        self._longest = longest
        self._next = shortest

    def next(self) -> float:
        """How long to wait before the next try, in seconds."""
        wait, self._next = self._next, min(self._next * 2, self._longest)
        return random.uniform(wait / 2, wait)  # noqa: S311  # jitter, not a secret

    def reset(self) -> None:
        """Begins anew with the shortest wait, after a try that worked."""
        self._next = self._shortest
