"""The fold: from the attempts on one (user, question), in their total order, to its progress.

The law (docs/contract.md) rests on this file: progress is a function of the set of attempts, and
never of the order in which they arrive.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from schemas.words import CORRECT, UNSURE, WRONG, Outcome
from worker.domain.schedule import Memory, elapsed_days, review
from worker.domain.scoring import ScoredAttempt

_RECENT = 4


class Progress(NamedTuple):
    """The progress that a non-empty history of attempts gives. Times are UTC."""

    attempts_count: int
    correct_count: int
    wrong_count: int
    unsure_count: int
    correct_run: int
    """The number of correct attempts in a row at the end."""
    best_run: int
    """The longest run of correct attempts in the whole history."""
    spaced_run: int
    """Correct attempts in a row at the end, each at least one elapsed day after the one before."""
    recent_unsure: int
    """Which of the last four attempts were unsure. Bit 0 is the last attempt."""
    lapse_count: int
    """The number of correct attempts directly followed by one that is not correct."""
    first_correct_at: datetime | None
    last_outcome: Outcome
    last_answered_at: datetime
    memory: Memory


def fold(progress: Progress | None, attempts: Iterable[ScoredAttempt]) -> Progress | None:
    """Folds `attempts` into `progress`. They must be sorted, and later than everything in it."""
    for attempt in attempts:
        progress = advance(progress, attempt)
    return progress


def advance(progress: Progress | None, attempt: ScoredAttempt) -> Progress:
    """One step of the fold."""
    at, outcome = attempt.answered_at, attempt.outcome
    # This runs once for each attempt, so it is written for speed: numbers instead of truth values,
    # and fields by position, in the order of `Progress`.
    correct = 1 if outcome is CORRECT else 0
    wrong = 1 if outcome is WRONG else 0
    unsure = 1 if outcome is UNSURE else 0
    if progress is None:
        memory = review(None, None, attempt)
        return Progress(
            1,
            correct,
            wrong,
            unsure,
            correct,
            correct,
            correct,
            unsure,
            0,
            at if correct else None,
            outcome,
            at,
            memory,
        )
    (
        attempts_count,
        correct_count,
        wrong_count,
        unsure_count,
        correct_run,
        best_run,
        spaced_run,
        recent_unsure,
        lapse_count,
        first_correct_at,
        last_outcome,
        last_answered_at,
        memory,
    ) = progress
    if correct:
        correct_run += 1
        spaced_run = spaced_run + 1 if elapsed_days(last_answered_at, at) else 1
    else:
        correct_run = spaced_run = 0
        lapse_count += last_outcome is CORRECT
    return Progress(
        attempts_count + 1,
        correct_count + correct,
        wrong_count + wrong,
        unsure_count + unsure,
        correct_run,
        best_run if best_run > correct_run else correct_run,
        spaced_run,
        (recent_unsure << 1 | unsure) & (1 << _RECENT) - 1,
        lapse_count,
        first_correct_at or (at if correct else None),
        outcome,
        at,
        review(memory, last_answered_at, attempt),
    )
