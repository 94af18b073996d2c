"""Users, some at a time, for the operations that go through all of them."""

from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

AT_ONCE: Final = 200
"""Users that one statement walks over: it stays short, however many users there are."""

BEFORE_ALL: Final = -(2**63)
"""A user id that nobody has and that is before all others."""


class Part(NamedTuple):
    """Which users an operation is limited to. The default is all of them."""

    since: datetime | None = None
    """Only users with a session that was ingested or corrected at this time or later."""
    shard: int = 1
    """From 1 to `shards`: only the users of this shard, by their id's remainder."""
    shards: int = 1


class Walked(NamedTuple):
    """The next users after some user id."""

    last: int | None
    """The last user that was walked over, wanted or not. It is None if there are no more."""
    wanted: list[int]
    """Those that belong to the part, in order."""


def _next(after: str) -> str:
    # Two looks into an index, instead of reading all sessions to find the distinct users.
    return "least({})".format(
        ", ".join(
            f"(SELECT min(user_id) FROM ours.{table} WHERE user_id > {after})"
            for table in ("study_quiz_sessions", "study_question_progress")
        )
    )


_WALK: Final = text(
    f"WITH RECURSIVE walked (user_id) AS (SELECT {_next('CAST(:after AS bigint)')}"
    f" UNION ALL SELECT {_next('walked.user_id')} FROM walked WHERE user_id IS NOT NULL)"
    " SELECT user_id, mod(mod(user_id, :shards) + :shards, :shards) = :shard - 1"
    " AND (CAST(:since AS timestamptz) IS NULL OR EXISTS (SELECT FROM ours.study_quiz_sessions AS"
    " session WHERE session.user_id = walked.user_id AND session.updated_at >= :since))"
    f" FROM walked WHERE user_id IS NOT NULL LIMIT :at_once"
)


async def walk(connection: AsyncConnection, part: Part, after: int) -> Walked:
    """The next users who have attempts, voided or not, or progress; the ids are above `after`."""
    wanted = {"after": after, "at_once": AT_ONCE, **part._asdict()}
    found = (await connection.execute(_WALK, wanted)).all()
    if not found:
        return Walked(None, [])
    return Walked(found[-1][0], [user_id for user_id, is_wanted in found if is_wanted])


_KNOWN: Final = text(
    "SELECT EXISTS (SELECT FROM ours.study_quiz_sessions WHERE user_id = :user_id)"
    " OR EXISTS (SELECT FROM ours.study_question_progress WHERE user_id = :user_id)"
)


async def is_known(connection: AsyncConnection, user_id: int) -> bool:
    """Whether the user has attempts, voided or not, or progress."""
    return bool(await connection.scalar(_KNOWN, {"user_id": user_id}))
