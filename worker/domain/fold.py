"""The fold: one (user, question)'s attempts, in the one total order, become its progress.

The law rests here: progress is a function of the set of attempts, never of their arrival.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from schemas.words import CORRECT, UNSURE, WRONG, Outcome
from worker.domain.schedule import Memory, review
from worker.domain.scoring import ScoredAttempt

_RECENT = 4


class Progress(NamedTuple):
    """What a non-empty history of attempts comes to. Times are UTC."""

    attempts_count: int
    correct_count: int
    wrong_count: int
    unsure_count: int
    correct_run: int
    """Correct attempts in a row at the end."""
    best_run: int
    """The longest run of correct attempts there ever was."""
    spaced_run: int
    """Correct attempts in a row at the end, each on a later UTC day than the one before."""
    recent_unsure: int
    """Of the last four attempts, which were unsure: bit 0 is the last."""
    lapse_count: int
    """Correct attempts directly followed by one that was not."""
    first_correct_at: datetime | None
    last_outcome: Outcome
    last_answered_at: datetime
    memory: Memory


def fold(progress: Progress | None, attempts: Iterable[ScoredAttempt]) -> Progress | None:
    """Folds `attempts`, sorted and all later than what `progress` holds, into it."""
    for attempt in attempts:
        progress = advance(progress, attempt)
    return progress


def advance(progress: Progress | None, attempt: ScoredAttempt) -> Progress:
    """One step of the fold."""
    at, outcome = attempt.answered_at, attempt.outcome
    # Counts, and not truth values; and by position, in the order of `Progress`: this is called
    # once for each attempt there is.
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
        same_day = at.date() == last_answered_at.date()
        spaced_run = 1 if same_day else spaced_run + 1
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
