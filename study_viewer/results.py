"""The viewer's own queues, of results and of progress, and how to read one message of the first."""

import asyncio
import re
from contextlib import suppress
from typing import Any

from aio_pika.abc import (
    AbstractChannel,
    AbstractConnection,
    AbstractIncomingMessage,
    AbstractQueue,
)
from aio_pika.exceptions import ChannelClosed
from pydantic import ValidationError

from study_viewer.schemas.amqp import (
    CHECKED_TYPE,
    INGEST_RESULT_TYPE,
    RECALL_TYPE,
    RESULTS_EXCHANGE,
    progress_key,
    progress_queue,
    result_key,
    results_queue,
)
from study_viewer.schemas.checks import Checked, Recall
from study_viewer.schemas.ingest_result import IngestResult

Told = IngestResult | Checked | Recall

# Minor versions only add: `study.ingest_result.v1.1` is read like v1.
_VERSION_1 = re.compile(r"(study\.[a-z_]+\.v1)(\.[0-9]{1,4})?")
_MODELS: dict[str, type[Told]] = {
    INGEST_RESULT_TYPE: IngestResult,
    CHECKED_TYPE: Checked,
    RECALL_TYPE: Recall,
}


class ResultsLost(ConnectionError):
    """The broker stopped sending results, because the queue was deleted or the channel closed."""


class Results:
    """The messages that wait for one viewer in one of its queues. `open_results` and
    `open_progress` create it.
    """

    def __init__(self, channel: AbstractChannel, prefetch: int) -> None:
        self._channel = channel  # kept, because aio-pika drops a channel that nobody references
        self._arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue(prefetch)
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def next(self) -> AbstractIncomingMessage:
        """The next delivery, which the caller must ack."""
        return await self._arrived.get()

    async def lost(self) -> None:
        """Waits, and raises `ResultsLost` when no more deliveries will arrive."""
        await asyncio.shield(self._lost)

    async def _take(self, message: AbstractIncomingMessage) -> None:
        # Nothing more happens here, because aio-pika cancels this callback when the channel closes.
        # The prefetch limits what is not acked, and therefore the size of this queue.
        self._arrived.put_nowait(message)

    def _lose(self, *_: Any) -> None:
        if not self._lost.done():
            self._lost.set_exception(ResultsLost("the broker stopped sending results"))
            self._lost.exception()  # awaiting it is optional


async def open_results(
    connection: AbstractConnection, viewer: str, *, declare: bool, prefetch: int
) -> Results:
    """Starts to consume the viewer's results, on a channel of its own.

    The queue is durable, so that it keeps results while the viewer is away. With `declare`, it
    creates the queue and its binding if they do not exist. If that is not allowed, or without
    `declare`, the queue must exist.
    """
    return await _consume(connection, results_queue(viewer), result_key(viewer), declare, prefetch)


async def open_progress(
    connection: AbstractConnection, viewer: str, *, declare: bool, prefetch: int
) -> Results:
    """Starts to consume pages, refusals and nudges likewise, on another channel of its own."""
    name, key = progress_queue(viewer), progress_key(viewer)
    return await _consume(connection, name, key, declare, prefetch)


async def _consume(
    connection: AbstractConnection, name: str, key: str, declare: bool, prefetch: int
) -> Results:
    queue = await _queue(connection, name, key, declare)
    results = Results(queue.channel, prefetch)
    await queue.channel.set_qos(prefetch)
    queue.channel.close_callbacks.add(results._lose)
    # Plain channels have no other way to notice that the broker cancelled the consumer.
    underlay = await queue.channel.get_underlay_channel()
    underlay.on_consumer_cancel_callbacks.add(results._lose)
    await queue.consume(results._take)
    return results


async def _queue(
    connection: AbstractConnection, name: str, key: str, declare: bool
) -> AbstractQueue:
    if declare:
        # A refusal closes the channel. Then the queue belongs to the operator, whatever its
        # arguments.
        with suppress(ChannelClosed):
            queue = await (await _channel(connection)).declare_queue(name, durable=True)
            await queue.bind(RESULTS_EXCHANGE, key)
            return queue
    return await (await _channel(connection)).declare_queue(name, passive=True)


async def _channel(connection: AbstractConnection) -> AbstractChannel:
    channel = connection.channel(publisher_confirms=False)
    await channel.initialize()
    return channel


def read_told(message_type: str | None, body: bytes) -> Told | None:
    """What a message in the queue of results says. None if this library can't read it."""
    match = _VERSION_1.fullmatch(message_type or "")
    model = None if match is None else _MODELS.get(match[1])
    try:
        return None if model is None else model.model_validate_json(body)
    except ValidationError:
        return None
