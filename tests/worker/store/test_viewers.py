"""What viewers have left, and which have fallen silent. Whoever may only be on holiday has not."""

from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from worker.store import silence
from worker.store.engine import transaction
from worker.store.operate import viewers

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
        await make.published_days_ago(engine, viewer, days)
        if viewer != "without-grant":
            await make.grant(engine, viewer, 1)
            await make.grant(engine, viewer, 2)
    await make.grant(engine, "unknown", 1)
    async with transaction(engine) as connection:
        assert await silence.fallen_silent(connection) == ["stopped"]


async def test_the_newest_letters_are_those_that_count(engine: AsyncEngine) -> None:
    await make.execute(
        engine,
        "INSERT INTO ingest_dead_letters (key, died_at, reason, detail, viewer, routing_key,"
        " properties, body, body_bytes) SELECT sha256(n::text::bytea), now() - CASE WHEN n > :most"
        " THEN interval '1 hour' ELSE interval '30 days' END, 'malformed', '', 'ada', 'a', 'x',"
        " 'x', 1 FROM generate_series(1, :most + 5) AS n",
        most=viewers.REJECTED_MAX,
    )
    async with transaction(engine) as connection:
        now = await connection.scalar(text("SELECT now()"))
        trace = (await viewers.traces(connection, ["ada"]))["ada"]
    assert trace.rejected_lately == 5
    assert trace.last_rejected_at is not None
    assert now - trace.last_rejected_at < timedelta(hours=2)
