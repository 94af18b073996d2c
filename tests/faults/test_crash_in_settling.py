"""A worker is killed while it parks or defers a message, at each step of copy, confirm and ack.

The copy is confirmed before the original is acked. So a worker that dies in between leaves the
message twice, and never loses it. A message that was deferred twice is ingested once. A message
that was parked twice is a dead letter twice.
"""

import asyncio

import pytest

from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from tests import factories as make
from tests.faults.scene import RETRY_DELAY, Scene, until
from worker.broker.topology import retry_queue
from worker.store import principals
from worker.store.engine import transaction

pytestmark = pytest.mark.broker

ACK = "consumer .*Basic.Ack"
CONFIRM = "copies .*Basic.Ack"
PARK = f"copies .*Basic.Publish {amqp.DEAD_EXCHANGE}/"
DEFER = f"copies .*Basic.Publish /{amqp.RETRY_QUEUE_PREFIX}"


async def test_killed_while_parking(scene: Scene) -> None:
    async def step(there: asyncio.Event, copies: int) -> None:
        worker = scene.start(wired=True)
        await scene.send(refused(), "nothing_resolved")
        await scene.comes(there, worker)
        await scene.kill(worker)
        await scene.returned(1)
        assert await scene.broker.depth(amqp.DEAD_QUEUE) == parked + copies
        await scene.recover(settled=1)
        assert await scene.broker.depth(amqp.DEAD_QUEUE) == parked + copies + 1

    parked = 0
    await step(scene.database.hold("to_server", "COMMIT of .*INSERT INTO outbox"), 0)
    parked = 1
    await step(scene.messages.hold("to_server", PARK), 0)
    parked = 2
    await step(scene.messages.hold("to_client", CONFIRM), 1)
    parked = 4
    await step(scene.messages.hold("to_server", ACK), 1)

    found = await scene.holds()
    assert {each.body["status"] for each in found.told} == {"rejected"}


def refused() -> AttemptBatch:
    """Its question was never published."""
    return make.batch(make.right("unknown"))


@pytest.mark.parametrize(
    ("way", "where", "copies"),
    [("to_server", DEFER, 0), ("to_client", CONFIRM, 1), ("to_server", ACK, 1)],
    ids=["copy on its way", "confirm on its way", "not acked"],
)
async def test_killed_while_deferring(scene: Scene, way: str, where: str, copies: int) -> None:
    """The batch can't be ingested for the moment, because its user is locked by somebody."""
    await scene.history()
    there = scene.messages.hold(way, where)  # type: ignore[arg-type]
    batch = scene.batch()
    async with transaction(scene.engine) as other:
        await principals.lock(other, [1])
        worker = scene.start(wired=True, lock_timeout=0.2)
        await scene.send(batch)
        await scene.comes(there, worker)
        await scene.kill(worker)
    # The original, and the copy when its time is up.
    await scene.returned(1 + copies)
    await until(lambda: scene.broker.depth(retry_queue(RETRY_DELAY)), (0).__eq__)
    assert not await scene.ingested(batch)

    recovered = await scene.recover(settled=1 + copies)
    dispositions = sorted(line["disposition"] for line in recovered.lines("delivery.settled"))
    assert dispositions == ["duplicate", "ingested"][-1 - copies :]
    await scene.holds()


async def test_killed_when_a_copy_came_back_from_its_wait(scene: Scene) -> None:
    """It has been through a worker: its second one dies in the transaction, the third ends it."""
    batch = scene.batch()
    async with transaction(scene.engine) as other:
        await principals.lock(other, [1])
        worker = scene.start(wired=True, lock_timeout=0.2, retry_delays="[0.1, 0.2]")
        again = scene.messages.hold("to_client", f"Basic.Deliver {amqp.RETURN_EXCHANGE}/")
        await scene.send(batch)
        await scene.comes(again, worker)
        await scene.kill(worker)
    await scene.returned(1)
    recovered = await scene.recover(settled=1)
    (line,) = recovered.lines("delivery.settled")
    assert (line["disposition"], line["retries"]) == ("ingested", 0)
    await scene.holds()
