"""A worker is killed while it rejects or defers a message: at each step on the way to the ack.

A rejection is committed before the original is acked, and a copy is confirmed before: whoever dies
in between leaves the message to come again, which is rejected as the same letter, or ingested once.
"""

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
DEFER = f"copies .*Basic.Publish /{amqp.RETRY_QUEUE_PREFIX}"


LETTER = ".*INSERT INTO ingest_dead_letters"


@pytest.mark.parametrize(
    ("server", "way", "where", "letters"),
    [
        ("database", "to_server", LETTER, 0),
        ("database", "to_client", LETTER, 0),
        ("database", "to_server", f"COMMIT of {LETTER}", 0),
        ("database", "to_client", f"COMMIT of {LETTER}", 1),
        ("messages", "to_server", ACK, 1),
    ],
    ids=["letter", "letter written", "commit", "committed", "ack"],
)
async def test_killed_while_rejecting(
    scene: Scene, server: str, way: str, where: str, letters: int
) -> None:
    there = getattr(scene, server).hold(way, where)
    worker = scene.start(wired=True)
    await scene.send(refused(), "nothing_resolved")
    await scene.comes(there, worker)
    await scene.kill(worker)
    await scene.returned(1)
    assert await make.count(scene.engine, "ingest_dead_letters") == letters
    await scene.recover(settled=1)
    assert await make.count(scene.engine, "ingest_dead_letters") == 1

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
