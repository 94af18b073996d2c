"""`python -m bench.flood URL KEY RATE BODY`: publishes to the key so many times a second, until
SIGTERM.

It is a process of its own, and writes each message's bytes as they are: whoever really floods a
broker does so from another machine, and takes nothing from the cores that are measured.
"""

import asyncio
import sys
import time
from typing import Final

import aiormq
from aiormq.abc import ChannelFrame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from schemas import amqp
from worker.broker.burst import can_burst

_EVERY: Final = 0.01
"""Seconds."""


async def main(url: str, key: str, rate: str, body: str) -> None:
    """Publishes without confirms, and makes up for what it could not publish in time."""
    properties = Basic.Properties(
        content_type=amqp.CONTENT_TYPE, message_type=amqp.PROGRESS_REQUEST_TYPE
    )
    publish = Basic.Publish(exchange=amqp.INGEST_EXCHANGE, routing_key=key)
    header = ContentHeader(properties=properties, body_size=len(body))
    async with await aiormq.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=False)
        assert can_burst(channel)
        content = ContentBody(body.encode())
        one = ChannelFrame.marshall(channel.number, [publish, header, content]).payload
        started, sent = time.monotonic(), 0
        while True:
            due = round((time.monotonic() - started) * float(rate))
            if due > sent:
                await channel.write_queue.put(ChannelFrame(one * (due - sent), should_close=False))
            sent = due
            await asyncio.sleep(_EVERY)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
