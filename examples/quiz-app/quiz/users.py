"""Who the user is, and what they have done so far."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from quiz.models import Answer, Question, Round, Topic, User


async def sign_in(database: AsyncSession, name: str) -> User:
    """The user of this name, who may be new."""
    user = await database.scalar(select(User).where(User.name == name))
    if user is None:
        user = User(name=name)
        database.add(user)
        await database.flush()
    return user


async def topics(database: AsyncSession, user: User) -> Sequence[Row[Any]]:
    """Each topic with the user's numbers: `title`, `slug`, `answered` and `right`."""
    mine = (
        select(
            Question.topic_id,
            func.count().label("answered"),
            func.count().filter(Answer.choice == Question.answer).label("right"),
        )
        .join(Answer, Answer.question_id == Question.id)
        .join(Round, Round.id == Answer.round_id)
        .where(Round.user_id == user.id)
        .group_by(Question.topic_id)
        .subquery()
    )
    found = await database.execute(
        select(
            Topic.title,
            Topic.slug,
            func.coalesce(mine.c.answered, 0).label("answered"),
            func.coalesce(mine.c.right, 0).label("right"),
        )
        .outerjoin(mine, mine.c.topic_id == Topic.id)
        .order_by(Topic.title)
    )
    return found.all()
