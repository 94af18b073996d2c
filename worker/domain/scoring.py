"""Scoring one answer. This is the only place where an outcome is derived."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from schemas.words import CORRECT, UNSURE, WRONG, Outcome


class ScoredAttempt(NamedTuple):
    """One scored answer to one question.

    Attempts compare in the order of the fold, so the fields stand in that order: effective time,
    time as sent (or else the effective time), session, position.
    """

    answered_at: datetime
    ordered_at: datetime
    client_session_uuid: UUID
    position: int
    outcome: Outcome
    is_correct: bool | None


def outcome_of(selected_choice: int | None, correct_choice: int, is_unsure: bool) -> Outcome | None:
    """The outcome, where unsure beats a selection. None if there is no answer."""
    if is_unsure:
        return UNSURE
    if selected_choice is None:
        return None
    return CORRECT if selected_choice == correct_choice else WRONG


def was_right(selected_choice: int | None, correct_choice: int) -> bool | None:
    """Whether the selection was right, whatever the outcome. None without a selection."""
    return None if selected_choice is None else selected_choice == correct_choice
