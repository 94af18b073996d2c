"""What a correction replaced in an attempt, which is kept with the attempt.

Each element of the column `replaced` is what the attempt was once, the oldest first: its correct
choice, whether it was right, its outcome and its effective time; when it was replaced; and whether
its session was already void by then.
"""

from typing import Final

KEPT: Final = (
    "replaced = coalesce(attempt.replaced, '[]') || jsonb_build_object("
    "'correct_choice', attempt.correct_choice, 'is_correct', attempt.is_correct,"
    " 'outcome', attempt.outcome, 'answered_at', attempt.answered_at,"
    " 'replaced_at', clock_timestamp(), 'was_void', session.voided_at IS NOT NULL)"
)
"""An assignment of an UPDATE of `attempt` that is joined with its `session`."""
