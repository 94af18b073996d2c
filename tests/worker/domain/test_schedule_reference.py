"""The arithmetic of `worker.domain.schedule` is the `fsrs` package's, bit for bit.

The package counts full periods of 24 hours between two reviews. So it gets the same history on a
calendar of its own, on which the elapsed days of docs/contract.md are such periods.
"""

import random
from datetime import timedelta

from fsrs import Card, Scheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import MONDAY, RIGHT, WRONG, scored
from tests.worker.domain.strategies import ANSWERS, MINUTES
from worker.domain.schedule import Memory, rating_of, retrievability, review
from worker.domain.scoring import ScoredAttempt

_REFERENCE = Scheduler(learning_steps=(), relearning_steps=(), enable_fuzzing=False)

_DAY = timedelta(days=1)
_HALF_A_DAY = timedelta(hours=12)
_WAITS = st.one_of(MINUTES, st.integers(0, 60 * 24 * 4_000))


def _agree(attempts: list[ScoredAttempt]) -> None:
    calendar = attempts[0].answered_at
    card = Card(card_id=1, due=calendar)
    memory: Memory | None = None
    last = calendar
    for position, attempt in enumerate(attempts):
        memory = review(memory, last if position else None, attempt)
        calendar += (attempt.answered_at - last + _HALF_A_DAY) // _DAY * _DAY
        card, _ = _REFERENCE.review_card(card, rating_of(attempt), calendar)
        last = attempt.answered_at
        # Equal, not close: a fold that goes on from a stored state must come to the same.
        assert memory == (card.stability, card.difficulty, last + (card.due - calendar))
        for days in (0, 1, 30):
            assert retrievability(
                memory, last, last + timedelta(days=days, hours=-11 if days else 11)
            ) == _REFERENCE.get_card_retrievability(card, calendar + timedelta(days=days))


@given(st.lists(st.tuples(_WAITS, ANSWERS), min_size=1, max_size=40))
@settings(max_examples=300, deadline=None)
def test_a_history_is_scheduled_as_the_package_does(
    answers: list[tuple[int, tuple[int | None, bool]]],
) -> None:
    at, attempts = MONDAY, []
    for position, (wait, (choice, unsure)) in enumerate(answers):
        at += timedelta(minutes=wait)
        attempts.append(scored(choice, at, unsure=unsure, position=position))

    _agree(attempts)


def test_long_histories_are_scheduled_as_the_package_does() -> None:
    """Those of one answer repeated run into every bound there is."""
    source = random.Random(6)
    kinds = [(RIGHT, False), (WRONG, False), (RIGHT, True), (None, True)]
    for days in (0, 1, 7, 400):
        for kind in [*kinds, None]:
            at, attempts = MONDAY, []
            for position in range(300):
                at += timedelta(days=days if days < 400 or position < 5 else 1, seconds=1)
                choice, unsure = kind or source.choice(kinds)
                attempts.append(scored(choice, at, unsure=unsure, position=position))

            _agree(attempts)
