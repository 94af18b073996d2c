"""Published ids and their questions, and the viewers and their grants."""

from collections.abc import Collection
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.domain.records import Resolved
from worker.store.driver import fetch
from worker.store.literals import as_text, texts

GRANTS_READ: Final = 100
"""The most grants of a viewer that are read without asking for particular users. The server of an
application may have a million.
"""

_QUESTIONS: Final = (
    "FROM ours.published AS publication"
    " JOIN ours.study_questions AS question ON question.id = publication.source_id"
    " WHERE publication.kind = 'question'"
)
_OWNED: Final = (
    f"{_QUESTIONS} AND NOT publication.deleted AND question.deleted_at IS NULL"
    f" AND publication.pub_id = ANY({as_text('owned', 'text')})"
)

_RESOLVE: Final = text(
    "SELECT pub_id, deleted, source_id, NULL, NULL FROM ours.published"
    f" WHERE kind = 'question' AND pub_id = ANY({as_text('pub_ids', 'text')})"
    f" UNION ALL SELECT publication.pub_id, NULL, NULL, question.user_id, NULL {_OWNED}"
    " UNION ALL SELECT NULL, NULL, NULL, few.user_id, wanted.viewer"
    " FROM unnest(CAST(:viewers AS text[])) AS wanted (viewer) CROSS JOIN LATERAL"
    " (SELECT user_id FROM ours.viewer_grants AS its WHERE its.viewer = wanted.viewer"
    f" LIMIT {GRANTS_READ + 1}) AS few"
)

_GRANTED: Final = text(
    "SELECT viewer, user_id FROM ours.viewer_grants WHERE (viewer, user_id) IN"
    " (SELECT * FROM unnest(CAST(:viewers AS text[]), CAST(:users AS bigint[])))"
)

_OWNERS: Final = text(f"SELECT publication.pub_id, question.user_id {_OWNED}")

_BEHIND: Final = text(
    f"SELECT publication.pub_id, question.id, question.user_id {_QUESTIONS}"
    " AND publication.pub_id = ANY(CAST(:pub_ids AS text[]))"
)


async def resolve(
    connection: AsyncConnection,
    pub_ids: Collection[str],
    owned: Collection[str],
    viewers: Collection[str],
) -> Resolved:
    """The questions behind `pub_ids`, the owners of the questions `owned`, and the grants of the
    viewers: of each no more than some, and then at least one more than `GRANTS_READ`.
    """
    questions: dict[str, int] = {}
    taken_back: set[str] = set()
    owners: dict[str, int | None] = {}
    granted: dict[str, set[int]] = {}
    wanted = {"pub_ids": texts(pub_ids), "owned": texts(owned), "viewers": list(viewers)}
    for pub_id, withdrawn, question_id, user_id, viewer in await fetch(
        connection, _RESOLVE, wanted
    ):
        if question_id is not None:
            questions[pub_id] = question_id
            if withdrawn:
                taken_back.add(pub_id)
        elif viewer is None:
            owners[pub_id] = user_id
        else:
            granted.setdefault(viewer, set()).add(user_id)
    return Resolved(questions, taken_back, owners, granted)


async def granted(
    connection: AsyncConnection, pairs: Collection[tuple[str, int]]
) -> dict[str, set[int]]:
    """Those of the grants (viewer, user_id) that exist."""
    wanted = {"viewers": [each for each, _ in pairs], "users": [each for _, each in pairs]}
    found: dict[str, set[int]] = {}
    for viewer, user_id in await fetch(connection, _GRANTED, wanted):
        found.setdefault(viewer, set()).add(user_id)
    return found


async def owners(connection: AsyncConnection, pub_ids: Collection[str]) -> dict[str, int | None]:
    """The owner's user id by published id, None for a shared question. Withdrawn and deleted
    questions are left out.
    """
    rows = await fetch(connection, _OWNERS, {"owned": texts(pub_ids)})
    return {row[0]: row[1] for row in rows}


async def behind(
    connection: AsyncConnection, pub_ids: Collection[str]
) -> dict[str, tuple[int, int | None]]:
    """(question_id, owner or None) by published id, including withdrawn and deleted ones."""
    rows = await fetch(connection, _BEHIND, {"pub_ids": list(pub_ids)})
    return {pub_id: (question_id, user_id) for pub_id, question_id, user_id in rows}
