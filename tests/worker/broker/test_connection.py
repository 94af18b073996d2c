"""A lost connection raises an error for everybody who waits on it, and they can wait it out."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractConnection
from pydantic import SecretStr

from chaos.proxy import Proxy
from schemas import amqp
from tests.broker_fixtures import PATIENCE, Broker
from worker.broker import publisher, subscription
from worker.broker.connection import CLIENT_ERRORS, client_errors, close, connect, describe
from worker.broker.publisher import Publisher
from worker.broker.subscription import Subscription
from worker.settings import Settings

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


async def _subscribe(settings: Settings) -> None:
    await Subscription.open(settings, amqp.ATTEMPTS_QUEUE, lambda _: None, lambda: None)


async def _publish(settings: Settings) -> None:
    async with Publisher(settings) as publishing:
        await publishing.send("", "nobody", Message(b"", message_id="one"))


@pytest.mark.parametrize("use", [_subscribe, _publish])
async def test_a_connection_is_dropped_if_its_user_is_cancelled_before_it_has_a_channel(
    use: Callable[[Settings], Awaitable[None]], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = broker.settings.amqp_url.get_secret_value()
    there = urlsplit(url)
    opened: asyncio.Queue[AbstractConnection] = asyncio.Queue()
    async with Proxy(there.hostname or "", there.port or 0) as link:
        through = url.replace(f":{there.port}/", f":{link.port}/")
        settings = broker.settings.model_copy(update={"amqp_url": SecretStr(through)})

        async def connect_and_hear_no_more(settings: Settings, purpose: str) -> AbstractConnection:
            connection = await connect(settings, purpose)
            link.black_hole()
            await opened.put(connection)
            return connection

        for module in (subscription, publisher):
            monkeypatch.setattr(module, "connect", connect_and_hear_no_more)
        using = asyncio.ensure_future(use(settings))
        async with asyncio.timeout(PATIENCE):
            connection = await opened.get()
            await asyncio.sleep(0)  # it has asked for a channel
            using.cancel()
            with pytest.raises(asyncio.CancelledError):
                await using
        assert connection.is_closed


async def test_other_faults_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError), client_errors():
        _ = 1 / 0
