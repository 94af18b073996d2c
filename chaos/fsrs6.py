"""FSRS-6 from its published formulas and default parameters: the checker's own memory model.

https://github.com/open-spaced-repetition/awesome-fsrs/wiki/The-Algorithm. Pure. It does not use the
package that the worker uses, so that it would reveal a mistake in using that package.
"""

from datetime import datetime, timedelta
from math import exp
from typing import Final, NamedTuple

W: Final = (
    *(0.212, 1.2931, 2.3065, 8.2956, 6.4133, 0.8334, 3.0194),
    *(0.001, 1.8722, 0.1666, 0.796, 1.4835, 0.0614, 0.2629),
    *(1.6483, 0.6014, 1.8729, 0.5425, 0.0912, 0.0658, 0.1542),
)
AGAIN, HARD, GOOD, EASY = 1, 2, 3, 4

_RETENTION: Final = 0.9
_LONGEST_DAYS: Final = 36_500
_STABILITY_MIN: Final = 0.001


class Memory(NamedTuple):
    """Stability in days, difficulty 1..10, and when the question is due again."""

    stability: float
    difficulty: float
    due_at: datetime


def days_between(earlier: datetime, later: datetime) -> int:
    """The time between two reviews in days, rounded to the nearest whole number."""
    return int((later - earlier + timedelta(hours=12)) // timedelta(days=1))


def first(grade: int, at: datetime) -> Memory:
    """The memory after the first review."""
    return _memory(W[grade - 1], _clamped(_initial_difficulty(grade)), at)


def next_(memory: Memory, reviewed_at: datetime, grade: int, at: datetime) -> Memory:
    """The memory after one more review at `at`. `reviewed_at` is the time of the previous one."""
    days = days_between(reviewed_at, at)
    if days < 1:
        stability = _same_day(memory.stability, grade)
    elif grade == AGAIN:
        stability = _forgotten(memory, _retrievability(memory.stability, days))
    else:
        stability = _recalled(memory, _retrievability(memory.stability, days), grade)
    return _memory(stability, _next_difficulty(memory.difficulty, grade), at)


def _memory(stability: float, difficulty: float, at: datetime) -> Memory:
    stability = max(stability, _STABILITY_MIN)
    # At a retention of 0.9 the interval is the stability, by the definition of stability.
    days = min(max(round(stability), 1), _LONGEST_DAYS)
    return Memory(stability, difficulty, at + timedelta(days=days))


def _retrievability(stability: float, days: int) -> float:
    factor = _RETENTION ** (-1 / W[20]) - 1
    return float((1 + factor * days / stability) ** -W[20])


def _initial_difficulty(grade: int) -> float:
    return W[4] - exp(W[5] * (grade - 1)) + 1


def _next_difficulty(difficulty: float, grade: int) -> float:
    damped = difficulty - W[6] * (grade - 3) * (10 - difficulty) / 9
    return _clamped(W[7] * _initial_difficulty(EASY) + (1 - W[7]) * damped)


def _same_day(stability: float, grade: int) -> float:
    increase = exp(W[17] * (grade - 3 + W[18])) * stability ** -W[19]
    return float(stability * (max(increase, 1.0) if grade >= HARD else increase))


def _recalled(memory: Memory, retrievability: float, grade: int) -> float:
    growth = (
        exp(W[8])
        * (11 - memory.difficulty)
        * memory.stability ** -W[9]
        * (exp(W[10] * (1 - retrievability)) - 1)
        * (W[15] if grade == HARD else 1)
        * (W[16] if grade == EASY else 1)
    )
    return float(memory.stability * (1 + growth))


def _forgotten(memory: Memory, retrievability: float) -> float:
    long_term = (
        W[11]
        * memory.difficulty ** -W[12]
        * ((memory.stability + 1) ** W[13] - 1)
        * exp(W[14] * (1 - retrievability))
    )
    return float(min(long_term, memory.stability / exp(W[17] * W[18])))


def _clamped(difficulty: float) -> float:
    return min(max(difficulty, 1.0), 10.0)
