"""Fills queues and inspects them, like a publisher: persistent, confirmed, pipelined."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractExchange
from aiormq.exceptions import ChannelNotFoundEntity

from bench.workload import Batch
from schemas import amqp
from worker.settings import Settings

_IN_FLIGHT: Final = 200


@asynccontextmanager
async def channel(settings: Settings) -> AsyncIterator[AbstractChannel]:
    """A channel with confirms, over a connection of its own."""
    async with await aio_pika.connect(settings.amqp_url.get_secret_value()) as connection:
        yield await connection.channel()


def message(batch: Batch) -> aio_pika.Message:
    """The batch as a viewer publishes it."""
    return aio_pika.Message(
        batch.body,
        headers={amqp.CLIENT_SESSION_UUID_HEADER: str(batch.uuid)},
        content_type=amqp.CONTENT_TYPE,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=uuid4().hex,
        timestamp=datetime.now(UTC),
        type=amqp.ATTEMPT_BATCH_TYPE,
    )


async def publish(settings: Settings, batches: Sequence[Batch]) -> None:
    """Publishes all of them, and returns when the broker has confirmed each."""
    async with channel(settings) as open_channel:
        exchange = await open_channel.get_exchange(amqp.INGEST_EXCHANGE, ensure=False)
        waiting = iter(batches)
        await asyncio.gather(*(_publish_each(exchange, waiting) for _ in range(_IN_FLIGHT)))


async def waiting(settings: Settings, queue: str) -> int:
    """The number of messages that are in the queue and that nobody holds."""
    async with channel(settings) as open_channel:
        declared = await open_channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


async def consumers(settings: Settings, queue: str) -> int:
    """The number of the queue's consumers; 0 while nobody has made the queue."""
    async with channel(settings) as open_channel:
        try:
            declared = await open_channel.declare_queue(queue, passive=True)
        except ChannelNotFoundEntity:
            return 0
        return declared.declaration_result.consumer_count or 0


async def _publish_each(exchange: AbstractExchange, batches: Iterator[Batch]) -> None:
    for batch in batches:
        await exchange.publish(message(batch), amqp.attempts_key(batch.viewer))
