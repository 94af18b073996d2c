"""Which viewers have fallen silent, by a rule that leaves out whoever may only be on holiday."""

from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from worker.store.engine import transaction
from worker.store.operate import viewers

_PUBLISHED = (
    "INSERT INTO ingest_inbox (client_session_uuid, content_digest, user_id, viewer, received_at)"
    " SELECT gen_random_uuid(), sha256('x'), 1, :viewer, now() - day * interval '1 day'"
    " FROM unnest(CAST(:days AS integer[])) AS day"
)

_DAYS = {
    "stopped": (8, 13, 20, 27, 60),
    "long-ago": (22, 27, 34, 41),
    "on": (1, 8, 13, 20, 27),
    "new": (8, 9, 10, 11, 12, 13),
    "seldom": (8, 20, 27),
    "once": (8,),
    "without-grant": (8, 13, 20, 27),
}
"""The days before today on which each has published."""


async def test_silent_is_who_published_every_week_and_stopped_lately(engine: AsyncEngine) -> None:
    for viewer, days in _DAYS.items():
        await make.execute(engine, _PUBLISHED, viewer=viewer, days=[*days])
    asked = [*(viewer for viewer in _DAYS if viewer != "without-grant"), "unknown"]
    async with transaction(engine) as connection:
        assert await viewers.fallen_silent(connection, asked) == ["stopped"]
