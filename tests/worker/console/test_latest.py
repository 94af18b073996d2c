"""Values that are read in the background: once for everybody, never older than an act."""

import asyncio

import pytest

from worker.console.latest import Latest
from worker.errors import DatabaseAway


class Source:
    """Gives 1, 2, 3 and so on, each when it is let."""

    def __init__(self) -> None:
        self.calls = 0
        self.let = asyncio.Semaphore(0)
        self.fails = False

    async def __call__(self, before: int | None) -> int:
        self.calls += 1
        now = self.calls
        await self.let.acquire()
        if self.fails:
            raise DatabaseAway("away")
        return now


async def test_a_crowd_reads_once_and_waits_for_nobody() -> None:
    source = Source()
    latest = Latest(source, 0.0)
    crowd = [asyncio.create_task(latest.get(60)) for _ in range(10)]
    source.let.release()
    assert {*await asyncio.gather(*crowd)} == {1}
    assert [await latest.get(0) for _ in range(10)] == [1] * 10
    assert source.calls == 2
    await latest.close()


async def test_whoever_comes_after_the_start_does_not_start_again() -> None:
    source = Source()
    latest = Latest(source, 60.0)
    latest.start()
    source.let.release()
    assert [await latest.get(60), await latest.get(60)] == [1, 1]
    assert source.calls == 1
    await latest.close()


async def test_after_an_act_nothing_from_before_it_is_shown() -> None:
    source = Source()
    latest = Latest(source, 60.0)
    source.let.release()
    assert await latest.get(0) == 1
    latest.outdate()
    before = asyncio.create_task(latest.get(0))
    await asyncio.sleep(0)
    latest.outdate()  # while it is read
    after = asyncio.create_task(latest.get(0))
    await asyncio.sleep(0)
    source.let.release()
    source.let.release()
    assert (await before, await after) == (2, 3)
    assert await latest.get(0) == 3


async def test_a_failure_is_told_and_passes() -> None:
    source = Source()
    latest = Latest(source, 0.0)
    source.fails = True
    for _ in range(2):
        source.let.release()
        with pytest.raises(DatabaseAway):
            await latest.get(60)
    source.fails = False
    source.let.release()
    assert await latest.get(60) == 3
    await latest.close()
