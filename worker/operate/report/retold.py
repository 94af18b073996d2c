"""What a user's answers to one question come to at a moment, and what each review was expected to
give. Pure.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from worker.domain.fold import Progress, fold
from worker.domain.schedule import elapsed_days, recalls, retrievability
from worker.domain.scoring import ScoredAttempt


class Review(NamedTuple):
    """An answer at least one elapsed day after the one before it: 12 hours, as days are rounded."""

    answered_at: datetime
    recalled: bool
    """Whether the scheduler counts it as a pass."""
    predicted: float
    """The probability, 0..1, that the scheduler gave it just before the answer."""


class Retold(NamedTuple):
    """The progress at the moment, and the reviews until then."""

    progress: Progress
    reviews: list[Review]


def retell(attempts: Iterable[ScoredAttempt], at: datetime) -> Retold | None:
    """Folds the answers given until `at`, in whatever order they come. None if there are none."""
    progress: Progress | None = None
    reviews: list[Review] = []
    for attempt in sorted(each for each in attempts if each.answered_at <= at):
        answered_at = attempt.answered_at
        if progress and elapsed_days(progress.last_answered_at, answered_at):
            predicted = retrievability(progress.memory, progress.last_answered_at, answered_at)
            reviews.append(Review(answered_at, recalls(attempt), predicted))
        progress = fold(progress, [attempt])
    return progress and Retold(progress, reviews)
