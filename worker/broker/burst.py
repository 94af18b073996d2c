"""Publishes many messages in one write to the socket.

The client's own publish makes up two thirds of the cost of a message. This file does the same
bookkeeping for many messages at once, so that the client's reader finds their returns and confirms
as usual (docs/decisions/publishing-in-bursts.md).
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

from aiormq.abc import AbstractChannel, ChannelFrame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

Confirm = asyncio.Future[object]
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


@runtime_checkable
class Books(Protocol):
    """The names of the client's channel that `burst` uses, and that the client does not promise to
    keep.
    """

    number: int
    max_content_size: int
    delivery_tag: int
    confirmations: dict[int, Any]
    message_id_delivery_tag: dict[str, int]
    write_queue: asyncio.Queue[ChannelFrame]

    @property
    def lock(self) -> AbstractAsyncContextManager[None]: ...

    def create_future(self) -> asyncio.Future[Any]: ...


def can_burst(channel: object) -> TypeGuard[Books]:
    """Whether the installed client has all the names that `burst` uses."""
    frame = {"payload", "should_close"} <= ChannelFrame.__annotations__.keys()
    return isinstance(channel, Books) and frame and hasattr(ChannelFrame, "marshall")


async def burst(channel: Books, messages: Sequence[Outgoing]) -> list[Confirm]:
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


def one_by_one(channel: AbstractChannel, messages: Iterable[Outgoing]) -> list[Confirm]:
    """Publishes the messages in order by the client's own publish, at three times the cost."""
    return [_publish(channel, message) for message in messages]


def _publish(channel: AbstractChannel, message: Outgoing) -> Confirm:
    publish = channel.basic_publish(
        message.body,
        exchange=message.exchange,
        routing_key=message.routing_key,
        properties=message.properties,
        mandatory=True,
    )
    answer: Confirm = asyncio.ensure_future(publish)
    # Nobody asks for the exception after a wait that was given up, and asyncio would log that.
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())
    return answer


def forget(channel: Books, messages: Iterable[Outgoing]) -> None:
    """Forgets the ids of messages that were answered."""
    for message in messages:
        channel.message_id_delivery_tag.pop(message.message_id, None)


def _frames(channel: Books, message: Outgoing) -> bytes:
    exchange, routing_key, properties, body = message
    publish = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
    header = ContentHeader(properties=properties, body_size=len(body))
    size = channel.max_content_size
    parts = [ContentBody(body[start : start + size]) for start in range(0, len(body), size)]
    return ChannelFrame.marshall(channel.number, [publish, header, *parts]).payload
