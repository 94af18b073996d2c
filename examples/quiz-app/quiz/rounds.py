"""What happens to the answers of a round."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from quiz.models import Answer, Question, Round, Topic, User

QUESTIONS = 5


async def questions_for(database: AsyncSession, user: User, topic: Topic) -> Sequence[Question]:
    """The questions of the next round: some that the user has answered least often."""
    times = (
        select(func.count(Answer.id))
        .join(Round)
        .where(Answer.question_id == Question.id, Round.user_id == user.id)
        .scalar_subquery()
    )
    found = await database.scalars(
        select(Question)
        .where(Question.topic_id == topic.id, Question.archived_at.is_(None))
        .order_by(times, Question.prompt)
        .limit(QUESTIONS)
    )
    return found.all()


async def finish(
    database: AsyncSession, user: User, topic: Topic, choices: Mapping[UUID, int | None]
) -> Round:
    """Stores a round. `choices` has what the user chose, by question."""
    now = datetime.now(UTC)
    done = Round(user_id=user.id, topic_id=topic.id, finished_at=now)
    done.answers = [
        Answer(question_id=question_id, choice=choice, answered_at=now)
        for question_id, choice in choices.items()
    ]
    database.add(done)
    await database.flush()
    return done


async def get(database: AsyncSession, round_id: UUID) -> Round | None:
    """A round with its answers and their questions."""
    return await database.scalar(
        select(Round)
        .where(Round.id == round_id)
        .options(
            selectinload(Round.answers).selectinload(Answer.question), selectinload(Round.topic)
        )
    )


def score(done: Round) -> int:
    """The number of right answers."""
    return sum(answer.choice == answer.question.answer for answer in done.answers)
