"""A question bank for simulated users: made from random numbers, written into the content tables.

It stands in for the study application, which owns these tables. `chaos` uses it as well.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

CHOICES: Final = 4
_QUESTIONS_EACH: Final = 60
_TOPICS_EACH: Final = 4
_WITHDRAWN_SHARE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Question:
    """One published question. A withdrawn or deleted one can't be answered any more."""

    id: int
    user_id: int
    topic_id: int
    pub_id: str
    correct_choice: int
    withdrawn: bool = False
    deleted: bool = False


def made_up(
    rng: random.Random,
    users: int,
    questions_each: int = _QUESTIONS_EACH,
    *,
    deleted_share: float = 0.0,
) -> list[Question]:
    """A bank for `users` users. One question in twenty is withdrawn."""
    return [
        Question(
            id=user * 10_000 + number,
            user_id=user,
            topic_id=user * 10 + number % _TOPICS_EACH,
            pub_id=f"pub-{user}-{number}",
            correct_choice=rng.randrange(CHOICES),
            withdrawn=(draw := rng.random()) < _WITHDRAWN_SHARE,
            deleted=_WITHDRAWN_SHARE <= draw < _WITHDRAWN_SHARE + deleted_share,
        )
        for user in range(1, users + 1)
        for number in range(questions_each)
    ]


async def publish(url: str, questions: Sequence[Question]) -> None:
    """Writes the bank into the (empty) tables of the database at `url`."""
    connection = await asyncpg.connect(url)
    try:
        await connection.executemany(
            "INSERT INTO study_topics (id, user_id, name) VALUES ($1, $2, $3)",
            sorted({(each.topic_id, each.user_id, f"Topic {each.topic_id}") for each in questions}),
        )
        await connection.executemany(
            "INSERT INTO study_questions (id, user_id, study_topic_id, correct_choice, deleted_at)"
            " VALUES ($1, $2, $3, $4, CASE WHEN $5 THEN now() END)",
            [(q.id, q.user_id, q.topic_id, q.correct_choice, q.deleted) for q in questions],
        )
        await connection.executemany(
            "INSERT INTO published (pub_id, kind, source_id, deleted)"
            " VALUES ($1, 'question', $2, $3)",
            [(q.pub_id, q.id, q.withdrawn) for q in questions],
        )
    finally:
        await connection.close()
