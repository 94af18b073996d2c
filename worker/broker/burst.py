"""Publishes many messages in one write to the socket.

The client's own publish makes up two thirds of the cost of a message. This file does the same
bookkeeping for many messages at once, so that the client's reader finds their returns and confirms
as usual (docs/decisions/publishing-in-bursts.md).
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
"""The broker's answer to one message: a confirm, or the client's exception."""


class Outgoing(NamedTuple):
    """A message and its destination. Its properties contain a `message_id` of its own."""

    exchange: str
    routing_key: str
    properties: Basic.Properties
    body: bytes

    @property
    def message_id(self) -> str:
        """The id by which the client knows a returned message. It is empty if there is none."""
        return self.properties.message_id or ""


async def burst(channel: Channel, messages: Sequence[Outgoing]) -> list[Answer]:
    """Writes all messages in order, on a channel with confirms, and returns their answers.

    The broker returns a message that no queue takes before it confirms it.

    Raises what the client raises if the channel is closed or a message can't be written. If it is
    cancelled or times out, the state of the channel is unknown.
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
    """Forgets the ids of messages that were answered."""
    for message in messages:
        channel.message_id_delivery_tag.pop(message.message_id, None)


def _frames(channel: Channel, message: Outgoing) -> bytes:
    exchange, routing_key, properties, body = message
    publish = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
    header = ContentHeader(properties=properties, body_size=len(body))
    size = channel.max_content_size
    parts = [ContentBody(body[start : start + size]) for start in range(0, len(body), size)]
    return ChannelFrame.marshall(channel.number, [publish, header, *parts]).payload
