"""Published ids, and the questions that they stand for."""

from collections.abc import Collection
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.words import SkipReason
from worker.store.driver import fetch
from worker.store.literals import texts


class Question(NamedTuple):
    """A question that an attempt may count for."""

    question_id: int
    user_id: int
    topic_id: int


_RESOLVE: Final = text(
    "SELECT publication.pub_id, publication.deleted, question.id, question.user_id,"
    " question.study_topic_id, question.deleted_at IS NOT NULL"
    " FROM published AS publication"
    " LEFT JOIN study_questions AS question ON question.id = publication.source_id"
    " WHERE publication.kind = 'question'"
    " AND publication.pub_id = ANY(CAST(CAST(:pub_ids AS text) AS text[]))"
)

_BEHIND: Final = text(
    "SELECT publication.pub_id, question.id, question.user_id FROM published AS publication"
    " JOIN study_questions AS question ON question.id = publication.source_id"
    " WHERE publication.kind = 'question' AND publication.pub_id = ANY(CAST(:pub_ids AS text[]))"
)

_GRANTS: Final = text(
    "SELECT viewer, user_id FROM viewer_grants WHERE viewer = ANY(CAST(:viewers AS text[]))"
)


async def resolve(
    connection: AsyncConnection, pub_ids: Collection[str]
) -> dict[str, Question | SkipReason]:
    """What each published id stands for; one that is missing in the answer is unknown."""
    resolved: dict[str, Question | SkipReason] = {}
    rows = await fetch(connection, _RESOLVE, {"pub_ids": texts(pub_ids)})
    for pub_id, withdrawn, question_id, user_id, topic_id, question_deleted in rows:
        if withdrawn:
            resolved[pub_id] = SkipReason.WITHDRAWN
        elif question_id is None or question_deleted:
            resolved[pub_id] = SkipReason.QUESTION_DELETED
        else:
            resolved[pub_id] = Question(question_id, user_id, topic_id)
    return resolved


async def behind(
    connection: AsyncConnection, pub_ids: Collection[str]
) -> dict[str, tuple[int, int]]:
    """(question_id, user_id) behind each published id, withdrawn and deleted ones included."""
    rows = await connection.execute(_BEHIND, {"pub_ids": list(pub_ids)})
    return {pub_id: (question_id, user_id) for pub_id, question_id, user_id in rows}


async def grants(connection: AsyncConnection, viewers: Collection[str]) -> dict[str, set[int]]:
    """The principals granted to each viewer that has any grant at all."""
    granted: dict[str, set[int]] = {}
    for viewer, user_id in await fetch(connection, _GRANTS, {"viewers": list(viewers)}):
        granted.setdefault(viewer, set()).add(user_id)
    return granted
