"""The usual handler on plain aio-pika: `prefetch` messages at once, each acked after its commit.

With `BENCH_PUBLISH` it publishes what it has to tell between commit and ack, with confirms.
"""

import asyncio
import os

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from bench.peers.handler import handle
from bench.peers.setup import CONCURRENCY, PUBLISHES, VIEWER, database_url
from schemas import amqp


async def main() -> None:
    """Consumes until it is terminated."""
    engine = create_async_engine(database_url("asyncpg"), pool_size=CONCURRENCY)
    sessions = async_sessionmaker(engine)

    async def consume(message: AbstractIncomingMessage) -> None:
        async with message.process(requeue=True), sessions() as session:
            outgoing = await session.run_sync(handle, message.body, VIEWER)
            if PUBLISHES:
                for each in outgoing:
                    exchange = await channel.get_exchange(each.exchange, ensure=False)
                    await exchange.publish(aio_pika.Message(each.body.encode()), each.routing_key)

    connection = await aio_pika.connect_robust(os.environ["INGEST_AMQP_URL"])
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=CONCURRENCY)
    queue = await channel.get_queue(amqp.ATTEMPTS_QUEUE)
    await queue.consume(consume)
    await asyncio.Future()


if __name__ == "__main__":
    asyncio.run(main())
