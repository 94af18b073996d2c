"""When a question is due again: FSRS-6, as the `fsrs` package computes it.

The formulas are those of https://github.com/open-spaced-repetition/awesome-fsrs/wiki/The-Algorithm
(FSRS-6, default parameters). No learning steps, no fuzzing: the same history gives the same
schedule, to the last bit.
"""

import hashlib
import json
from datetime import datetime
from importlib.metadata import version
from typing import Final, NamedTuple

from fsrs import Card, Rating, Scheduler, State

from schemas.words import Outcome
from worker.domain.scoring import ScoredAttempt

# Without a card_id, every new Card sleeps a millisecond to make one.
_CARD_ID: Final = 1

_SCHEDULER: Final = Scheduler(learning_steps=(), relearning_steps=(), enable_fuzzing=False)

SCHEDULER_NAME: Final = "fsrs-6/{}/{}".format(
    version("fsrs"),
    hashlib.sha256(json.dumps(_SCHEDULER.to_dict(), sort_keys=True).encode()).hexdigest()[:12],
)
"""Algorithm, package version and digest of the parameters: stored beside every schedule, so
that one made by another scheduler is folded again and never carried on from."""


class Memory(NamedTuple):
    """FSRS's state of one question: stability in days, difficulty 1..10, next due time (UTC)."""

    stability: float
    difficulty: float
    due_at: datetime


def rating_of(attempt: ScoredAttempt) -> Rating:
    """Correct is Good; unsure with the right selection is Hard, a pass; all else is Again."""
    if attempt.outcome is Outcome.CORRECT:
        return Rating.Good
    if attempt.outcome is Outcome.UNSURE and attempt.is_correct:
        return Rating.Hard
    return Rating.Again


def review(
    memory: Memory | None, last_answered_at: datetime | None, attempt: ScoredAttempt
) -> Memory:
    """The state after one more attempt; `attempt.answered_at` is in `datetime.timezone.utc` and
    not before `last_answered_at`, which is None with the first.
    """
    if memory is None:
        card = Card(card_id=_CARD_ID, due=attempt.answered_at)
    else:
        card = Card(
            card_id=_CARD_ID,
            state=State.Review,
            stability=memory.stability,
            difficulty=memory.difficulty,
            due=memory.due_at,
            last_review=last_answered_at,
        )
    card, _ = _SCHEDULER.review_card(card, rating_of(attempt), attempt.answered_at)
    assert card.stability is not None and card.difficulty is not None
    return Memory(card.stability, card.difficulty, card.due)


def retrievability(memory: Memory, last_answered_at: datetime, now: datetime) -> float:
    """The predicted probability, 0..1, that the question would be recalled at `now`."""
    card = Card(
        card_id=_CARD_ID,
        state=State.Review,
        stability=memory.stability,
        difficulty=memory.difficulty,
        due=memory.due_at,
        last_review=last_answered_at,
    )
    return _SCHEDULER.get_card_retrievability(card, now)
