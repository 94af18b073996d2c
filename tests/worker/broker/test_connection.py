"""A lost connection raises an error for everybody who waits on it, and they can wait it out."""

import asyncio

import pytest

from schemas import amqp
from tests.broker_fixtures import Broker
from worker.broker.connection import CLIENT_ERRORS, client_errors, close, connect, describe

pytestmark = pytest.mark.broker


async def test_a_call_that_waits_while_its_channel_ends_without_a_reason_fails_as_lost(
    broker: Broker,
) -> None:
    connection = await connect(broker.settings, "test")
    channel = await (await connection.channel()).get_underlay_channel()

    async def ask() -> None:
        with client_errors():
            await channel.queue_declare(amqp.ATTEMPTS_QUEUE, passive=True)

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)  # it has asked, and the answer has yet to be read
    # As the client does when its reader ends: it raises `Exception` itself in whatever waits,
    # which nothing could wait for by name.
    await channel._cancel_tasks(None)  # type: ignore[attr-defined]
    with pytest.raises(CLIENT_ERRORS) as caught:
        await asking
    assert describe(caught.value) == "the client lost its connection, and does not say why"
    await close(connection, 1.0)


async def test_other_faults_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError), client_errors():
        _ = 1 / 0
