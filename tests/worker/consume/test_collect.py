"""What the broker gives up on becomes a dead letter with the reason, and its viewer is told."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from schemas.ingest_result import IngestResult
from schemas.words import RejectReason, Status
from tests import factories as make
from tests.broker_fixtures import VIEWER, Broker, until
from tests.factories import batch, right
from tests.whole_worker import working
from worker.broker.subscription import Delivery
from worker.errors import BrokerAway

pytestmark = pytest.mark.broker


async def _letters(engine: AsyncEngine) -> list[dict[str, Any]]:
    return await make.rows(engine, "SELECT * FROM ingest_dead_letters ORDER BY id")


async def _collected(broker: Broker, engine: AsyncEngine, count: int) -> list[dict[str, Any]]:
    """The dead letters, after a worker has collected this many and sent their results."""
    async with working(broker.settings, engine):
        found: list[dict[str, Any]] = await until(
            lambda: _letters(engine), lambda letters: len(letters) == count
        )
        await broker.until_depth(amqp.DEAD_QUEUE, 0)
        await until(lambda: make.count(engine, "outbox"), (0).__eq__)
    return found


async def _listen(broker: Broker) -> None:
    channel = await broker.channel()
    queue = await channel.declare_queue("told", durable=True)
    await queue.bind(amqp.RESULTS_EXCHANGE, amqp.result_key(VIEWER))


async def _told(broker: Broker) -> IngestResult:
    return IngestResult.model_validate_json((await broker.take("told")).body)


async def _expire(broker: Broker, content: AttemptBatch, **more: Any) -> None:
    await broker.publish(
        content.model_dump_json(), type=amqp.ATTEMPT_BATCH_TYPE, expiration=0.001, **more
    )


async def _return_too_often(broker: Broker, content: AttemptBatch) -> None:
    await broker.publish(content.model_dump_json(), type=amqp.ATTEMPT_BATCH_TYPE)
    queue = await (await broker.channel()).get_queue(amqp.ATTEMPTS_QUEUE, ensure=False)
    for _ in range(broker.settings.delivery_limit + 1):
        message = await queue.get(timeout=60)
        assert message is not None
        await message.reject(requeue=True)


async def _park_as_an_older_worker(
    broker: Broker, body: str, headers: Mapping[str, str | int]
) -> None:
    """As workers of version 0.1.0 rejected a message: a copy in the queue, and a result told."""
    await broker.publish(
        body,
        exchange=amqp.DEAD_EXCHANGE,
        routing_key="",
        type=amqp.ATTEMPT_BATCH_TYPE,
        headers={
            amqp.ROUTING_KEY_HEADER: amqp.attempts_key(VIEWER),
            amqp.VIEWER_HEADER: VIEWER,
            amqp.RETRIES_HEADER: 0,
            **headers,
        },
    )


async def test_what_expired_and_what_was_returned_too_often_are_told_apart(
    broker: Broker, engine: AsyncEngine
) -> None:
    late, deadly = batch(right("a")), batch(right("b"))
    await _listen(broker)
    await _expire(broker, late)
    await broker.until_depth(amqp.DEAD_QUEUE, 1)
    await _return_too_often(broker, deadly)
    await broker.until_depth(amqp.DEAD_QUEUE, 2)

    letters = await _collected(broker, engine, 2)

    assert {row["client_session_uuid"]: row["reason"] for row in letters} == {
        late.client_session_uuid: RejectReason.EXPIRED,
        deadly.client_session_uuid: RejectReason.DELIVERY_LIMIT,
    }
    for row in letters:
        sent = late if row["reason"] == RejectReason.EXPIRED else deadly
        assert row["body"].decode() == sent.model_dump_json()
        assert (row["viewer"], row["routing_key"].decode()) == (VIEWER, amqp.attempts_key(VIEWER))
    results = [await _told(broker), await _told(broker)]
    assert {result.client_session_uuid: result.reason for result in results} == {
        row["client_session_uuid"]: row["reason"] for row in letters
    }
    assert {result.status for result in results} == {Status.REJECTED}
    assert await make.count(engine, "ingest_inbox") == 0


async def test_who_was_ingested_before_is_told_of_no_rejection(
    broker: Broker, engine: AsyncEngine
) -> None:
    (question,) = await make.publish(engine)
    again = batch(right(question))
    async with working(broker.settings, engine):
        await broker.publish(again.model_dump_json(), type=amqp.ATTEMPT_BATCH_TYPE)
        await until(lambda: make.count(engine, "ingest_inbox"), (1).__eq__)
        await until(lambda: make.count(engine, "outbox"), (0).__eq__)
    await _listen(broker)
    await _expire(broker, again)
    await broker.until_depth(amqp.DEAD_QUEUE, 1)

    (letter,) = await _collected(broker, engine, 1)

    assert letter["reason"] == RejectReason.EXPIRED
    assert await broker.depth("told") == 0


async def test_a_letter_of_an_older_worker_is_taken_over_with_its_reason(
    broker: Broker, engine: AsyncEngine
) -> None:
    content = batch(right("nowhere"))
    await _listen(broker)
    await _park_as_an_older_worker(
        broker,
        content.model_dump_json(),
        {
            amqp.REASON_HEADER: "nothing_resolved",
            amqp.DETAIL_HEADER: "None of the 1 attempts is published.",
            amqp.PARKED_AT_HEADER: "2026-01-02T03:04:05+00:00",
        },
    )
    await broker.until_depth(amqp.DEAD_QUEUE, 1)

    (letter,) = await _collected(broker, engine, 1)

    assert letter["reason"] == "nothing_resolved"
    assert letter["detail"] == "None of the 1 attempts is published."
    assert letter["died_at"].isoformat() == "2026-01-02T03:04:05+00:00"
    assert letter["viewer"] == VIEWER
    assert letter["client_session_uuid"] == content.client_session_uuid
    assert letter["routing_key"].decode() == amqp.attempts_key(VIEWER)
    # The older worker has told the viewer already.
    assert await broker.depth("told") == 0


@pytest.mark.parametrize("parked_at", ["yesterday", "", 2**60, -5])
async def test_a_letter_without_a_reason_or_a_time_is_kept_as_well(
    broker: Broker, engine: AsyncEngine, parked_at: str | int
) -> None:
    await _park_as_an_older_worker(broker, "{", {amqp.PARKED_AT_HEADER: parked_at})
    await broker.until_depth(amqp.DEAD_QUEUE, 1)

    (letter,) = await _collected(broker, engine, 1)

    assert (letter["reason"], letter["body"]) == ("unknown", b"{")


async def test_a_viewer_cannot_give_its_letter_a_reason_or_another_sender(
    broker: Broker, engine: AsyncEngine
) -> None:
    content = batch(right("a"))
    forged = {
        amqp.REASON_HEADER: "nothing_resolved",
        amqp.VIEWER_HEADER: "mallory",
        "x-death": [{"queue": amqp.ATTEMPTS_QUEUE, "reason": "rejected", "exchange": ""}],
    }
    await _expire(broker, content, headers=forged)
    await broker.until_depth(amqp.DEAD_QUEUE, 1)

    (letter,) = await _collected(broker, engine, 1)

    assert (letter["reason"], letter["viewer"]) == (RejectReason.EXPIRED, VIEWER)


async def test_a_letter_whose_ack_was_lost_is_neither_kept_nor_told_twice(
    broker: Broker, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    acks = 0
    ack_with = Delivery.ack_with

    async def lost_once(delivery: Delivery, others: Sequence[Delivery]) -> None:
        nonlocal acks
        acks += 1
        if acks == 1:
            raise BrokerAway("The connection was lost", "wait for the broker.")
        await ack_with(delivery, others)

    monkeypatch.setattr(Delivery, "ack_with", lost_once)
    await _listen(broker)
    await _expire(broker, batch(right("a")))
    await broker.until_depth(amqp.DEAD_QUEUE, 1)

    async def acked() -> int:
        return acks

    async with working(broker.settings, engine):
        await until(acked, (2).__eq__)  # it was kept before the first, and is delivered again
        await until(lambda: make.count(engine, "outbox"), (0).__eq__)
    assert len(await _letters(engine)) == 1
    assert await broker.depth("told") == 1
