"""The names of what a user's report shows. The answers themselves come from the log."""

from collections.abc import Collection
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class Named(NamedTuple):
    """What people call a question."""

    pub_id: str | None
    """One of the ids under which it is published now. None if there is none, so that nobody can
    ask it.
    """
    title: str | None
    topic_name: str | None


_NAMES: Final = text(
    "SELECT progress.study_question_id, progress.pub_ids[1], progress.title, topic.name"
    " FROM ours.study_progress AS progress"
    " LEFT JOIN ours.study_topics AS topic ON topic.id = progress.study_topic_id"
    " WHERE progress.user_id = :user_id"
    " AND progress.study_question_id = ANY(CAST(:question_ids AS bigint[]))"
)


async def names(
    connection: AsyncConnection, user_id: int, question_ids: Collection[int]
) -> dict[int, Named]:
    """The names of questions on which the user has progress."""
    rows = await connection.execute(
        _NAMES, {"user_id": user_id, "question_ids": list(question_ids)}
    )
    return {question_id: Named(*rest) for question_id, *rest in rows}
