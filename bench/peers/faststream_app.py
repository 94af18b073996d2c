"""The usual handler on FastStream, acked after the handler (its default: AckPolicy)."""

import os

from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from faststream.rabbit.annotations import RabbitMessage
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from bench.peers.handler import handle
from bench.peers.setup import CONCURRENCY, VIEWER, database_url
from schemas import amqp

broker = RabbitBroker(
    os.environ["INGEST_AMQP_URL"], default_channel=Channel(prefetch_count=CONCURRENCY)
)
app = FastStream(broker)
sessions = async_sessionmaker(create_async_engine(database_url("asyncpg"), pool_size=CONCURRENCY))


@broker.subscriber(
    RabbitQueue(amqp.ATTEMPTS_QUEUE, queue_type=QueueType.QUORUM, durable=True, declare=False),
    ack_policy=AckPolicy.NACK_ON_ERROR,
)
async def consume(message: RabbitMessage) -> None:
    """One message, one transaction."""
    async with sessions() as session:
        await session.run_sync(handle, message.body, VIEWER)
