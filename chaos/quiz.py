"""Simulated study sessions: what a user answers, when, and what is unusual about it.

Pure, and the same for the same random numbers. Most answers are from about now, some from a week
ago, some from a clock that is ahead or has lost its year, and some have no time.
"""

import random
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from chaos.bank import CHOICES, Question

CALENDAR: Final = timedelta(days=60)
"""The time span that the run simulates, so that schedules and patterns develop."""


def session(
    rng: random.Random, bank: list[Question], users: list[int], passed: float, skew: float
) -> list[dict[str, Any]]:
    """The attempts of one session, as the viewer's own table stores them.

    `passed` (0 to 1) is the part of the run that is over. `skew` is how many seconds the viewer's
    clock is ahead. One session in twenty-five can't be ingested, and one attempt in thirty is
    unusual.
    """
    user = rng.choice(users)
    mine = [question for question in bank if question.user_id == user]
    draw = rng.random()
    if draw < 0.02:  # two people on one device
        other = rng.choice([question for question in bank if question.user_id != user])
        chosen = [*rng.sample(mine, 3), other]
    elif draw < 0.03:
        return [_attempt(f"gone-{rng.getrandbits(32)}", 0, None) for _ in range(2)]
    elif draw < 0.04:
        gone = _attempt(f"gone-{rng.getrandbits(32)}", 0, None)
        return [_attempt(rng.choice(mine).pub_id, None, None), gone]
    else:
        chosen = rng.choices(mine, k=rng.randint(1, 12))  # a question may come twice
    at = datetime.now(UTC) - CALENDAR * (1 - passed) + timedelta(seconds=skew)
    if rng.random() < 0.1:
        at -= timedelta(days=rng.uniform(0, 8))
    answers = [
        _answer(rng, question, at + timedelta(seconds=20 * n)) for n, question in enumerate(chosen)
    ]
    if all(each["selected_choice"] is None and not each["is_unsure"] for each in answers):
        answers[-1]["is_unsure"] = True  # the library records no session without an answer
    return answers


def _answer(rng: random.Random, question: Question, at: datetime) -> dict[str, Any]:
    right = rng.random() < 0.65
    choice = question.correct_choice if right else (question.correct_choice + 1) % CHOICES
    unsure = rng.random() < 0.15
    skipped = rng.random() < 0.05
    written: str | None = at.isoformat()
    match rng.randrange(60):
        case 0:
            written = None
        case 1:
            written = at.replace(tzinfo=None).isoformat()
        case 2:
            written = at.isoformat(sep=" ")
        case 3:
            written = (datetime.now(UTC) + timedelta(days=rng.uniform(0, 3))).isoformat()
        case 4:
            written = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(rng.random())).isoformat()
    return _attempt(question.pub_id, None if skipped else choice, written, unsure=unsure)


def _attempt(
    pub_id: str, choice: int | None, answered_at: str | None, *, unsure: bool = False
) -> dict[str, Any]:
    return {
        "question_pub_id": pub_id,
        "selected_choice": choice,
        "is_unsure": unsure,
        "answered_at": answered_at,
        "duration_ms": None if answered_at is None else 1_000 + len(pub_id),
    }
