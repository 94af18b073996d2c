"""When a question is due, and how likely it is still known: what a device computes by itself. Pure.

The forgetting curve is that of FSRS-6 (https://github.com/open-spaced-repetition/awesome-fsrs/wiki/
The-Algorithm): R = (1 + F * d / S) ^ -decay with F = 0.9 ^ (-1 / decay) - 1, so that R is 0.9 after
d = S days. Days are rounded, and a question is due from 12 hours before `due_at` on, as the server
has it (docs/contract.md).
"""

from datetime import datetime, timedelta
from typing import Final

_HALF_A_DAY: Final = timedelta(hours=12)
_A_DAY: Final = timedelta(days=1)

SHORTEST_INTERVAL: Final = _A_DAY
"""The schedule never gives less, whatever the answer was."""


def due_from(due_at: datetime) -> datetime:
    """The moment from which on a question counts as due."""
    return due_at - _HALF_A_DAY


def recall(stability: float, decay: float, last_answered_at: datetime, at: datetime) -> float:
    """The predicted probability, 0..1, that a question would be recalled at `at`.

    `stability` is in days, and `decay` is the positive exponent that a page of progress carries.
    """
    days = max(0, (at - last_answered_at + _HALF_A_DAY) // _A_DAY)
    return float((1 + (0.9 ** (-1 / decay) - 1) * days / stability) ** -decay)
