"""The relay against a real broker: what it publishes, and what it does if that fails."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest

from study_viewer import Outbox, Relay, RelayRunning, RelayStopped, State, __version__
from study_viewer.relay import first_of
from study_viewer.schemas.amqp import (
    ATTEMPT_BATCH_TYPE,
    ATTEMPTS_BINDING,
    ATTEMPTS_QUEUE,
    INGEST_EXCHANGE,
    RESULTS_EXCHANGE,
    result_key,
    results_queue,
)
from study_viewer.schemas.documents import asyncapi
from study_viewer.schemas.words import RejectReason, Status
from tests.study_viewer.proxy import ACK, PATIENCE, PUBLISH, proxied
from tests.study_viewer.support import (
    QUICK,
    VIEWER,
    Broker,
    drained,
    make_batch,
    make_result,
    record,
)

pytestmark = pytest.mark.broker

T = TypeVar("T")


def relay_of(outbox: Outbox, url: str, viewer: str = VIEWER, **settings: object) -> Relay:
    return Relay(outbox, url, viewer, replace(QUICK, **settings))  # type: ignore[arg-type]


async def soon(relay: Relay, condition: Callable[[], T | None]) -> T:
    return await asyncio.wait_for(relay.until(condition), PATIENCE)


async def settled(relay: Relay, uuid: UUID) -> None:
    await asyncio.wait_for(relay.until_settled(uuid), PATIENCE)


def in_state(outbox: Outbox, uuid: UUID, state: State) -> Callable[[], bool]:
    def condition() -> bool:
        entry = outbox.get(uuid)
        return entry is not None and entry.state is state

    return condition


# ---- the way of a batch ----------------------------------------------------------------------


async def test_batches_are_published_in_order_and_settled_by_their_results(
    outbox: Outbox, broker: Broker
) -> None:
    await broker.consume()
    uuids = record(outbox, *(make_batch() for _ in range(5)))
    async with relay_of(outbox, broker.url) as relay:
        assert [await broker.next_uuid() for _ in uuids] == uuids
        assert outbox.settled() == []
        for uuid in uuids:
            await broker.answer(make_result(uuid))
            await settled(relay, uuid)
        await drained(relay, broker)
        assert relay.status.connected
        assert relay.status.problem is None
    assert outbox.unsettled() == []
    assert await broker.results_left() == []


async def test_a_message_is_as_the_published_document_says(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    batch = make_batch()
    record(outbox, batch)
    async with relay_of(outbox, broker.url):
        message = await broker.next()
    assert message.routing_key == f"attempts.v1.{VIEWER}"
    assert message.exchange == INGEST_EXCHANGE
    properties = asyncapi()["components"]["messages"]["attemptBatch"]["x-amqp-properties"]
    assert message.type == properties["properties"]["type"]["const"] == ATTEMPT_BATCH_TYPE
    assert message.content_type == properties["properties"]["content_type"]["const"]
    assert message.delivery_mode == properties["properties"]["delivery_mode"]["const"]
    assert message.message_id
    assert message.timestamp is not None
    assert abs(message.timestamp - datetime.now(UTC)) < timedelta(minutes=1)
    assert message.app_id == f"study-viewer {__version__}"
    (entry,) = outbox.unsettled()
    assert message.headers == {
        "client-session-uuid": str(batch.client_session_uuid),
        "traceparent": entry.traceparent,
    }
    assert json.loads(message.body) == json.loads(entry.body)


async def test_wake_ends_the_wait_for_the_next_poll(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    async with relay_of(outbox, broker.url, poll_interval=3_600.0) as relay:
        await soon(relay, lambda: relay.status.connected)
        (uuid,) = record(outbox, make_batch())
        await asyncio.to_thread(relay.wake)
        assert await broker.next_uuid() == uuid


async def test_a_rejection_is_there_to_be_shown(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    (uuid,) = record(outbox, make_batch())
    async with relay_of(outbox, broker.url) as relay:
        await broker.next()
        detail = "None of the questions is published any more."
        await broker.answer(
            make_result(uuid, Status.REJECTED, reason=RejectReason.NOTHING_RESOLVED, detail=detail)
        )
        entry = await relay.until_settled(uuid)
    assert entry.rejected
    assert entry.result is not None
    assert (entry.result.reason, entry.result.detail) == (RejectReason.NOTHING_RESOLVED, detail)


async def test_a_parked_batch_that_an_operator_replays_counts_after_all(
    outbox: Outbox, broker: Broker
) -> None:
    (uuid,) = record(outbox, make_batch())
    async with relay_of(outbox, broker.url) as relay:
        await broker_has(relay, broker)
        for status in (Status.REJECTED, Status.INGESTED, Status.REJECTED):
            await broker.answer(make_result(uuid, status))
        await soon(relay, lambda: (e := outbox.get(uuid)) and e.result and not e.rejected)
        await drained(relay, broker)
        entry = outbox.get(uuid)
    assert entry is not None
    assert not entry.rejected


async def test_a_result_that_comes_twice_changes_nothing(outbox: Outbox, broker: Broker) -> None:
    (uuid,) = record(outbox, make_batch())
    async with relay_of(outbox, broker.url) as relay:
        await broker_has(relay, broker)
        told = make_result(uuid)
        await broker.answer(told)
        first = await relay.until_settled(uuid)
        await broker.answer(told)
        await drained(relay, broker)
        assert outbox.get(uuid) == first
    assert await broker.results_left() == []


async def test_stopping_leaves_no_result_that_was_stored(outbox: Outbox, broker: Broker) -> None:
    uuids = record(outbox, *(make_batch() for _ in range(15)))
    async with relay_of(outbox, broker.url) as relay:
        await soon(relay, lambda: outbox.pending() == [])
    for uuid in uuids:
        await broker.answer(make_result(uuid))
    async with relay_of(outbox, broker.url) as relay:
        await settled(relay, uuids[-1])
    assert await broker.results_left() == []


async def test_results_that_are_of_no_use_are_counted_and_taken_away(
    outbox: Outbox, broker: Broker
) -> None:
    async with relay_of(outbox, broker.url) as relay:
        await broker_has(relay, broker)
        good = make_result(uuid4())
        await broker.answer(good)
        await broker.answer(b"{")
        await broker.answer(b"\xff" * 100)
        await broker.answer(good, kind="study.ingest_result.v2")
        await broker.answer(good, kind="")
        await soon(relay, lambda: relay.status.unreadable_results == 4)
        assert relay.status.unknown_results == 1
    assert await broker.results_left() == []


async def test_results_wait_while_the_viewer_is_away(outbox: Outbox, broker: Broker) -> None:
    (uuid,) = record(outbox, make_batch())
    async with relay_of(outbox, broker.url) as relay:
        await soon(relay, in_state(outbox, uuid, State.CONFIRMED))
    await broker.answer(make_result(uuid))
    async with relay_of(outbox, broker.url) as relay:
        await settled(relay, uuid)


async def test_a_batch_without_a_result_is_published_again(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    (uuid,) = record(outbox, make_batch())
    async with relay_of(outbox, broker.url, result_timeout=0.05) as relay:
        first, second = await broker.next(), await broker.next()
        assert first.body == second.body
        assert first.headers == second.headers
        assert first.message_id != second.message_id
        await broker.answer(make_result(uuid))
        await settled(relay, uuid)


# ---- who it is -------------------------------------------------------------------------------


@pytest.mark.parametrize("declare", [False, True])
async def test_a_viewer_with_few_rights_and_its_own_login(
    outbox: Outbox, broker: Broker, declare: bool
) -> None:
    await broker.consume()
    (uuid,) = record(outbox, make_batch())
    async with (
        broker.with_few_rights() as viewer,
        relay_of(outbox, broker.login(viewer), viewer, declare_results_queue=declare) as relay,
    ):
        message = await broker.next()
        assert message.user_id == viewer
        await broker.answer(make_result(uuid), viewer)
        await settled(relay, uuid)


async def test_another_login_does_not_claim_to_be_the_viewer(
    outbox: Outbox, broker: Broker
) -> None:
    await broker.consume()
    record(outbox, make_batch())
    async with relay_of(outbox, broker.url):
        assert (await broker.next()).user_id is None


async def test_a_results_queue_that_an_operator_made_otherwise(
    outbox: Outbox, broker: Broker
) -> None:
    queue = await broker.channel.declare_queue(
        results_queue(VIEWER), durable=True, arguments={"x-expires": 60_000}
    )
    await queue.bind(RESULTS_EXCHANGE, result_key(VIEWER))
    (uuid,) = record(outbox, make_batch())
    async with relay_of(outbox, broker.url) as relay:
        await broker_has(relay, broker)
        await broker.answer(make_result(uuid))
        await settled(relay, uuid)


async def test_a_results_queue_that_an_operator_has_to_make_is_waited_for(
    outbox: Outbox, broker: Broker
) -> None:
    await broker.consume()
    (uuid,) = record(outbox, make_batch())
    async with relay_of(outbox, broker.url, declare_results_queue=False) as relay:
        problem = await soon(relay, lambda: relay.status.problem)
        assert results_queue(VIEWER) in problem
        assert not relay.status.connected
        assert broker.arrived.empty()
        queue = await broker.channel.declare_queue(results_queue(VIEWER), durable=True)
        await queue.bind(RESULTS_EXCHANGE, result_key(VIEWER))
        assert await broker.next_uuid() == uuid


def test_the_name_and_the_url_are_checked_at_once(outbox: Outbox) -> None:
    with pytest.raises(ValueError, match="choose another"):
        Relay(outbox, "amqp://localhost", "no.dots")
    with pytest.raises(ValueError, match="amqps://"):
        Relay(outbox, "http://localhost", VIEWER)


# ---- when it can't be ------------------------------------------------------------------------


async def test_offline_at_the_start(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    async with proxied(broker.url) as proxy:
        port, url = proxy.port, proxy.url(broker.url)
    (uuid,) = record(outbox, make_batch())
    async with relay_of(outbox, url) as relay:
        await soon(relay, lambda: relay.status.problem)
        assert not relay.status.connected
        assert [entry.client_session_uuid for entry in outbox.pending()] == [uuid]
        async with proxied(broker.url, port):
            assert await broker.next_uuid() == uuid
            await soon(relay, in_state(outbox, uuid, State.CONFIRMED))
            assert relay.status.problem is None


async def test_a_wrong_password_is_shown_and_not_repeated(outbox: Outbox, broker: Broker) -> None:
    async with relay_of(outbox, broker.login("nobody-s3cret")) as relay:
        problem = await soon(relay, lambda: relay.status.problem)
    assert "refused" in problem.lower()
    assert "s3cret" not in problem


async def test_a_connection_that_the_broker_closes(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    before = asyncio.all_tasks()
    async with relay_of(outbox, broker.url) as relay:
        await soon(relay, lambda: relay.status.connected)
        await broker.close_viewers()
        await soon(relay, lambda: relay.status.problem)
        (uuid,) = record(outbox, make_batch())
        assert await broker.next_uuid() == uuid
        await broker.answer(make_result(uuid))
        await settled(relay, uuid)
    assert asyncio.all_tasks() <= before


async def test_a_results_queue_that_is_deleted_comes_back(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    async with relay_of(outbox, broker.url) as relay:
        await soon(relay, lambda: relay.status.connected)
        await broker.channel.queue_delete(results_queue(VIEWER))
        await soon(relay, lambda: relay.status.problem)
        await soon(relay, lambda: relay.status.connected)
        (uuid,) = record(outbox, make_batch())
        await broker.next()
        await broker.answer(make_result(uuid))
        await settled(relay, uuid)


async def test_batches_stay_in_the_outbox_while_the_queue_is_full(
    outbox: Outbox, broker: Broker
) -> None:
    await broker.channel.queue_delete(ATTEMPTS_QUEUE)
    full: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    queue = await broker.channel.declare_queue(ATTEMPTS_QUEUE, durable=True, arguments=full)
    await queue.bind(INGEST_EXCHANGE, ATTEMPTS_BINDING)
    uuids = record(outbox, *(make_batch() for _ in range(3)))
    async with relay_of(outbox, broker.url) as relay:
        problem = await soon(relay, lambda: outbox.pending()[-1:] and outbox.pending()[0].problem)
        assert "queue is full" in problem
        assert relay.status.connected
        assert len(outbox.pending()) >= 1
        broker.attempts = queue
        await broker.consume()
        assert [await broker.next_uuid() for _ in uuids] == uuids
        await soon(relay, lambda: outbox.pending() == [])
        assert relay.status.problem is None
    assert [entry.problem for entry in outbox.unsettled()] == [None] * 3


async def test_a_batch_that_no_queue_takes_stays_in_the_outbox(
    outbox: Outbox, broker: Broker
) -> None:
    await broker.attempts.unbind(INGEST_EXCHANGE, ATTEMPTS_BINDING)
    (uuid,) = record(outbox, make_batch())
    async with relay_of(outbox, broker.url) as relay:
        problem = await soon(relay, lambda: outbox.pending()[0].problem)
        assert "attempts.v1.ada" in problem
        assert relay.status.problem == problem
        await broker.attempts.bind(INGEST_EXCHANGE, ATTEMPTS_BINDING)
        await soon(relay, in_state(outbox, uuid, State.CONFIRMED))
    assert await broker.count(ATTEMPTS_QUEUE) == 1


async def test_a_missing_exchange_is_shown_and_waited_for(outbox: Outbox, broker: Broker) -> None:
    await broker.channel.exchange_delete(INGEST_EXCHANGE)
    (uuid,) = record(outbox, make_batch())
    async with relay_of(outbox, broker.url) as relay:
        problem = await soon(relay, lambda: relay.status.problem)
        assert INGEST_EXCHANGE in problem
        exchange = await broker.channel.declare_exchange(INGEST_EXCHANGE, "topic", durable=True)
        await broker.attempts.bind(exchange, ATTEMPTS_BINDING)
        await soon(relay, in_state(outbox, uuid, State.CONFIRMED))


async def test_a_confirm_that_never_comes_means_unknown_and_again(
    outbox: Outbox, broker: Broker
) -> None:
    await broker.consume()
    uuids = record(outbox, make_batch(), make_batch())
    async with proxied(broker.url) as proxy:
        proxy.hold("to viewer", ACK)
        url = proxy.url(broker.url)
        async with relay_of(outbox, url, publish_timeout=0.2, close_timeout=0.1) as relay:
            first = await broker.next()
            again = await broker.next()
            assert first.body == again.body
            assert first.message_id != again.message_id
            assert len(outbox.pending()) == 2
            assert "did not answer" in await soon(relay, lambda: relay.status.problem)
            proxy.release()
            await soon(relay, lambda: outbox.pending() == [])
    assert [entry.client_session_uuid for entry in outbox.unsettled()] == uuids


async def test_the_order_holds_under_a_bad_network(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    uuids = record(outbox, *(make_batch() for _ in range(60)))
    arrived: list[UUID] = []
    async with proxied(broker.url) as proxy, relay_of(outbox, proxy.url(broker.url)) as relay:
        while len(set(arrived)) < len(uuids):
            arrived.append(await broker.next_uuid())
            if len(arrived) % 7 == 0:
                proxy.reset()
        await soon(relay, lambda: outbox.pending() == [])
    assert list(dict.fromkeys(arrived)) == uuids  # by first arrival
    for place, uuid in enumerate(arrived):
        # A repetition is of the batch that was in flight, never of one that was confirmed.
        if uuid in arrived[:place]:
            assert uuid == arrived[place - 1]


async def test_the_viewers_own_transaction_is_waited_for(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    (uuid,) = record(outbox, make_batch())
    with closing(sqlite3.connect(outbox.path, isolation_level=None)) as viewer:
        viewer.execute("BEGIN IMMEDIATE")
        async with proxied(broker.url) as proxy, relay_of(outbox, proxy.url(broker.url)) as relay:
            await broker.next()
            await proxy.seen("to viewer", ACK)
            await broker.answer(make_result(uuid))
            assert outbox.pending() != []
            viewer.execute("COMMIT")
            await settled(relay, uuid)
            assert proxy.connections == 1


async def test_an_outbox_that_fails_is_told_from_a_broker_that_does(
    outbox: Outbox, broker: Broker
) -> None:
    async with relay_of(outbox, broker.url) as relay:
        await soon(relay, lambda: relay.status.connected)
        with closing(sqlite3.connect(outbox.path)) as vandal:
            vandal.execute("ALTER TABLE study_outbox RENAME TO gone")
        assert "the outbox can't be used" in await soon(relay, lambda: relay.status.problem)


# ---- its life --------------------------------------------------------------------------------


async def test_it_leaves_no_task_behind(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    async with proxied(broker.url) as proxy:
        before = asyncio.all_tasks()
        record(outbox, make_batch())
        async with relay_of(outbox, proxy.url(broker.url)) as relay:
            await broker.next()
            proxy.reset()
            await soon(relay, lambda: relay.status.problem)
            await soon(relay, lambda: relay.status.connected)
        assert asyncio.all_tasks() <= before


async def test_it_stops_at_once_while_it_waits(outbox: Outbox, broker: Broker) -> None:
    record(outbox, make_batch())
    async with proxied(broker.url) as proxy:
        before = asyncio.all_tasks()
        proxy.hold("to broker", PUBLISH)
        async with asyncio.timeout(PATIENCE):
            url = proxy.url(broker.url)
            async with relay_of(outbox, url, publish_timeout=3_600.0, close_timeout=0.1):
                await proxy.seen("to broker", PUBLISH)
            async with relay_of(outbox, "amqp://127.0.0.1:1", retry_delay_min=3_600.0) as relay:
                await soon(relay, lambda: relay.status.problem)
        proxy.reset()
        assert asyncio.all_tasks() <= before
    assert len(outbox.pending()) == 1


async def test_it_runs_until_told_to_stop(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    stop = asyncio.Event()
    running = asyncio.create_task(relay_of(outbox, broker.url).run(stop))
    (uuid,) = record(outbox, make_batch())
    assert await broker.next_uuid() == uuid
    stop.set()
    await asyncio.wait_for(running, PATIENCE)
    cancelled = asyncio.create_task(relay_of(outbox, broker.url).run())
    record(outbox, make_batch())
    await broker.next()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled


async def test_one_outbox_has_one_relay(outbox: Outbox, broker: Broker) -> None:
    async with relay_of(outbox, broker.url):
        with pytest.raises(RelayRunning):
            await relay_of(outbox, broker.url).start()
    async with relay_of(outbox, broker.url):
        pass


async def test_nobody_waits_for_a_relay_that_is_not_running(outbox: Outbox, broker: Broker) -> None:
    relay = relay_of(outbox, broker.url)
    relay.wake()
    with pytest.raises(RelayStopped):
        await relay.until_settled(uuid4())
    async with relay:
        waiting = asyncio.create_task(relay.until_settled(uuid4()))
        await asyncio.sleep(0)
    with pytest.raises(RelayStopped):
        await asyncio.wait_for(waiting, PATIENCE)
    await relay.stop()


async def broker_has(relay: Relay, broker: Broker) -> None:
    """Waits until results can be routed to the viewer."""
    await soon(relay, lambda: relay.status.connected)


async def test_a_cancellation_that_nobody_asked_for_is_a_lost_connection() -> None:
    # What aiormq answers to some calls when it finds the connection dead.
    async def cancelled_from_below() -> None:
        raise asyncio.CancelledError

    with pytest.raises(ConnectionResetError):
        await first_of(cancelled_from_below(), asyncio.sleep(3_600))


async def test_an_error_without_a_name_is_a_lost_connection_and_any_other_a_fault() -> None:
    async def fails_with(error: Exception) -> None:
        raise error

    with pytest.raises(ConnectionResetError):
        # As the client fails whatever waits on a channel that ends without a reason.
        await first_of(fails_with(Exception()), asyncio.sleep(3_600))
    with pytest.raises(ZeroDivisionError):
        await first_of(fails_with(ZeroDivisionError()), asyncio.sleep(3_600))
