"""`due`: the questions that a user should review, the most forgotten first."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from worker.domain.schedule import Memory, retrievability
from worker.operate.repair import check_known
from worker.store.engine import transaction
from worker.store.operate import due as stored
from worker.store.operate.due import Question


class Due(NamedTuple):
    """A question, and the predicted probability, 0..1, that the user would recall it."""

    question: Question
    retrievability: float


async def due(engine: AsyncEngine, user_id: int, at: datetime) -> list[Due]:
    """What is due at a time, the most forgotten first. Raises `NoHistory` for an unknown user."""
    await check_known(engine, user_id)
    async with transaction(engine) as connection:
        found = await stored.due(connection, user_id, at)
    recalled = [
        Due(each, retrievability(_memory(each), each.last_answered_at, at)) for each in found
    ]
    return sorted(recalled, key=lambda due: (due.retrievability, due.question.question_id))


def _memory(question: Question) -> Memory:
    return Memory(question.stability, question.difficulty, question.due_at)
