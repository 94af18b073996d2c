"""The fold: from the attempts on one (user, question), in their total order, to its progress.

The law (docs/contract.md) rests on this file: progress is a function of the set of attempts, and
never of the order in which they arrive.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from schemas.words import CORRECT, UNSURE, WRONG, Outcome
from worker.domain.schedule import Memory, due_after, elapsed_days, rating_of, review, reviewed
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


def fold(progress: Progress | None, attempts: Sequence[ScoredAttempt]) -> Progress | None:
    """Folds `attempts` into `progress`. They must be sorted, and later than everything in it."""
    # This runs once for each attempt, so it is written for speed: numbers instead of truth values,
    # fields by position, in the order of `Progress`, and none of them built before the end.
    if progress is None and attempts:
        progress, attempts = _begun(attempts[0]), attempts[1:]
    if progress is None or not attempts:
        return progress
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
        (stability, difficulty, _),
    ) = progress
    for attempt in attempts:
        at, outcome = attempt.answered_at, attempt.outcome
        days = elapsed_days(last_answered_at, at)
        attempts_count += 1
        recent_unsure <<= 1
        if outcome is CORRECT:
            correct_count += 1
            correct_run += 1
            if correct_run > best_run:
                best_run = correct_run
            spaced_run = spaced_run + 1 if days else 1
            if first_correct_at is None:
                first_correct_at = at
        else:
            if outcome is WRONG:
                wrong_count += 1
            else:
                unsure_count += 1
                recent_unsure |= 1
            correct_run = spaced_run = 0
            lapse_count += last_outcome is CORRECT
        stability, difficulty = reviewed(stability, difficulty, days, rating_of(attempt))
        last_outcome, last_answered_at = outcome, at
    return Progress(
        attempts_count,
        correct_count,
        wrong_count,
        unsure_count,
        correct_run,
        best_run,
        spaced_run,
        recent_unsure & (1 << _RECENT) - 1,
        lapse_count,
        first_correct_at,
        last_outcome,
        last_answered_at,
        Memory(stability, difficulty, due_after(last_answered_at, stability)),
    )


def _begun(attempt: ScoredAttempt) -> Progress:
    """The progress after a first attempt."""
    at, outcome = attempt.answered_at, attempt.outcome
    correct = 1 if outcome is CORRECT else 0
    wrong = 1 if outcome is WRONG else 0
    unsure = 1 if outcome is UNSURE else 0
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
        review(None, None, attempt),
    )
