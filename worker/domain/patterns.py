"""The pattern of a question's history. The policy's thresholds are settings."""

from schemas.words import CORRECT, Pattern
from worker.domain.fold import Progress
from worker.domain.policy import Policy

_SOLID_RUN = 3
"""The number of correct attempts in a row from which an answer counts as solid."""
_HESITANT_OF_FOUR = 2
_TO_REVIEW = (Pattern.RELAPSED, Pattern.STUCK, Pattern.LEECH)


def pattern_of(progress: Progress, policy: Policy) -> Pattern:
    """The first pattern that applies, in the order of docs/contract.md."""
    last_correct = progress.last_outcome is CORRECT
    if (
        progress.spaced_run >= _SOLID_RUN
        and progress.memory.stability >= policy.mastered_stability_days
    ):
        return Pattern.MASTERED
    if progress.lapse_count >= policy.leech_lapses:
        return Pattern.LEECH
    if (progress.attempts_count >= policy.stuck_attempts and progress.best_run < _SOLID_RUN) or (
        progress.attempts_count >= policy.stuck_attempts_never_correct
        and progress.correct_count == 0
    ):
        return Pattern.STUCK
    if not last_correct and progress.correct_count > 0:
        return Pattern.RELAPSED
    if last_correct and progress.lapse_count > 0 and progress.correct_run < _SOLID_RUN:
        return Pattern.RECOVERING
    if progress.recent_unsure.bit_count() >= _HESITANT_OF_FOUR:
        return Pattern.HESITANT
    if progress.attempts_count >= 2 and progress.correct_count == progress.attempts_count:
        return Pattern.KNOWN
    return Pattern.LEARNING


def wants_review(pattern: Pattern) -> bool:
    """Whether a session that touched a question with this pattern asks for a review."""
    return pattern in _TO_REVIEW
