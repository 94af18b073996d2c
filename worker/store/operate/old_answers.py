"""Which published ids of a file can't be answered, and why."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.words import SkipReason

UNKNOWN: Final = str(SkipReason.UNKNOWN_PUBLICATION)
_AT_ONCE: Final = 10_000

_STATES: Final = text(
    "SELECT publication.pub_id, publication.deleted,"
    " question.id IS NULL OR question.deleted_at IS NOT NULL AS gone"
    " FROM ours.published AS publication"
    " LEFT JOIN ours.study_questions AS question ON question.id = publication.source_id"
    " WHERE publication.kind = 'question'"
    " AND publication.pub_id = ANY(CAST(:pub_ids AS text[]))"
)


async def unpublished(connection: AsyncConnection, pub_ids: Sequence[str]) -> dict[str, str]:
    """The reason for which answers are skipped, by published id. Published questions are left
    out.
    """
    found: dict[str, str] = {}
    for start in range(0, len(pub_ids), _AT_ONCE):
        some = list(pub_ids[start : start + _AT_ONCE])
        found |= dict.fromkeys(some, UNKNOWN)
        for pub_id, withdrawn, gone in await connection.execute(_STATES, {"pub_ids": some}):
            if withdrawn:
                found[pub_id] = str(SkipReason.WITHDRAWN)
            elif gone:
                found[pub_id] = str(SkipReason.QUESTION_DELETED)
            else:
                del found[pub_id]
    return found
