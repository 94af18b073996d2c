"""Reads what a user's report is made of, in one snapshot."""

from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from worker.domain.patterns import pattern_of
from worker.domain.policy import Policy
from worker.errors import NoHistory
from worker.operate.report.picture import Picture, QuestionThen, picture
from worker.operate.report.retold import Retold, Review, retell
from worker.store import attempts
from worker.store.engine import transaction
from worker.store.operate import report as stored
from worker.store.operate.report import Named

_UNNAMED = Named(None, None, None)


async def gather(engine: AsyncEngine, policy: Policy, user_id: int, at: datetime) -> Picture:
    """The user's report as of `at`, by the answers that were given until then.

    It folds them again, so that it is as true of a moment in the past as of now. Raises `NoHistory`
    if there are none.
    """
    at = at.astimezone(UTC)
    found: list[tuple[int, int, Retold]] = []
    async with transaction(engine, isolation="repeatable_read") as connection:
        async for question_id, topic_id, given in attempts.log(connection, user_id):
            if retold := retell(given, at):
                found.append((question_id, topic_id, retold))
        names = await stored.names(connection, user_id, [question_id for question_id, *_ in found])
    if not found:
        raise NoHistory(f"User {user_id} has no study history before {at:%Y-%m-%d %H:%M} UTC.")
    questions: list[QuestionThen] = []
    reviews: list[Review] = []
    for question_id, topic_id, (progress, its_reviews) in found:
        named = names.get(question_id, _UNNAMED)
        reviews += its_reviews
        questions.append(
            QuestionThen(
                question_id=question_id,
                pub_id=named.pub_id,
                title=named.title,
                topic_id=topic_id,
                topic_name=named.topic_name or "",
                attempts=progress.attempts_count,
                lapses=progress.lapse_count,
                last_outcome=progress.last_outcome,
                last_answered_at=progress.last_answered_at,
                pattern=pattern_of(progress, policy),
                stability=progress.memory.stability,
                difficulty=progress.memory.difficulty,
                due_at=progress.memory.due_at,
            )
        )
    return picture(user_id, questions, reviews, at)
