"""Who was erased, and when, so that older answers are not stored again.

A row stays for ever, because a phone may come back after years. It has a user id and a time.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store.driver import fetch
from worker.store.literals import as_text, texts

_BEHIND: Final = text(
    "SELECT publication.pub_id, erasure.erased_at FROM published AS publication"
    " JOIN study_questions AS question ON question.id = publication.source_id"
    " LEFT JOIN ingest_erasures AS erasure ON erasure.user_id = question.user_id"
    " WHERE publication.kind = 'question'"
    f" AND publication.pub_id = ANY({as_text('pub_ids', 'text')})"
)

_REMEMBER: Final = text(
    "INSERT INTO ingest_erasures (user_id, erased_at) VALUES (:user_id, clock_timestamp())"
    " ON CONFLICT (user_id) DO UPDATE SET erased_at = excluded.erased_at RETURNING erased_at"
)


async def behind(
    connection: AsyncConnection, pub_ids: Collection[str]
) -> dict[str, datetime | None]:
    """The time at which the owner of each question was erased, by published id, or None if never.
    This includes withdrawn publications and deleted questions. Unknown ids are left out.
    """
    rows = await fetch(connection, _BEHIND, {"pub_ids": texts(pub_ids)})
    return {row[0]: row[1] for row in rows}


async def remember(connection: AsyncConnection, user_id: int) -> datetime:
    """Records that the user is erased now, and returns the time. Hold the user's lock."""
    erased_at: datetime = (await connection.execute(_REMEMBER, {"user_id": user_id})).scalar_one()
    return erased_at
