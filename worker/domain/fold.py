"""The fold: one (user, question)'s attempts, in the one total order, become its progress.

The law rests here: progress is a function of the set of attempts, never of their arrival.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from schemas.words import Outcome
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
    correct = attempt.outcome is Outcome.CORRECT
    wrong = attempt.outcome is Outcome.WRONG
    unsure = attempt.outcome is Outcome.UNSURE
    at = attempt.answered_at
    if progress is None:
        return Progress(
            attempts_count=1,
            correct_count=int(correct),
            wrong_count=int(wrong),
            unsure_count=int(unsure),
            correct_run=int(correct),
            best_run=int(correct),
            spaced_run=int(correct),
            recent_unsure=int(unsure),
            lapse_count=0,
            first_correct_at=at if correct else None,
            last_outcome=attempt.outcome,
            last_answered_at=at,
            memory=review(None, None, attempt),
        )
    run = progress.correct_run + 1 if correct else 0
    same_day = at.date() == progress.last_answered_at.date()
    return Progress(
        attempts_count=progress.attempts_count + 1,
        correct_count=progress.correct_count + correct,
        wrong_count=progress.wrong_count + wrong,
        unsure_count=progress.unsure_count + unsure,
        correct_run=run,
        best_run=max(progress.best_run, run),
        spaced_run=0 if not correct else 1 if same_day else progress.spaced_run + 1,
        recent_unsure=(progress.recent_unsure << 1 | unsure) & (1 << _RECENT) - 1,
        lapse_count=progress.lapse_count
        + (progress.last_outcome is Outcome.CORRECT and not correct),
        first_correct_at=progress.first_correct_at or (at if correct else None),
        last_outcome=attempt.outcome,
        last_answered_at=at,
        memory=review(progress.memory, progress.last_answered_at, attempt),
    )
