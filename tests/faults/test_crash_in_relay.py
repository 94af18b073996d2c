"""A relay is killed between taking, publishing, confirm and commit, and another one continues.

Nothing is lost. Messages that are published again have the same id and the same order.
"""

import pytest

from tests import factories as make
from tests.broker_fixtures import VIEWER
from tests.factories import incoming
from tests.faults.scene import Process, Scene, until
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest

pytestmark = pytest.mark.broker

PUBLISH = "relay .*Basic.Publish study.results/"
CONFIRM = "relay .*Basic.Ack"
TAKE = "WITH RECURSIVE kind"
NOTE = "INSERT INTO .*ingest_told"

BOUNDARIES = {
    "begun": ("database", "to_server", TAKE),
    "taken": ("database", "to_client", TAKE),
    "published": ("messages", "to_server", PUBLISH),
    "some published": ("messages", "to_server", "relay .*Basic.Publish study.followups/"),
    "confirmed by the broker": ("messages", "to_client", CONFIRM),
    "noted": ("database", "to_client", NOTE),
    "commit on its way": ("database", "to_server", f"COMMIT of {NOTE}"),
    "answer on its way": ("database", "to_client", f"COMMIT of {NOTE}"),
}


async def test_a_relay_killed_at_each_boundary_loses_nothing(scene: Scene) -> None:
    before: list[str] = []
    for name, (wire, way, pattern) in BOUNDARIES.items():
        for _ in range(2):
            batch = scene.batch()
            await Ingest(scene.engine, Policy())([incoming(batch, VIEWER)])
            scene.sent.append((batch, None))
        ids = [str(row["message_id"]) for row in await make.outbox(scene.engine)]
        there = getattr(scene, wire).hold(way, pattern)
        relay = scene.start("relay", wired=True)
        await scene.comes(there, relay)
        await scene.kill(relay)

        left = [str(row["message_id"]) for row in await make.outbox(scene.engine)]
        assert left == ([] if name == "answer on its way" else ids), name
        if left:
            await recovered(scene)
        before += ids
    found = await scene.holds()
    told = list(dict.fromkeys(each.message_id for each in found.told))
    jobs = {each.message_id for each in found.jobs}
    assert told == [each for each in before if each not in jobs]  # the order of first arrivals


async def recovered(scene: Scene) -> Process:
    """Another relay empties the outbox."""
    relay = scene.start("relay", wired=False)
    await until(lambda: make.count(scene.engine, "outbox"), (0).__eq__)
    await relay.stop()
    return relay
