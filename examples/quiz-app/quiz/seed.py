"""Fills an empty database: 3 topics, 60 questions, and 20 users with 2,000 answers.

python -m quiz.seed
"""

import asyncio
import random
from datetime import UTC, datetime, timedelta

from quiz.database import engine, sessions
from quiz.models import Answer, Question, Round, Topic, User

CAPITALS = (
    "Albania Tirana, Austria Vienna, Belgium Brussels, Bulgaria Sofia, Croatia Zagreb, Denmark"
    " Copenhagen, Estonia Tallinn, Finland Helsinki, France Paris, Germany Berlin, Greece Athens,"
    " Hungary Budapest, Ireland Dublin, Italy Rome, Latvia Riga, Norway Oslo, Poland Warsaw,"
    " Portugal Lisbon, Spain Madrid, Sweden Stockholm"
)
USERS = 20
ROUNDS_OF_EACH = 20
DAYS = 120


def _question(topic: Topic, prompt: str, right: str, wrong: list[str], n: int) -> Question:
    choices = wrong[:]
    choices.insert(n % 4, right)
    return Question(topic=topic, prompt=prompt, choices=choices, answer=n % 4)


def questions() -> list[Question]:
    """Three topics with 20 questions each."""
    capitals, sums, products = (
        Topic(slug="capitals", title="Capitals of Europe"),
        Topic(slug="sums", title="Sums"),
        Topic(slug="times-tables", title="Times tables"),
    )
    pairs = [pair.split() for pair in CAPITALS.split(", ")]
    found = []
    for n, (country, capital) in enumerate(pairs):
        others = [pairs[(n + step) % len(pairs)][1] for step in (3, 7, 11)]
        found.append(_question(capitals, f"What is the capital of {country}?", capital, others, n))
        a, b = 13 + 7 * n, 28 + 5 * n
        near = [str(a + b + step) for step in (-10, 1, 10)]
        found.append(_question(sums, f"What is {a} + {b}?", str(a + b), near, n + 1))
        a, b = 3 + n % 7, 6 + n // 3
        near = [str(a * b + step) for step in (-a, 1, b)]
        found.append(_question(products, f"What is {a} × {b}?", str(a * b), near, n + 2))  # noqa: RUF001
    return found


def history(all_questions: list[Question], users: list[User], now: datetime) -> list[Round]:
    """Rounds of five answers, some hours apart. Users get better, each at a pace of their own."""
    chance = random.Random(2_000)  # noqa: S311
    by_topic: dict[str, list[Question]] = {}
    for question in all_questions:
        by_topic.setdefault(question.topic.slug, []).append(question)
    found = []
    for user in users:
        talent = chance.uniform(0.3, 0.7)
        days = sorted(chance.sample(range(1, DAYS), ROUNDS_OF_EACH), reverse=True)
        for n, day in enumerate(days):
            questions_of_topic = by_topic[chance.choice(sorted(by_topic))]
            at = now - timedelta(days=day, minutes=chance.randrange(600))
            done = Round(user_id=user.id, topic_id=questions_of_topic[0].topic_id, finished_at=at)
            knows = talent + 0.3 * n / ROUNDS_OF_EACH
            for place, question in enumerate(chance.sample(questions_of_topic, 5)):
                said: int | None = question.answer
                if chance.random() > knows:
                    wrong = [n for n in range(4) if n != question.answer]
                    said = chance.choice([None, *wrong])
                done.answers.append(
                    Answer(
                        question_id=question.id,
                        choice=said,
                        answered_at=at - timedelta(seconds=10 * (5 - place)),
                    )
                )
            found.append(done)
    return found


async def seed() -> None:
    """Adds everything, in one transaction."""
    async with sessions() as database, database.begin():
        made = questions()
        users = [User(name=f"user{n:02}") for n in range(1, USERS + 1)]
        database.add_all([*made, *users])
        await database.flush()
        database.add_all(history(made, users, datetime.now(UTC)))
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(seed())
