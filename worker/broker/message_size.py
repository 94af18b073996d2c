"""Which message sizes the broker accepts, found by trying: no interface tells."""

import asyncio
from typing import Final
from uuid import uuid4

import aio_pika
from aio_pika.exceptions import ChannelPreconditionFailed

from worker.broker.connection import CLIENT_ERRORS, client_errors, close, connect, describe
from worker.errors import BrokerAway
from worker.settings import Settings

MAX_MESSAGE_SIZE: Final = 4 * 1024**2
"""The `max_message_size` that a broker should be configured with, in bytes."""


async def accepts(settings: Settings, size: int) -> bool:
    """Whether the broker accepts a message of `size` bytes.

    Publishes one that goes to no queue, so it leaves nothing behind. Raises `BrokerAway`.
    """
    connection = await connect(settings, "inspection")
    try:
        with client_errors():
            async with asyncio.timeout(settings.publish_timeout):
                channel = await connection.channel()
                await channel.default_exchange.publish(
                    aio_pika.Message(bytes(size)), uuid4().hex, mandatory=False
                )
        return True
    except ChannelPreconditionFailed:
        return False
    except CLIENT_ERRORS as error:
        raise BrokerAway(f"RabbitMQ did not accept a message: {describe(error)}.") from None
    finally:
        await close(connection, settings.connect_timeout)
