"""When a question is due again: FSRS-6, to the last bit as the `fsrs` package computes it.

The formulas are those of https://github.com/open-spaced-repetition/awesome-fsrs/wiki/The-Algorithm
(FSRS-6, default parameters). No learning steps, no fuzzing: the same history gives the same
schedule. The package is the reference: its parameters are read from it, its name and version
stand beside every schedule, and a test holds each result to equal the package's bit for bit.
The arithmetic stands here because around it the package copies a card, matches on its state and
makes a review log, which takes ten times as long.
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

SCHEDULER_NAME: Final = "fsrs-6/{}/{}".format(
    version("fsrs"),
    hashlib.sha256(json.dumps(_SCHEDULER.to_dict(), sort_keys=True).encode()).hexdigest()[:12],
)
"""Algorithm, package version and digest of the parameters: stored beside every schedule, so
that one made by another scheduler is folded again and never carried on from."""


class Memory(NamedTuple):
    """FSRS's state of one question: stability in days, difficulty 1..10, next due time (UTC)."""

    stability: float
    difficulty: float
    due_at: datetime


def rating_of(attempt: ScoredAttempt) -> Rating:
    """Correct is Good; unsure with the right selection is Hard, a pass; all else is Again."""
    if attempt.outcome is CORRECT:
        return _GOOD
    if attempt.outcome is UNSURE and attempt.is_correct:
        return _HARD
    return _AGAIN


def review(
    memory: Memory | None, last_answered_at: datetime | None, attempt: ScoredAttempt
) -> Memory:
    """The state after one more attempt; `attempt.answered_at` is in `datetime.timezone.utc` and
    not before `last_answered_at`, which is None with the first.
    """
    rating = rating_of(attempt)
    if memory is None or last_answered_at is None:
        stability, difficulty, interval = _FIRST[rating - 1]
        return Memory(stability, difficulty, attempt.answered_at + interval)
    stability, difficulty, _ = memory
    days = (attempt.answered_at - last_answered_at).days
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
    # Not by min and max: half the arithmetic takes as long as they do.
    if stability < STABILITY_MIN:
        stability = STABILITY_MIN
    if difficulty < MIN_DIFFICULTY:
        difficulty = MIN_DIFFICULTY
    elif difficulty > MAX_DIFFICULTY:
        difficulty = MAX_DIFFICULTY
    return Memory(stability, difficulty, attempt.answered_at + _interval(stability))


def _interval(stability: float) -> timedelta:
    return _bounded(round(stability / _FACTOR * _RETENTION))


@lru_cache(maxsize=50_000)
def _bounded(days: int) -> timedelta:
    return timedelta(days=min(max(days, 1), _SCHEDULER.maximum_interval))


def retrievability(memory: Memory, last_answered_at: datetime, now: datetime) -> float:
    """The predicted probability, 0..1, that the question would be recalled at `now`."""
    days = max(0, (now - last_answered_at).days)
    return float((1 + _FACTOR * days / memory.stability) ** _DECAY)


# What does not depend on the history, each computed as the package does: the order of floating
# point operations is part of the result.
_P: Final = _SCHEDULER.parameters
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


# By rating less one: a dictionary would call Enum's slow hash.
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
