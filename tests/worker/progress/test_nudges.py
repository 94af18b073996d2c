"""Nudges: to whom, and at most one under way for each user and viewer."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from tests import factories as make
from tests.broker_fixtures import Broker
from worker.broker.publisher import Publisher
from worker.domain.records import Change, Mark
from worker.progress import nudges as module
from worker.progress.nudges import Nudges

USER = 42
pytestmark = pytest.mark.broker


def changed(version: int, viewer: str | None = "phone", user_id: int = USER) -> Change:
    return Change(user_id, viewer, Mark("e", version))


@pytest.fixture
async def nudges(broker: Broker, engine: AsyncEngine) -> AsyncIterator[Nudges]:
    channel = await broker.channel()
    for viewer in ("phone", "tablet", "silent", "stranger"):
        queue = await channel.declare_queue(amqp.progress_queue(viewer), durable=True)
        await queue.bind(amqp.RESULTS_EXCHANGE, amqp.progress_key(viewer))
        await make.grant(engine, viewer, 7 if viewer == "stranger" else USER)
    await make.execute(engine, "UPDATE viewer_grants SET asked_at = now() WHERE viewer <> 'silent'")
    async with Publisher(broker.settings, "progress") as publisher:
        yield Nudges(engine, publisher)


async def taken(broker: Broker, viewer: str) -> list[int]:
    """The versions of the nudges that wait for the viewer."""
    queue = await (await broker.channel()).get_queue(amqp.progress_queue(viewer), ensure=False)
    found = []
    while (message := await queue.get(no_ack=True, fail=False)) is not None:
        assert message.type == amqp.PROGRESS_NUDGE_TYPE
        found.append(json.loads(message.body)["version"])
    return found


async def test_the_other_viewers_that_ask_are_nudged(broker: Broker, nudges: Nudges) -> None:
    nudges.note([changed(3), changed(2, "tablet")])
    await nudges.nudge()
    assert await taken(broker, "tablet") == [3]
    assert await taken(broker, "phone") == []
    assert await taken(broker, "silent") == []
    assert await taken(broker, "stranger") == []


async def test_who_asked_long_ago_is_not_nudged(
    broker: Broker, nudges: Nudges, engine: AsyncEngine
) -> None:
    await make.execute(engine, "UPDATE viewer_grants SET asked_at = now() - interval '2 hours'")
    nudges.note([changed(3)])
    await nudges.nudge()
    assert await taken(broker, "tablet") == []


async def test_only_one_is_under_way_and_the_last_change_is_told(
    broker: Broker, nudges: Nudges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UNDER_WAY", 60.0)
    for version in (1, 2, 3):
        nudges.note([changed(version)])
        await nudges.nudge()
    assert await taken(broker, "tablet") == [1]
    # When the first is gone.
    nudges._under_way = dict.fromkeys(nudges._under_way, 0.0)
    await nudges.nudge()
    assert await taken(broker, "tablet") == [3]


async def test_who_asks_can_be_nudged_again_at_once_and_is_not_told_what_it_gets(
    broker: Broker, nudges: Nudges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UNDER_WAY", 60.0)
    nudges.note([changed(1)])
    await nudges.nudge()
    nudges.note([changed(2)])
    await nudges.nudge()
    nudges.asked("tablet", USER)
    await nudges.nudge()
    assert await taken(broker, "tablet") == [1]
    nudges.note([changed(3)])
    await nudges.nudge()
    assert await taken(broker, "tablet") == [3]


async def test_it_runs_until_it_is_stopped_and_outlasts_a_broker_that_is_away(
    broker: Broker, nudges: Nudges
) -> None:
    running = asyncio.create_task(nudges.run())
    nudges.note([changed(1)])
    assert (await broker.take(amqp.progress_queue("tablet"))).body
    await broker.cut("progress")
    nudges.asked("tablet", USER)
    nudges.note([changed(2)])
    nudges.stop()
    await running
