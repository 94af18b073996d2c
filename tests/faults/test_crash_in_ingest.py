"""A worker is killed at every boundary of the way of a batch, and another one continues.

The proxy in front of each server decides where: it stops a message, or its answer. The process,
kill -9 and the servers are real, and the checker judges the result.
"""

import asyncio
import re
from functools import partial

import pytest

from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from tests.broker_fixtures import until
from tests.faults.scene import Scene

pytestmark = pytest.mark.broker

STATEMENTS = {
    "resolve": "FROM published.* FROM viewer_grants",
    "lock": "pg_advisory_xact_lock",
    "look": "SELECT now.* LEFT JOIN ingest_inbox",
    "standing": "JOIN study_questions AS question .*LEFT JOIN study_question_progress",
    "history": "FROM unnest.* JOIN study_question_attempts",
    "sessions": "SELECT id, client_session_uuid FROM study_quiz_sessions",
    "inbox": "INSERT INTO ingest_inbox",
    "write": "INSERT INTO study_quiz_sessions.*_attempts.*_progress.*outbox.*ingest_groups",
}
"""The ingest transaction's own, in order."""
ASIDES = re.compile(r"^\n|typeinfo")
"""The driver's own, once for each connection."""
COMMIT = "COMMIT of .*INSERT INTO outbox"
ACK = "consumer .*Basic.Ack"


async def test_every_statement_of_the_transaction_has_its_crash(scene: Scene) -> None:
    await scene.history()
    acked = scene.messages.watch("to_server", ACK)
    worker = scene.start(wired=True)
    await scene.send(scene.batch())
    await scene.comes(acked, worker)
    await worker.stop()
    passed = scene.database.passed
    (mine,) = {connection for connection, text in passed if re.search(COMMIT, text)}
    seen = [text for connection, text in passed if connection == mine and not ASIDES.search(text)]
    first, last = (
        next(n for n, text in enumerate(seen) if re.search(pattern, text, re.DOTALL))
        for pattern in (STATEMENTS["resolve"], COMMIT)
    )
    # What comes after it on this connection is another transaction's.
    statements = seen[first : last + 1]
    for statement, pattern in zip(statements, [*STATEMENTS.values(), COMMIT], strict=True):
        assert re.search(pattern, statement, re.DOTALL)


async def test_killed_after_each_statement(scene: Scene) -> None:
    await scene.history()
    for statement, pattern in STATEMENTS.items():
        batch = await killed(scene, scene.database.hold("to_client", pattern))
        assert not await scene.ingested(batch), statement
        await recovered(scene, "ingested")
    await scene.holds()


async def test_killed_during_commit_and_before_the_ack(scene: Scene) -> None:
    await scene.history()
    batch = await killed(scene, scene.database.hold("to_server", COMMIT))
    assert not await scene.ingested(batch)
    await recovered(scene, "ingested")
    for committed in (
        scene.database.hold("to_client", COMMIT),
        scene.messages.hold("to_server", ACK),
    ):
        batch = await killed(scene, committed)
        assert await scene.ingested(batch)
        await recovered(scene, "duplicate")
    await scene.holds()


async def killed(scene: Scene, there: asyncio.Event) -> AttemptBatch:
    """Sends a batch to a worker that is killed when it has come `there`."""
    worker = scene.start(wired=True)
    batch = scene.batch()
    await scene.send(batch)
    await scene.comes(there, worker)
    await scene.kill(worker)
    await scene.returned(1)
    return batch


async def recovered(scene: Scene, disposition: str) -> None:
    """Another worker finds the batch, delivered for the second time."""
    worker = await scene.recover(settled=1)
    (line,) = worker.lines("delivery.settled")
    assert (line["disposition"], line["delivery_count"]) == (disposition, 1)


async def test_killed_between_ack_and_the_next_delivery(scene: Scene) -> None:
    await scene.history()
    acked = scene.messages.watch("to_server", ACK)
    # The first message comes alone; with its ack the broker is asked for more.
    next_one = scene.messages.hold("to_client", "consumer .*Basic.Deliver", nth=2)
    worker = scene.start(wired=True)
    first, second = scene.batch(), scene.batch()
    await scene.send(first)
    await scene.comes(acked, worker)
    await scene.send(second)
    await scene.comes(next_one, worker)
    await scene.kill(worker)

    assert await scene.ingested(first)
    assert not await scene.ingested(second)
    await scene.returned(1)
    recovered = await scene.recover(settled=1)
    (line,) = recovered.lines("delivery.settled")
    assert line["disposition"] == "ingested"
    await scene.holds()


async def test_killed_before_the_one_ack_of_a_group(scene: Scene) -> None:
    # The first message comes alone; what has come after it is acked together.
    acks = scene.messages.hold("to_server", ACK, nth=2)
    batches = [scene.batch() for _ in range(5)]
    for batch in batches:
        await scene.send(batch)
    worker = scene.start(wired=True)
    await scene.comes(acks, worker)
    for batch in batches:
        await until(partial(scene.ingested, batch), bool)
    await scene.kill(worker)

    await scene.returned(4)
    recovered = await scene.recover(settled=4)
    assert {line["disposition"] for line in recovered.lines("delivery.settled")} == {"duplicate"}
    await scene.holds()


@pytest.mark.parametrize(
    ("way", "where"),
    [("to_client", "INSERT INTO outbox"), ("to_server", COMMIT), ("to_client", COMMIT)],
    ids=["recorded", "commit on its way", "commit done"],
)
async def test_killed_while_a_duplicate_is_told_again(scene: Scene, way: str, where: str) -> None:
    batch = scene.batch()
    await scene.send(batch)
    await scene.recover(settled=1)
    await scene.publish(batch)
    inside = scene.database.hold(way, where)  # type: ignore[arg-type]
    worker = scene.start(wired=True)
    await scene.comes(inside, worker)
    await scene.kill(worker)

    await scene.returned(1)
    await scene.recover(settled=1)
    found = await scene.holds()
    statuses = [each.body["status"] for each in found.told]
    # Told at least once more, and never another thing.
    assert statuses[0] == "ingested"
    assert {*statuses[1:]} == {"already_ingested"}
    assert await scene.broker.depth(amqp.DEAD_QUEUE) == 0
