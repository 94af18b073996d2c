"""The outcome of an answer, and its effective time."""

from datetime import timedelta
from itertools import pairwise

import pytest

from schemas.words import Outcome
from tests.factories import MONDAY, scored
from worker.domain.scoring import outcome_of, was_right


@pytest.mark.parametrize(
    ("selected", "unsure", "outcome", "right"),
    [
        (1, False, Outcome.CORRECT, True),
        (2, False, Outcome.WRONG, False),
        (None, False, None, None),
        (1, True, Outcome.UNSURE, True),
        (2, True, Outcome.UNSURE, False),
        (None, True, Outcome.UNSURE, None),
        (0, False, Outcome.WRONG, False),
        (-1, False, Outcome.WRONG, False),
    ],
)
def test_unsure_beats_a_selection_and_no_selection_is_no_answer(
    selected: int | None, unsure: bool, outcome: Outcome | None, right: bool | None
) -> None:
    assert outcome_of(selected, 1, unsure) is outcome
    assert was_right(selected, 1) is right


def test_choice_zero_is_a_choice() -> None:
    assert outcome_of(0, 0, False) is Outcome.CORRECT
    assert was_right(0, 0) is True


def test_the_order_is_effective_time_then_time_as_sent_then_session_then_position() -> None:
    later = MONDAY + timedelta(hours=1)
    in_order = [
        scored(answered_at=MONDAY, session=9, position=9),
        scored(answered_at=later, session=9, position=9, sent_at=later),
        scored(answered_at=later, session=1, position=5, sent_at=later + timedelta(hours=1)),
        scored(answered_at=later, session=2, position=0, sent_at=later + timedelta(hours=1)),
        scored(answered_at=later, session=2, position=1, sent_at=later + timedelta(hours=1)),
    ]
    assert all(earlier < later for earlier, later in pairwise(in_order))
