"""A worker is killed while it collects a dead letter, and a relay while it replays some.

Every letter is kept once and told once; a replay that leaves a second time is the same message, so
what comes of it is a duplicate, or the same letter again.
"""

from dataclasses import replace
from typing import Any, Literal

import pytest

from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from tests import factories as make
from tests.broker_fixtures import VIEWER
from tests.faults.scene import RESULTS, Scene, until
from worker.domain.policy import Policy
from worker.domain.records import Original
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest

pytestmark = pytest.mark.broker

Boundary = tuple[Literal["database", "messages"], Literal["to_server", "to_client"], str]

LETTER = "INSERT INTO ingest_dead_letters"
TOLD = "COMMIT of .*INSERT INTO outbox"

COLLECTING: dict[str, Boundary] = {
    "letter": ("database", "to_server", LETTER),
    "letter written": ("database", "to_client", LETTER),
    "commit": ("database", "to_server", TOLD),
    "committed": ("database", "to_client", TOLD),
    "ack": ("messages", "to_server", "dead-letters .*Basic.Ack"),
}
KEPT = ("committed", "ack")


@pytest.mark.parametrize("where", COLLECTING)
async def test_killed_while_collecting(scene: Scene, where: str) -> None:
    batch = scene.batch()
    await scene.broker.publish(
        batch.model_dump_json(), type=amqp.ATTEMPT_BATCH_TYPE, expiration=0.001
    )
    await until(lambda: scene.broker.depth(amqp.DEAD_QUEUE), (1).__eq__)
    wire, way, pattern = COLLECTING[where]
    there = getattr(scene, wire).hold(way, pattern)
    worker = scene.start(wired=True)
    await scene.comes(there, worker)
    await scene.kill(worker)
    await until(lambda: scene.broker.depth(amqp.DEAD_QUEUE), (1).__eq__)
    assert await letters(scene) == (where in KEPT)

    another = scene.start(wired=False)
    await until(lambda: scene.broker.depth(amqp.DEAD_QUEUE), (0).__eq__)
    await until(lambda: make.count(scene.engine, "outbox"), (0).__eq__)
    await another.stop()
    assert await letters(scene) == 1
    assert await scene.broker.depth(RESULTS) == 1


TAKE = "SELECT message_id, letter_id"
DONE = "WITH gone AS .*DELETE FROM ingest_dead_letters"

REPLAYING: dict[str, Boundary] = {
    "begun": ("database", "to_server", TAKE),
    "taken": ("database", "to_client", TAKE),
    "published": ("messages", "to_server", f"replays .*Basic.Publish {amqp.RETURN_EXCHANGE}/"),
    "confirmed by the broker": ("messages", "to_client", "replays .*Basic.Ack"),
    "to be settled": ("database", "to_server", DONE),
    "settled": ("database", "to_client", DONE),
    "commit on its way": ("database", "to_server", f"COMMIT of {DONE}"),
    "answer on its way": ("database", "to_client", f"COMMIT of {DONE}"),
}
ARRIVED = (*list(REPLAYING)[3:],)
"""Where the broker has the message already."""


@pytest.mark.parametrize("where", REPLAYING)
async def test_killed_while_replaying(scene: Scene, where: str) -> None:
    good, bad = await rejected(scene)
    await asked(scene)
    wire, way, pattern = REPLAYING[where]
    there = getattr(scene, wire).hold(way, pattern)
    relay = scene.start("relay", wired=True)
    await scene.comes(there, relay)
    await scene.kill(relay)
    is_done = where == "answer on its way"
    left = 0 if is_done else 2
    assert await letters(scene) == await make.count(scene.engine, "ingest_replays") == left
    arrived = 2 if where in ARRIVED else 0
    await until(lambda: scene.broker.depth(amqp.ATTEMPTS_QUEUE), arrived.__eq__)

    if not is_done:
        again = scene.start("relay", wired=False)
        await until(lambda: make.count(scene.engine, "ingest_replays"), (0).__eq__)
        await again.stop()
    deliveries = 2 + (0 if is_done else arrived)
    worker = await scene.recover(settled=deliveries)
    settled: dict[str, list[str]] = {}
    for line in worker.lines("delivery.settled"):
        settled.setdefault(line["client_session_uuid"], []).append(line["disposition"])
    twice = deliveries // 2 - 1
    assert settled == {
        str(good.client_session_uuid): ["ingested", *["duplicate"] * twice],
        str(bad.client_session_uuid): ["rejected"] * (1 + twice),
    }
    (row,) = await make.rows(scene.engine, "SELECT * FROM ingest_dead_letters")
    assert row["client_session_uuid"] == bad.client_session_uuid
    assert await make.count(scene.engine, "ingest_inbox") == 1
    assert await make.count(scene.engine, "study_question_attempts") == len(good.attempts)


@pytest.mark.parametrize(
    ("way", "is_asked"), [("to_server", 0), ("to_client", 2)], ids=["commit", "committed"]
)
async def test_killed_while_asking_for_a_replay(
    scene: Scene, way: Literal["to_server", "to_client"], is_asked: int
) -> None:
    await rejected(scene)
    there = scene.database.hold(way, "COMMIT of .*ingest_audit")
    command = scene.start("dead replay --yes", wired=True)
    await scene.comes(there, command)
    await scene.kill(command)
    assert await make.count(scene.engine, "ingest_replays") == is_asked
    await asked(scene)
    assert await make.count(scene.engine, "ingest_replays") == await letters(scene) == 2


async def rejected(scene: Scene) -> tuple[AttemptBatch, AttemptBatch]:
    """Two dead letters: of one batch whose question is published by now, and of another."""
    withdrawn = scene.questions[-1]
    good, bad = make.batch(make.right(withdrawn)), make.batch(make.right("unknown"))
    await Ingest(scene.engine, Policy())([delivery(each) for each in (good, bad)])
    await make.execute(scene.engine, "UPDATE published SET deleted = false")
    await make.execute(scene.engine, "DELETE FROM outbox")
    assert await letters(scene) == 2
    return good, bad


def delivery(batch: AttemptBatch) -> Incoming:
    body = make.Sent(batch.model_dump_json().encode())
    return replace(
        make.incoming(batch, VIEWER), original=Original(body, amqp.attempts_key(VIEWER), None)
    )


async def asked(scene: Scene) -> None:
    """The command that asks for a replay has ended well."""
    command = scene.start("dead replay --yes", wired=False)
    assert await command.ended() == 0, command.log.read_text()


async def letters(scene: Scene) -> Any:
    return await make.count(scene.engine, "ingest_dead_letters")
