"""A question bank in the database: users, topics, questions and what is published of them."""

import random
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.engine import transaction

CHOICES: Final = 4
_TOPICS_EACH: Final = 4
_QUESTIONS_EACH: Final = 60
_WITHDRAWN_SHARE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Question:
    """One published question, as its viewer holds it."""

    id: int
    user_id: int
    topic_id: int
    pub_id: str
    correct_choice: int
    withdrawn: bool = False


def made_up(users: int, rng: random.Random) -> list[Question]:
    """A bank for `users` learners; one question in twenty is withdrawn."""
    return [
        Question(
            id=user * 1_000 + number,
            user_id=user,
            topic_id=user * 10 + number % _TOPICS_EACH,
            pub_id=f"pub-{user}-{number:03d}",
            correct_choice=rng.randrange(CHOICES),
            withdrawn=rng.random() < _WITHDRAWN_SHARE,
        )
        for user in range(1, users + 1)
        for number in range(_QUESTIONS_EACH)
    ]


async def is_published(engine: AsyncEngine, questions: list[Question]) -> bool:
    """Whether the bank is in the tables already."""
    async with transaction(engine) as connection:
        found = await connection.scalar(
            text("SELECT count(*) FROM published WHERE pub_id = ANY(:pub_ids)"),
            {"pub_ids": [question.pub_id for question in questions]},
        )
    return bool(found == len(questions))


async def publish(engine: AsyncEngine, questions: list[Question]) -> None:
    """Writes the bank into the (empty) tables."""
    topics = {question.topic_id: question.user_id for question in questions}
    async with transaction(engine) as connection:
        await connection.execute(
            text("INSERT INTO study_topics (id, user_id, name) VALUES (:id, :user_id, :name)"),
            [{"id": id, "user_id": user, "name": f"Topic {id}"} for id, user in topics.items()],
        )
        await connection.execute(
            text(
                "INSERT INTO study_questions (id, user_id, study_topic_id, correct_choice)"
                " VALUES (:id, :user_id, :topic_id, :correct_choice)"
            ),
            [
                {
                    "id": question.id,
                    "user_id": question.user_id,
                    "topic_id": question.topic_id,
                    "correct_choice": question.correct_choice,
                }
                for question in questions
            ],
        )
        await connection.execute(
            text(
                "INSERT INTO published (pub_id, kind, source_id, deleted)"
                " VALUES (:pub_id, 'question', :id, :withdrawn)"
            ),
            [
                {"pub_id": question.pub_id, "id": question.id, "withdrawn": question.withdrawn}
                for question in questions
            ],
        )
