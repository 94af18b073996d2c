"""A real review log, as one device would send it and as two would: one progress, to the last bit.

Folding in arrival order instead would leave a third of the cards with a wrong stability.
"""

from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from tests.factories import Published, Review
from tests.worker.domain import naive
from worker.domain.policy import Policy
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.operate.repair import verify

DEVICE_SYNCS_EVERY = timedelta(days=7)


def _as_two_devices(sessions: list[list[Review]]) -> list[int]:
    """The order of arrival when every other session waits for the week's end."""
    start = sessions[0][0].at

    def arrives(place: int) -> tuple[timedelta, int]:
        ended = sessions[place][-1].at - start
        weeks = ended // DEVICE_SYNCS_EVERY + 1
        return (weeks * DEVICE_SYNCS_EVERY if place % 2 else ended), place

    return sorted(range(len(sessions)), key=arrives)


async def _ingest(engine: AsyncEngine, deliveries: list[Incoming]) -> None:
    ingest = Ingest(engine, Policy())
    for start in range(0, len(deliveries), 4):
        await ingest(deliveries[start : start + 4])


async def test_two_devices_leave_the_progress_that_one_would(engine: AsyncEngine) -> None:
    sessions = make.review_log()
    cards = sorted({review.card for session in sessions for review in session})
    published = await make.publish(engine, len(cards), user_id=1)
    questions: dict[int, Published] = dict(zip(cards, published, strict=True))
    deliveries = [make.sent(*make.reviewed(session, questions)) for session in sessions]
    arrival = _as_two_devices(sessions)
    assert arrival != sorted(arrival)

    await _ingest(engine, deliveries)
    one_device = await make.progress(engine)
    await make.forget(engine)
    await _ingest(engine, [deliveries[place] for place in arrival])
    two_devices = await make.progress(engine)

    assert len(two_devices) == len(cards) == 1_205
    assert two_devices == one_device
    assert await verify(engine, 1, Policy()) == []
    for key, attempts in (await make.log(engine)).items():
        stability, difficulty, due_at = naive.schedule(attempts)
        row = two_devices[key]
        assert row["stability"] == pytest.approx(stability, rel=1e-9)
        assert row["difficulty"] == pytest.approx(difficulty, rel=1e-9)
        assert row["due_at"] == due_at
        assert row == row | naive.counts(attempts)
