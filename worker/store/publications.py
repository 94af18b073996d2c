"""Published ids and the questions that they stand for; viewers and whom they may write for."""

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.words import SkipReason
from worker.store.driver import fetch
from worker.store.literals import as_text, texts


class Question(NamedTuple):
    """A question that an attempt may count for."""

    question_id: int
    user_id: int
    topic_id: int


class Resolved(NamedTuple):
    """All that batches are planned by."""

    questions: Mapping[str, Question | SkipReason]
    """By published id; one that is missing is unknown."""
    granted: Mapping[str, set[int]]
    """The principals granted to each viewer that has any grant at all."""


_RESOLVE: Final = text(
    "SELECT publication.pub_id, publication.deleted, question.id, question.user_id,"
    " question.study_topic_id, question.deleted_at IS NOT NULL, NULL"
    " FROM published AS publication"
    " LEFT JOIN study_questions AS question ON question.id = publication.source_id"
    " WHERE publication.kind = 'question'"
    f" AND publication.pub_id = ANY({as_text('pub_ids', 'text')})"
    " UNION ALL SELECT NULL, NULL, NULL, user_id, NULL, NULL, viewer FROM viewer_grants"
    " WHERE viewer = ANY(CAST(:viewers AS text[]))"
)

_BEHIND: Final = text(
    "SELECT publication.pub_id, question.id, question.user_id FROM published AS publication"
    " JOIN study_questions AS question ON question.id = publication.source_id"
    " WHERE publication.kind = 'question' AND publication.pub_id = ANY(CAST(:pub_ids AS text[]))"
)


async def resolve(
    connection: AsyncConnection, pub_ids: Collection[str], viewers: Collection[str]
) -> Resolved:
    """What the published ids stand for, and whom the viewers may write for."""
    questions: dict[str, Question | SkipReason] = {}
    granted: dict[str, set[int]] = {}
    rows = await fetch(connection, _RESOLVE, {"pub_ids": texts(pub_ids), "viewers": list(viewers)})
    for pub_id, withdrawn, question_id, user_id, topic_id, question_deleted, viewer in rows:
        if pub_id is None:
            granted.setdefault(viewer, set()).add(user_id)
        elif withdrawn:
            questions[pub_id] = SkipReason.WITHDRAWN
        elif question_id is None or question_deleted:
            questions[pub_id] = SkipReason.QUESTION_DELETED
        else:
            questions[pub_id] = Question(question_id, user_id, topic_id)
    return Resolved(questions, granted)


async def behind(
    connection: AsyncConnection, pub_ids: Collection[str]
) -> dict[str, tuple[int, int]]:
    """(question_id, user_id) behind each published id, withdrawn and deleted ones included."""
    rows = await connection.execute(_BEHIND, {"pub_ids": list(pub_ids)})
    return {pub_id: (question_id, user_id) for pub_id, question_id, user_id in rows}
