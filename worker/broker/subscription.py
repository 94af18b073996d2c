"""Consuming from one queue, or several, over one connection, for as long as that connection lasts.

A lost subscription is never restored. Its deliveries are stale, because the broker delivers them
again, and the consumer opens a new subscription. It uses the client's plain channel. The layer
above creates a message object for each delivery, which can fail on a viewer's properties and waits
for the socket on every ack.
"""

import asyncio
import hashlib
import socket
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Protocol
from uuid import uuid4

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity, ConnectionInternalError
from pamqp.commands import Basic

from worker.broker import decoders, field_table
from worker.broker.bodies import Room, bound, digest_of_cut
from worker.broker.connection import CLIENT_ERRORS, client_errors, close, connect, describe
from worker.broker.management import Management
from worker.errors import BrokerAway, TopologyError
from worker.settings import Settings

_LISTED_WITHIN: Final = 15.0
"""Seconds after which a consumer that the management API has never listed counts as missing. The
API learns of new consumers every 5 seconds.
"""


class Settling(Protocol):
    """The source of deliveries, which settles them as long as it exists."""

    @property
    def is_lost(self) -> bool: ...

    async def ack(self, tags: Sequence[int]) -> bool: ...

    async def give_back(self, tag: int) -> bool: ...

    async def reject(self, tag: int) -> bool: ...

    def queue_of(self, consumer_tag: str) -> str: ...


class Delivery:
    """One message that the broker sent to this worker, to be acked or returned exactly once."""

    __slots__ = (
        "_consumer_tag",
        "_digest",
        "_raw_properties",
        "_subscription",
        "_tag",
        "arrived_at",
        "body",
        "exchange",
        "held_since",
        "properties",
        "redelivered",
        "routing_key",
        "size",
        "times_busy",
    )

    def __init__(self, message: DeliveredMessage, subscription: "Settling") -> None:
        self._subscription = subscription
        self._tag = message.delivery_tag or 0
        self._consumer_tag = message.consumer_tag or ""
        self.arrived_at = time.time()
        self.held_since = time.monotonic()
        self.body: bytes = message.body
        self.size: int = message.header.body_size
        """The size of the body as it was sent, in bytes. `body` has no more of it than there was
        room for.
        """
        self.exchange: str = message.exchange or ""
        self.routing_key: str = message.routing_key or ""
        self.redelivered: bool = bool(message.redelivered)
        self.properties: Basic.Properties = message.header.properties
        self._raw_properties = decoders.raw_properties(message.header)
        self._digest = digest_of_cut(message.header)
        self.times_busy = 0
        """How often a lane took it and found its principal busy."""

    def digest(self) -> bytes:
        """The SHA-256 of the whole body, also where only its beginning was kept."""
        return self._digest or hashlib.sha256(self.body).digest()

    def field_table(self) -> bytes:
        """Its properties and headers as an AMQP field table, byte for byte."""
        return field_table.of_properties(self._raw_properties)

    def identity(self) -> bytes:
        """The same, as far as it stays the same however often the broker hands the message out."""
        return field_table.without_counters(self.field_table())

    @property
    def headers(self) -> dict[str, Any]:
        """The publisher's headers, which may have any keys and values."""
        return self.properties.headers or {}

    @property
    def delivery_count(self) -> int:
        """How often the broker took the message back before. It is 0 for the first delivery."""
        # The broker sets no count on a first delivery, so a header of this name would be forged.
        count = self.headers.get("x-delivery-count") if self.redelivered else None
        return count if isinstance(count, int) else 0

    @property
    def queue(self) -> str:
        """The queue that it came from."""
        return self._subscription.queue_of(self._consumer_tag)

    @property
    def is_live(self) -> bool:
        """Whether it can still be settled. Otherwise the broker delivers it again."""
        return not self._subscription.is_lost

    async def ack(self) -> bool:
        """Acks the message. Returns False if it is stale."""
        return await self._subscription.ack([self._tag])

    async def ack_with(self, others: Sequence["Delivery"]) -> bool:
        """Acks this delivery and `others` of the same subscription, with as few frames as
        possible.
        """
        return await self._subscription.ack([self._tag, *(other._tag for other in others)])

    async def give_back(self) -> bool:
        """Returns the message to the queue. Returns False if it is stale."""
        return await self._subscription.give_back(self._tag)

    async def reject(self) -> bool:
        """Puts the message back as one that failed: the broker counts that, and has a limit; False
        when it is stale.
        """
        return await self._subscription.reject(self._tag)


class Subscription:
    """One connection with one channel that consumes `queue`, and others if it is told to."""

    def __init__(
        self,
        settings: Settings,
        queue: str,
        connection: AbstractConnection,
        channel: AbstractChannel,
        on_delivery: Callable[[Delivery], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.queue = queue
        self.lost: str | None = None
        self.was_cancelled = False
        """Whether it was lost because the broker cancelled its consumer."""
        self.broke_down = False
        """Whether it was lost by an internal error of the broker. RabbitMQ 4 fails in this way on a
        message that came by AMQP 1.0 and has something that AMQP 0-9-1 can't carry."""
        self._settings = settings
        self._connection = connection
        self._channel = channel
        self._inspection: AbstractChannel | None = None
        self._on_delivery = on_delivery
        self._on_lost = on_lost
        self._consuming_since = 0.0
        self._tags: dict[str, str] = {}
        """The tag of the consumer of each queue."""
        self._queues: dict[str, str] = {}
        """The queue of each tag, also while its consumer is being made or cancelled."""
        self._listed: set[str] = set()
        """The tags that the management API has listed."""
        self._is_cancelling = False
        # One at a time, because an ack for all deliveries up to a tag might overtake an earlier
        # ack.
        self._settling = asyncio.Lock()
        self._settled_through = 0
        self._settled_beyond: set[int] = set()
        self._owed: set[int] = set()
        """Acks that wait until everything before them is settled. There are at most `_most_owed`.
        """
        self._most_owed = 0
        self._turned_away: list[int] = []
        """Deliveries for which there was no room."""
        self.is_proved = False
        """Whether the broker confirmed, when it was last asked, that it lists our consumer. A new
        consumer on the same channel is trusted until the next check, because the broker has just
        confirmed it.
        """
        channel.on_consumer_cancel_callbacks.add(self._cancelled_by_broker)
        channel.closing.add_done_callback(self._closed)

    @classmethod
    async def open(
        cls,
        settings: Settings,
        queue: str,
        on_delivery: Callable[[Delivery], None],
        on_lost: Callable[[], None],
        room: Room | None = None,
        purpose: str = "consumer",
    ) -> "Subscription":
        """Connects, without consuming yet.

        `on_delivery` is called for each delivery and must not wait or raise. `on_lost` is called
        once, when the subscription ends. `room` says how much of a body to keep (by default all); a
        delivery without room goes back when deliveries are next cancelled. Raises `BrokerAway`.
        """
        connection = await connect(settings, purpose)
        try:
            with client_errors():
                transport = connection.transport
                if transport is None:
                    raise ConnectionError("the connection was closed")
                async with asyncio.timeout(settings.connect_timeout):
                    channel = await transport.connection.channel(publisher_confirms=False)
        except CLIENT_ERRORS as error:
            await close(connection, settings.connect_timeout)
            raise BrokerAway(f"RabbitMQ opens no channel: {describe(error)}.") from None
        except asyncio.CancelledError:
            await close(connection, 0)  # nobody would ever close it
            raise
        if room is not None:
            bound(channel, room)
        return cls(settings, queue, connection, channel, on_delivery, on_lost)

    @property
    def is_lost(self) -> bool:
        return self.lost is not None or self._channel.is_closed

    @property
    def is_consuming(self) -> bool:
        """Whether the broker may send deliveries."""
        return bool(self._tags) and not self.is_lost

    @property
    def tag(self) -> str | None:
        """The tag of the consumer of `queue`. None if there is none now."""
        return self._tags.get(self.queue)

    def queue_of(self, consumer_tag: str) -> str:
        """The queue that the consumer with this tag consumes, or consumed before."""
        return self._queues.get(consumer_tag, self.queue)

    async def consume(self, prefetch: int, queues: Collection[str] = ()) -> None:
        """Begins to receive deliveries of these queues, or only of its own if none are given.

        At most `prefetch` of them are unsettled at once, but at least one for each queue. If it
        raises `BrokerAway`, the subscription is lost.
        """
        queues = queues or (self.queue,)
        # Of a quorum queue, a consumer can only be limited for itself.
        prefetch = max(1, prefetch // len(queues))
        host = socket.gethostname()[:100]
        self._queues = {f"study-ingest.{host}.{uuid4().hex[:12]}": queue for queue in queues}
        self._listed.clear()
        self._is_cancelling = False
        try:
            with client_errors():
                # The prefetch applies to consumers that subscribe after it.
                await self._channel.basic_qos(
                    prefetch_count=prefetch, timeout=self._settings.connect_timeout
                )
                for tag, queue in self._queues.items():
                    await self._channel.basic_consume(
                        queue,
                        self._delivered,
                        consumer_tag=tag,
                        timeout=self._settings.connect_timeout,
                    )
        except CLIENT_ERRORS as error:
            self._lose_by(error)
            names = ", ".join(queues)
            raise BrokerAway(f"Queue {names} can't be consumed: {describe(error)}.") from None
        self._tags = {queue: tag for tag, queue in self._queues.items()}
        self.is_proved = True
        # Of one queue: while its acks wait, the others' deliveries do not help it.
        self._most_owed = prefetch // 2
        self._consuming_since = asyncio.get_running_loop().time()

    async def cancel(self) -> None:
        """Stops the deliveries. After it returns, no more arrive.

        Deliveries in hand can still be settled, and the broker does not count a return of them. It
        may take back a delivery that is on its way at that moment, and count that. This never
        raises. If the broker does not answer, the subscription is lost.
        """
        if not self.is_consuming:
            return
        self._is_cancelling = True
        try:
            with client_errors():
                for tag in self._tags.values():
                    await self._channel.basic_cancel(tag, timeout=self._settings.connect_timeout)
        except CLIENT_ERRORS as error:
            self.lose(describe(error))
        self._tags = {}
        self._most_owed = 0
        async with self._settling:
            await self._send_owed()
        turned_away, self._turned_away = self._turned_away, []
        for delivery_tag in turned_away:
            await self.give_back(delivery_tag)

    async def ack(self, tags: Sequence[int]) -> bool:
        """Acks the deliveries. Returns False if the channel is gone, and the deliveries are stale
        with it.

        A channel numbers its deliveries from 1. If everything up to a number is settled, one frame
        acks all of it. Deliveries after a gap wait for the gap to close while new deliveries
        arrive, but at most half of the prefetch waits, because otherwise the broker would soon send
        nothing. If the channel is lost meanwhile, they are delivered again, like all deliveries
        whose ack was lost.
        """
        async with self._settling:
            self._note_settled(tags)
            self._owed.update(tags)
            return await self._send_owed()

    async def give_back(self, tag: int) -> bool:
        """Returns a delivery to the queue. Returns False if it is stale."""
        async with self._settling:
            self._note_settled([tag])
            return await self._send(Basic.Nack(tag, requeue=True)) and await self._send_owed()

    async def reject(self, tag: int) -> bool:
        """Puts a delivery back into the queue as one that failed; False when it is stale.

        From RabbitMQ 4.3 on this counts as a failure, and what `give_back` does not.
        """
        async with self._settling:
            self._note_settled([tag])
            return await self._send(Basic.Reject(tag, requeue=True)) and await self._send_owed()

    async def _send_owed(self) -> bool:
        """Sends the acks that do not have to wait."""
        frames = []
        if together := {tag for tag in self._owed if tag <= self._settled_through}:
            # Not `_settled_through`, because the broker refuses a tag that was acked before.
            frames.append(Basic.Ack(max(together), multiple=True))
            self._owed -= together
        if len(self._owed) > self._most_owed:
            frames += [Basic.Ack(tag) for tag in sorted(self._owed)]
            self._owed.clear()
        return not self.is_lost and all([await self._send(frame) for frame in frames])

    def _note_settled(self, tags: Sequence[int]) -> None:
        """Advances the tag up to which everything is settled."""
        self._settled_beyond.update(tags)
        while self._settled_through + 1 in self._settled_beyond:
            self._settled_through += 1
            self._settled_beyond.remove(self._settled_through)

    async def _send(self, frame: Basic.Ack | Basic.Nack | Basic.Reject) -> bool:
        if self.is_lost:
            return False
        try:
            with client_errors():
                # The client's queue to its writer is short, so a dead socket blocks whoever acks.
                async with asyncio.timeout(self._settings.publish_timeout):
                    if isinstance(frame, Basic.Ack):
                        await self._channel.basic_ack(
                            frame.delivery_tag or 0, multiple=frame.multiple, wait=False
                        )
                    elif isinstance(frame, Basic.Nack):
                        await self._channel.basic_nack(
                            frame.delivery_tag or 0, requeue=True, wait=False
                        )
                    else:
                        await self._channel.basic_reject(
                            frame.delivery_tag or 0, requeue=True, wait=False
                        )
        except CLIENT_ERRORS as error:
            self.lose(describe(error))
            return False
        return True

    async def check_consumer(self, management: Management | None) -> None:
        """Asks the broker whether it lists our consumers. If it says no, the subscription is lost.

        A client may believe that it consumes long after the broker has dropped its consumer. Only
        the management API knows consumers by name, so only it can say no. The queue's number of
        consumers can't, because a busy leader answers 0 while they consume. If nobody answers in
        time, nothing is known, and nothing changes.
        """
        for queue, tag in tuple(self._tags.items()):
            if self._tags.get(queue) == tag and not self.is_lost:
                await self._check(queue, tag, management)

    async def _check(self, queue: str, tag: str, management: Management | None) -> None:
        try:
            with client_errors():
                count = await self._count_consumers(queue)
        except ChannelNotFoundEntity as error:
            self.lose(describe(error))
            return
        except CLIENT_ERRORS:
            # A lost connection reports itself.
            count = 0
        tags = None
        if management is not None:
            try:
                tags = await management.consumer_tags(queue)
            except (BrokerAway, TopologyError):
                tags = None
        if tags is None:
            self.is_proved |= count > 0
        elif tag in tags:
            self._listed.add(tag)
            self.is_proved = True
        else:
            age = asyncio.get_running_loop().time() - self._consuming_since
            if tag in self._listed or age > _LISTED_WITHIN:
                self._missing(queue, tag)

    def lose(self, reason: str) -> None:
        """Ends the subscription. Everything in hand is stale from now on."""
        if self.lost is None:
            self.lost = reason
            self._tags = {}
            self.is_proved = False
            self._on_lost()

    async def close(self) -> None:
        """Closes the connection. The broker takes back what was not settled. It never raises."""
        await close(self._connection, self._settings.connect_timeout)
        self.lose("the connection was closed")

    async def _count_consumers(self, queue: str) -> int:
        # On a separate channel, because asking for a missing queue closes the channel.
        if self._inspection is None or self._inspection.is_closed:
            async with asyncio.timeout(self._settings.connect_timeout):
                self._inspection = await self._channel.connection.channel(publisher_confirms=False)
        declared = await self._inspection.queue_declare(
            queue, passive=True, timeout=self._settings.connect_timeout
        )
        return declared.consumer_count or 0

    def _missing(self, queue: str, tag: str) -> None:
        if self._tags.get(queue) == tag and not self._is_cancelling:
            self.lose("the broker does not list our consumer")

    async def _delivered(self, message: DeliveredMessage) -> None:
        if message.header.body_size and not message.body:
            self._turned_away.append(message.delivery_tag or 0)
        else:
            self._on_delivery(Delivery(message, self))

    def _cancelled_by_broker(self, frame: Basic.Cancel) -> None:
        self.was_cancelled = True
        self.lose("the broker cancelled the consumer")

    def _closed(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        if error is None:
            self.lose("the channel was closed")
        else:
            self._lose_by(error)

    def _lose_by(self, error: BaseException) -> None:
        self.broke_down |= isinstance(error, ConnectionInternalError)
        self.lose(describe(error))


async def consumer_count(settings: Settings, queue: str) -> int:
    """The number of consumers of `queue` at this moment, by AMQP, because the management API learns
    of them seconds later. Raises `BrokerAway`, also if there is no such queue.
    """
    connection = await connect(settings, "inspection")
    try:
        with client_errors():
            channel = await connection.channel()
            declared = await channel.declare_queue(
                queue, passive=True, timeout=settings.connect_timeout
            )
    except CLIENT_ERRORS as error:
        raise BrokerAway(
            f"RabbitMQ gives no information about {queue}: {describe(error)}."
        ) from None
    finally:
        await close(connection, settings.connect_timeout)
    return declared.declaration_result.consumer_count or 0
