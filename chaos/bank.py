"""The question bank of the run: made from a seed, written once, and never changed after that.

It writes the tables of the study application, as docs/contract.md and docs/architecture.md
describe them.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import asyncpg

CHOICES: Final = 4
_TOPICS_EACH: Final = 3
_WITHDRAWN_SHARE: Final = 0.04
_DELETED_SHARE: Final = 0.03


@dataclass(frozen=True, slots=True)
class Question:
    """One published question; a withdrawn or deleted one can't be answered any more."""

    id: int
    user_id: int
    topic_id: int
    pub_id: str
    correct_choice: int
    withdrawn: bool
    deleted: bool


def made_up(seed: int, users: int, questions_each: int) -> list[Question]:
    """The same bank for the same seed."""
    rng = random.Random(seed)
    return [
        Question(
            id=user * 10_000 + number,
            user_id=user,
            topic_id=user * 10 + number % _TOPICS_EACH,
            pub_id=f"pub-{user}-{number}",
            correct_choice=rng.randrange(CHOICES),
            withdrawn=(draw := rng.random()) < _WITHDRAWN_SHARE,
            deleted=_WITHDRAWN_SHARE <= draw < _WITHDRAWN_SHARE + _DELETED_SHARE,
        )
        for user in range(1, users + 1)
        for number in range(questions_each)
    ]


async def publish(url: str, bank: list[Question]) -> None:
    """Writes the bank into the (empty) tables."""
    connection = await asyncpg.connect(url)
    try:
        await connection.executemany(
            "INSERT INTO study_topics (id, user_id) VALUES ($1, $2)",
            sorted({(each.topic_id, each.user_id) for each in bank}),
        )
        await connection.executemany(
            "INSERT INTO study_questions (id, user_id, study_topic_id, correct_choice, deleted_at)"
            " VALUES ($1, $2, $3, $4, CASE WHEN $5 THEN now() END)",
            [(q.id, q.user_id, q.topic_id, q.correct_choice, q.deleted) for q in bank],
        )
        await connection.executemany(
            "INSERT INTO published (pub_id, kind, source_id, deleted)"
            " VALUES ($1, 'question', $2, $3)",
            [(q.pub_id, q.id, q.withdrawn) for q in bank],
        )
    finally:
        await connection.close()


def save(path: Path, bank: list[Question]) -> None:
    """Hands the bank to the viewers."""
    path.write_text(json.dumps([asdict(question) for question in bank]))


def load(path: Path) -> list[Question]:
    """What `save` wrote."""
    return [Question(**fields) for fields in json.loads(path.read_text())]
