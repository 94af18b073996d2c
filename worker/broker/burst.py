"""Many publishes in one write to the socket: what the client does for one, done for all of them.

The client's own publish is two thirds of what a message costs. This keeps the same books for many
at once, so that the client's reader finds their returns and confirms as ever
(docs/decisions/publishing-in-bursts.md). Knows aiormq's channel; may not know what an answer
means, nor what becomes of a channel that is lost meanwhile.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

Answer = asyncio.Future[object]
"""The broker's to one message: done when it has confirmed it, or with the client's exception."""


class Outgoing(NamedTuple):
    """A message and where it goes; its properties have a `message_id` of its own."""

    exchange: str
    routing_key: str
    properties: Basic.Properties
    body: bytes

    @property
    def message_id(self) -> str:
        """What the client knows a returned message by; "" where it has none."""
        return self.properties.message_id or ""


async def burst(channel: Channel, messages: Sequence[Outgoing]) -> list[Answer]:
    """Writes all of the messages in their order, on a channel with confirms; returns the answers.

    The broker returns what no queue takes, before it confirms it.

    Raises what the client raises for a channel that is closed, or for what can't be written.
    Cancelled or timed out, it leaves a channel of which nothing is known.
    """
    payload = b"".join([_frames(channel, message) for message in messages])
    async with channel.lock:
        answers = []
        for message in messages:
            channel.delivery_tag += 1
            answer = channel.create_future()
            channel.confirmations[channel.delivery_tag] = answer
            channel.message_id_delivery_tag[message.message_id] = channel.delivery_tag
            answers.append(answer)
        await channel.write_queue.put(ChannelFrame(payload, should_close=False))
    return answers


def forget(channel: Channel, messages: Iterable[Outgoing]) -> None:
    """Drops the ids of messages that were answered."""
    for message in messages:
        channel.message_id_delivery_tag.pop(message.message_id, None)


def _frames(channel: Channel, message: Outgoing) -> bytes:
    exchange, routing_key, properties, body = message
    publish = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
    header = ContentHeader(properties=properties, body_size=len(body))
    size = channel.max_content_size
    parts = [ContentBody(body[start : start + size]) for start in range(0, len(body), size)]
    return ChannelFrame.marshall(channel.number, [publish, header, *parts]).payload
