"""A relay that is killed anywhere loses nothing: a real process, kill -9, a real broker.

Where it is killed is decided from outside: by the frame that the proxy in front of the broker
lets through no more, and by holding the write lock of the outbox's file as a viewer's own
transaction would.
"""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from uuid import UUID

import pytest

from study_viewer import Outbox, Relay, State
from tests.study_viewer.proxy import ACK, DELIVER, PATIENCE, PUBLISH, proxied
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


@asynccontextmanager
async def relay_to_be_killed(outbox: Outbox, url: str) -> AsyncIterator[None]:
    """Runs a relay in a process of its own; kills it at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.study_viewer.relay_process", str(outbox.path), url
    )
    try:
        yield
        assert process.returncode is None, "the relay ended by itself"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Holds the write lock of the file, so that the relay can read and not write."""
    with closing(sqlite3.connect(path, isolation_level=None)) as viewer:
        viewer.execute("BEGIN IMMEDIATE")
        yield


async def next_relay_settles_all(outbox: Outbox, broker: Broker, *awaited: UUID) -> list[UUID]:
    """Runs a second relay with a worker behind it; returns what the worker got, in order."""
    got: list[UUID] = []

    async def work() -> None:
        while True:
            got.append(await broker.next_uuid())
            await broker.answer(make_result(got[-1]))

    working = asyncio.create_task(work())
    try:
        async with Relay(outbox, broker.url, VIEWER, QUICK) as relay:
            for uuid in awaited:
                await asyncio.wait_for(relay.until_settled(uuid), PATIENCE)
            await drained(relay, broker)
    finally:
        working.cancel()
    return got


def states(outbox: Outbox) -> list[State]:
    return [entry.state for entry in [*outbox.settled(), *outbox.unsettled()]]


async def test_before_the_broker_has_it(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    uuids = record(outbox, make_batch(), make_batch())
    async with proxied(broker.url) as proxy:
        proxy.hold("to broker", PUBLISH)
        async with relay_to_be_killed(outbox, proxy.url(broker.url)):
            await proxy.seen("to broker", PUBLISH)
    assert broker.arrived.empty()
    assert states(outbox) == [State.PENDING, State.PENDING]
    assert await next_relay_settles_all(outbox, broker, *uuids) == uuids


async def test_killed_after_the_publish_and_before_the_confirm(
    outbox: Outbox, broker: Broker
) -> None:
    await broker.consume()
    uuids = record(outbox, make_batch(), make_batch())
    async with proxied(broker.url) as proxy:
        proxy.hold("to viewer", ACK)
        async with relay_to_be_killed(outbox, proxy.url(broker.url)):
            assert await broker.next_uuid() == uuids[0]
            await proxy.seen("to viewer", ACK)
    assert states(outbox) == [State.PENDING, State.PENDING]
    assert await next_relay_settles_all(outbox, broker, *uuids) == uuids


async def test_killed_after_the_confirm_and_before_it_is_marked(
    outbox: Outbox, broker: Broker
) -> None:
    await broker.consume()
    uuids = record(outbox, make_batch(), make_batch())
    async with (
        proxied(broker.url) as proxy,
        locked(outbox.path),
        relay_to_be_killed(outbox, proxy.url(broker.url)),
    ):
        assert await broker.next_uuid() == uuids[0]
        await proxy.seen("to viewer", ACK)
    assert states(outbox) == [State.PENDING, State.PENDING]
    assert await next_relay_settles_all(outbox, broker, *uuids) == uuids


async def test_killed_after_it_is_marked(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    uuids = record(outbox, make_batch(), make_batch())
    async with relay_to_be_killed(outbox, broker.url):
        # The second is on its way only when the first was marked.
        assert [await broker.next_uuid(), await broker.next_uuid()] == uuids
    assert states(outbox)[0] is State.CONFIRMED
    await broker.answer(make_result(uuids[0]))
    got = await next_relay_settles_all(outbox, broker, uuids[0])
    assert got in ([], [uuids[1]])


async def test_killed_before_a_result_is_stored(outbox: Outbox, broker: Broker) -> None:
    await broker.consume()
    (uuid,) = record(outbox, make_batch())
    async with (
        proxied(broker.url) as proxy,
        locked(outbox.path),
        relay_to_be_killed(outbox, proxy.url(broker.url)),
    ):
        assert await broker.next_uuid() == uuid
        await broker.answer(make_result(uuid))
        await proxy.seen("to viewer", DELIVER)
    assert outbox.settled() == []
    await next_relay_settles_all(outbox, broker, uuid)


async def test_killed_after_a_result_is_stored_and_before_its_ack(
    outbox: Outbox, broker: Broker
) -> None:
    await broker.consume()
    (uuid,) = record(outbox, make_batch())
    async with proxied(broker.url) as proxy:
        proxy.hold("to broker", ACK)
        async with relay_to_be_killed(outbox, proxy.url(broker.url)):
            await broker.next()
            await broker.answer(make_result(uuid))
            await proxy.seen("to broker", ACK)
    before = outbox.get(uuid)
    assert before is not None
    assert before.state is State.SETTLED
    assert await next_relay_settles_all(outbox, broker, uuid) == []
    assert outbox.get(uuid) == before
    assert await broker.results_left() == []
