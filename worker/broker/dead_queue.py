"""The dead-letter queue, looked into and taken from by an operator's commands.

Messages are fetched one by one and stay in hand until they are settled or the connection ends;
then the broker puts the others back, near the head and in their order, however the command came
to its end. It does so a moment later, and a command that looks twice must not miss them: a look
that came to its own end is over when they are back. Each look counts as a delivery, which is why
the queue's limit is a million. Knows aio-pika; may not know what a letter says.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Basic

from schemas import amqp
from worker.broker.connection import CLIENT_ERRORS, client_errors, close, connect, describe
from worker.broker.subscription import Delivery
from worker.errors import BrokerAway, TopologyError
from worker.settings import Settings

_MISSING: Final = f"Queue {amqp.DEAD_QUEUE} is missing: run `study-ingest topology`."
_BACK_WITHIN: Final = 2.0
"""Seconds that letters are waited for on their way back, where a few milliseconds are usual: in
vain, when another command takes letters at the same moment."""
_ASKED_EVERY: Final = 0.01


class DeadQueue:
    """A channel on the dead-letter queue; to be had from `open_dead_queue`."""

    def __init__(
        self, settings: Settings, connection: AbstractConnection, channel: AbstractChannel
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._channel = channel
        self._in_hand = 0

    @property
    def is_lost(self) -> bool:
        return self._channel.is_closed or self._connection.is_closed

    async def count(self) -> int:
        """How many letters wait; those in somebody's hand are not counted.

        An answer also means that the broker has dealt with all that was settled before. Raises
        `BrokerAway`, and `TopologyError` when there is no such queue.
        """
        with _translated(), client_errors():
            declared = await self._channel.queue_declare(
                amqp.DEAD_QUEUE, passive=True, timeout=self._settings.publish_timeout
            )
        return declared.message_count or 0

    async def next(self) -> Delivery | None:
        """The letter at the head; None when all are in hand. Raises as `count` does."""
        with _translated(), client_errors():
            message = await self._channel.basic_get(
                amqp.DEAD_QUEUE, timeout=self._settings.publish_timeout
            )
        if not isinstance(message.delivery, Basic.GetOk):
            return None
        self._in_hand += 1
        return Delivery(message, self)

    async def ack(self, tags: Sequence[int]) -> bool:
        """Raises `BrokerAway`: a letter that was not settled comes again."""
        for tag in tags:
            await self._settled(self._channel.basic_ack(tag, wait=False))
            self._in_hand -= 1
        return True

    async def give_back(self, tag: int) -> bool:
        """Raises as `ack` does."""
        await self._settled(self._channel.basic_nack(tag, wait=False))
        self._in_hand -= 1
        return True

    async def put_back(self) -> None:
        """Lets go of all that is in hand, and waits until the queue has it again."""
        if not self._in_hand:
            return
        # Without the broker there is nothing to wait for: it puts them back when it is there.
        with suppress(BrokerAway, TopologyError):
            until = await self.count() + self._in_hand
            with _translated(), client_errors():
                async with asyncio.timeout(self._settings.publish_timeout):
                    await self._channel.close()
            self._in_hand = 0
            self._channel = await _channel(self._settings, self._connection)
            with suppress(TimeoutError):
                async with asyncio.timeout(_BACK_WITHIN):
                    while await self.count() < until:  # noqa: ASYNC110 - no event says so
                        await asyncio.sleep(_ASKED_EVERY)

    async def _settled(self, settling: Awaitable[object]) -> None:
        with _translated(), client_errors():
            async with asyncio.timeout(self._settings.publish_timeout):
                await settling


@asynccontextmanager
async def open_dead_queue(settings: Settings) -> AsyncIterator[DeadQueue]:
    """The dead-letter queue for as long as the block lasts.

    Raises `BrokerAway` when there is no connection, as every method does when it is lost.
    """
    connection = await connect(settings, "dead-letters")
    try:
        queue = DeadQueue(settings, connection, await _channel(settings, connection))
        yield queue
        await queue.put_back()
    finally:
        await close(connection, settings.connect_timeout)


async def _channel(settings: Settings, connection: AbstractConnection) -> AbstractChannel:
    with _translated(), client_errors():
        transport = connection.transport
        if transport is None:
            raise ConnectionError("the connection was closed")
        async with asyncio.timeout(settings.connect_timeout):
            return await transport.connection.channel(publisher_confirms=False)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ChannelNotFoundEntity:
        raise TopologyError(_MISSING) from None
    except CLIENT_ERRORS as error:
        raise BrokerAway(
            f"The broker was lost ({describe(error)}): run the command again, nothing is lost."
        ) from None
