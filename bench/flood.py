"""`python -m bench.flood URL KEY RATE BODY`: publishes to the key so many times a second, until
SIGTERM.

A process of its own, so that it does not slow down whoever measures.
"""

import asyncio
import sys
import time
from typing import Final

import aio_pika

from schemas import amqp

_EVERY: Final = 0.01
"""Seconds."""


async def main(url: str, key: str, rate: str, body: str) -> None:
    """Publishes without confirms, and makes up for what it could not publish in time."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=False)
        exchange = await channel.get_exchange(amqp.INGEST_EXCHANGE, ensure=False)
        started, sent = time.monotonic(), 0
        while True:
            due = round((time.monotonic() - started) * float(rate))
            for _ in range(due - sent):
                message = aio_pika.Message(
                    body.encode(), content_type=amqp.CONTENT_TYPE, type=amqp.PROGRESS_REQUEST_TYPE
                )
                await exchange.publish(message, key, mandatory=False)
            sent = due
            await asyncio.sleep(_EVERY)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
