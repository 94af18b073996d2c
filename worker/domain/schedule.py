"""The schedule: FSRS-6, equal to the package `fsrs` to the last bit for reviews whole days apart.

The formulas are those of https://github.com/open-spaced-repetition/awesome-fsrs/wiki/The-Algorithm
(FSRS-6, default parameters), without learning steps and without random variation, so that the same
history always gives the same schedule. The package is the reference. Its parameters are read from
it, its name and version are stored beside every schedule, and a test compares each result with the
package's, bit for bit.

Between two reviews the package counts the full periods of 24 hours, so somebody who studies five
minutes earlier each day never has a day between two of them. Here the time is rounded to whole
days (`elapsed_days`), which also predicts real reviews better (docs/contract.md).

The arithmetic is written out here because the package also copies a card, matches on its state and
makes a review log, which takes ten times as long as the formulas.
"""

import hashlib
import json
import math
from datetime import datetime, timedelta
from functools import lru_cache
from importlib.metadata import version
from typing import Final, NamedTuple

from fsrs import Rating, Scheduler
from fsrs.scheduler import MAX_DIFFICULTY, MIN_DIFFICULTY, STABILITY_MIN

from schemas.words import CORRECT, UNSURE
from worker.domain.scoring import ScoredAttempt

_SCHEDULER: Final = Scheduler(learning_steps=(), relearning_steps=(), enable_fuzzing=False)

SCHEDULER_NAME: Final = "fsrs-6/{}/{}/rounded-days".format(
    version("fsrs"),
    hashlib.sha256(json.dumps(_SCHEDULER.to_dict(), sort_keys=True).encode()).hexdigest()[:12],
)
"""The algorithm, the package's version, a digest of the parameters and how days are counted. It is
stored beside every schedule. A schedule by another scheduler is never continued: its history is
folded again.
"""

_DUE_AHEAD: Final = timedelta(hours=12)
_HALF_A_DAY: Final = 12 * 60 * 60


class Memory(NamedTuple):
    """The state of one question in FSRS: stability in days, difficulty from 1 to 10, and due time
    (UTC).
    """

    stability: float
    difficulty: float
    due_at: datetime


def elapsed_days(before: datetime, after: datetime) -> int:
    """The time between two moments, rounded to whole days: 0 means less than 12 hours.

    `after` must not be before `before`.
    """
    passed = after - before
    return passed.days + (passed.seconds >= _HALF_A_DAY)


def due_from(due_at: datetime) -> datetime:
    """The moment from which a question that is due at `due_at` counts as due: 12 hours earlier.

    It matches `elapsed_days`: whoever studies a little earlier each day gets the day's questions.
    """
    return due_at - _DUE_AHEAD


def rating_of(attempt: ScoredAttempt) -> Rating:
    """Correct is Good. Unsure with the right selection is Hard, a pass. Everything else is
    Again.
    """
    if attempt.outcome is CORRECT:
        return _GOOD
    if attempt.outcome is UNSURE and attempt.is_correct:
        return _HARD
    return _AGAIN


def recalls(attempt: ScoredAttempt) -> bool:
    """Whether the scheduler counts the answer as a pass, and not as forgotten."""
    return rating_of(attempt) is not _AGAIN


def review(
    memory: Memory | None, last_answered_at: datetime | None, attempt: ScoredAttempt
) -> Memory:
    """The state after one more attempt.

    `attempt.answered_at` must be in `datetime.timezone.utc` and not before `last_answered_at`,
    which is None for the first attempt.
    """
    rating = rating_of(attempt)
    if memory is None or last_answered_at is None:
        stability, difficulty, interval = _FIRST[rating - 1]
        return Memory(stability, difficulty, attempt.answered_at + interval)
    days = elapsed_days(last_answered_at, attempt.answered_at)
    stability, difficulty = reviewed(memory.stability, memory.difficulty, days, rating)
    return Memory(stability, difficulty, due_after(attempt.answered_at, stability))


def reviewed(stability: float, difficulty: float, days: int, rating: Rating) -> tuple[float, float]:
    """Stability and difficulty after one more attempt, so many whole days after the one before."""
    if days < 1:
        factor = _SAME_DAY[rating - 1] * stability ** -_P[19]
        if rating is not _AGAIN and factor < 1.0:
            factor = 1.0
        stability *= factor
    else:
        recall = (1 + _FACTOR * days / stability) ** _DECAY
        stability = (
            _forgotten(stability, difficulty, recall)
            if rating is _AGAIN
            else _recalled(stability, difficulty, recall, rating)
        )
    difficulty += (10.0 - difficulty) * _DRIFT[rating - 1] / 9.0
    difficulty = _EASY_PULL + (1 - _P[7]) * difficulty
    # Without min() and max(), which take as long as half of the arithmetic.
    if stability < STABILITY_MIN:
        stability = STABILITY_MIN
    if difficulty < MIN_DIFFICULTY:
        difficulty = MIN_DIFFICULTY
    elif difficulty > MAX_DIFFICULTY:
        difficulty = MAX_DIFFICULTY
    return stability, difficulty


def due_after(answered_at: datetime, stability: float) -> datetime:
    """When a question is due that was last answered at `answered_at`, and has this stability."""
    return answered_at + _interval(stability)


def _interval(stability: float) -> timedelta:
    return _bounded(round(stability / _FACTOR * _RETENTION))


@lru_cache(maxsize=50_000)
def _bounded(days: int) -> timedelta:
    return timedelta(days=min(max(days, 1), _SCHEDULER.maximum_interval))


def retrievability(memory: Memory, last_answered_at: datetime, now: datetime) -> float:
    """The predicted probability, 0..1, that the question would be recalled at `now`."""
    days = max(0, elapsed_days(last_answered_at, now))
    return float((1 + _FACTOR * days / memory.stability) ** _DECAY)


# Values that do not depend on the history. Each is computed exactly as the package does, because
# the order of floating-point operations is part of the result.
_P: Final = _SCHEDULER.parameters
DECAY: Final = float(_P[20])
"""The exponent of the forgetting curve, without its sign."""
_DECAY: Final = -_P[20]
_FACTOR: Final = 0.9 ** (1 / _DECAY) - 1
_RETENTION: Final = _SCHEDULER.desired_retention ** (1 / _DECAY) - 1
_AGAIN: Final = Rating.Again
_HARD: Final = Rating.Hard
_GOOD: Final = Rating.Good
_RATINGS: Final = (_AGAIN, _HARD, _GOOD, Rating.Easy)


def _initial_difficulty(rating: Rating) -> float:
    return float(_P[4] - math.e ** (_P[5] * (rating - 1)) + 1)


def _first(rating: Rating) -> tuple[float, float, timedelta]:
    stability = max(_P[rating - 1], STABILITY_MIN)
    difficulty = min(max(_initial_difficulty(rating), MIN_DIFFICULTY), MAX_DIFFICULTY)
    return stability, difficulty, _interval(stability)


# Indexed by rating - 1, because a dictionary would call the slow hash of Enum.
_FIRST: Final = tuple(_first(rating) for rating in _RATINGS)
"""Stability, difficulty and the time until the question is due, after a first attempt."""
_SAME_DAY: Final = tuple(math.e ** (_P[17] * (rating - 3 + _P[18])) for rating in _RATINGS)
_DRIFT: Final = tuple(-(_P[6] * (rating - 3)) for rating in _RATINGS)
_EASY_PULL: Final = _P[7] * _initial_difficulty(Rating.Easy)
_GROWTH: Final = math.e ** _P[8]
_SHORT_TERM_LOSS: Final = math.e ** (_P[17] * _P[18])


def _recalled(stability: float, difficulty: float, recall: float, rating: Rating) -> float:
    growth: float = 1 + _GROWTH * (11 - difficulty) * stability ** -_P[9] * (
        math.e ** ((1 - recall) * _P[10]) - 1
    ) * (_P[15] if rating is _HARD else 1)
    return stability * growth


def _forgotten(stability: float, difficulty: float, recall: float) -> float:
    long_term: float = (
        _P[11]
        * difficulty ** -_P[12]
        * ((stability + 1) ** _P[13] - 1)
        * math.e ** ((1 - recall) * _P[14])
    )
    return min(long_term, float(stability / _SHORT_TERM_LOSS))
