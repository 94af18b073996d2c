"""Publishing with confirms: a publish returns when the broker has the message, or raises.

Many publishes may be in flight at once; each waits for its own confirm. Opens its connection
with the first publish and anew after a loss, so a broker that is away makes publishes fail at
once, and never the worker. Knows how to publish; may not know what, or what is done with a
message that was not confirmed.
"""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self
from uuid import uuid4

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aio_pika.exceptions import DeliveryError, PublishError

from schemas import amqp
from worker.backoff import Backoff
from worker.broker.connection import CLIENT_ERRORS, client_errors, close, connect, describe
from worker.errors import BrokerAway, Unconfirmed
from worker.settings import Settings

_log = structlog.get_logger(__name__)

_IN_FLIGHT_MAX: Final = 500
"""Unconfirmed publishes at once: enough to keep the broker busy, and a bound on memory."""


class Unroutable(Unconfirmed):
    """Raised by a publisher when no queue is bound where the message was to go."""


class Publisher:
    """One connection for publishing, with one channel.

    To be used as `async with Publisher(settings) as publisher`, by any number of tasks.
    """

    def __init__(self, settings: Settings, purpose: str = "publisher") -> None:
        self._settings = settings
        self._purpose = purpose
        self._wire: _Wire | None = None
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(_IN_FLIGHT_MAX)
        self._backoff = Backoff(settings.pause_delay_min, settings.pause_delay_max)
        self._not_before = 0.0
        self._trouble = ""
        self._closers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._wire is not None:
            self._abandon(self._wire)
        await asyncio.gather(*self._closers)

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        *,
        message_id: str | None = None,
        type: str | None = None,  # the property's name
        headers: Mapping[str, str | int] | None = None,
        mandatory: bool = True,
    ) -> None:
        """Publishes a persistent JSON message and waits until the broker has it.

        Raises `Unroutable` (with `mandatory`) or `Unconfirmed`: the message may or may not have
        arrived. Publishing again with the same `message_id` is right once this has returned or
        raised; while it is in flight it is a ValueError. Without `message_id` it gets a new one.
        """
        message = Message(
            body,
            headers=dict(headers or {}),
            content_type=amqp.CONTENT_TYPE,
            delivery_mode=DeliveryMode.PERSISTENT,
            message_id=message_id or new_message_id(),
            timestamp=datetime.now(UTC),
            type=type,
        )
        await self.send(exchange, routing_key, message, mandatory=mandatory)

    async def send(
        self, exchange: str, routing_key: str, message: Message, *, mandatory: bool = True
    ) -> None:
        """As `publish`, for a message with properties of its own, `message_id` among them."""
        async with self._slots:
            wire = await self._open()
            # The client finds returned messages by their id: two in flight with one id, and the
            # unroutable one may be the one that counts as confirmed.
            if not message.message_id or message.message_id in wire.in_flight:
                raise ValueError(
                    f"message_id {message.message_id!r} is none or in flight: await its publish."
                )
            wire.in_flight.add(message.message_id)
            try:
                with client_errors():
                    target = await wire.exchange(exchange)
                    await target.publish(
                        message,
                        routing_key,
                        mandatory=mandatory,
                        timeout=self._settings.publish_timeout,
                    )
            except PublishError:
                raise Unroutable(
                    f"No queue takes {routing_key!r} from exchange {exchange!r}: run"
                    " `study-ingest topology`."
                ) from None
            except DeliveryError:
                raise Unconfirmed(
                    f"The broker refused a message for exchange {exchange!r}: the queue behind it"
                    " is full or has no majority."
                ) from None
            except CLIENT_ERRORS as error:
                # Of a timeout nothing is known, and the id may still be in flight: so the
                # channel is given up, and its late confirms and returns with it.
                self._lose(wire, error)
                raise Unconfirmed(f"A publish was not confirmed: {describe(error)}.") from None
            except asyncio.CancelledError:
                self._abandon(wire)
                raise
            finally:
                wire.in_flight.discard(message.message_id)
        self._confirmed()

    async def _open(self) -> "_Wire":
        async with self._opening:
            if self._wire is not None:
                if self._wire.is_open:
                    return self._wire
                # It was lost while nothing was published: no try has failed, so none has to wait.
                self._abandon(self._wire)
                self._note(ConnectionError("the channel was closed"))
            if asyncio.get_running_loop().time() < self._not_before:
                raise Unconfirmed(f"Nothing is published for a moment: {self._trouble}.")
            try:
                self._wire = await _Wire.open(self._settings, self._purpose)
            except BrokerAway as error:
                self._wait_before_next(error)
                raise Unconfirmed(str(error)) from None
            return self._wire

    def _lose(self, wire: "_Wire", error: BaseException) -> None:
        if self._wire is wire:
            self._abandon(wire)
            self._wait_before_next(error)

    def _note(self, error: BaseException) -> None:
        if not self._trouble:
            _log.warning("publisher.lost", purpose=self._purpose, error=describe(error))
        self._trouble = describe(error)

    def _wait_before_next(self, error: BaseException) -> None:
        self._note(error)
        self._not_before = asyncio.get_running_loop().time() + self._backoff.next()

    def _confirmed(self) -> None:
        self._backoff.reset()
        if self._trouble:
            self._trouble = ""
            _log.info("publisher.restored", purpose=self._purpose)

    def _abandon(self, wire: "_Wire") -> None:
        if self._wire is wire:
            self._wire = None
            closer = asyncio.create_task(close(wire.connection, self._settings.connect_timeout))
            self._closers.add(closer)
            closer.add_done_callback(self._closers.discard)


class _Wire:
    """A connection and its channel, for as long as both last."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self.connection = connection
        self._channel = channel
        self._exchanges: dict[str, AbstractExchange] = {}
        self.in_flight: set[str] = set()

    @classmethod
    async def open(cls, settings: Settings, purpose: str) -> "_Wire":
        connection = await connect(settings, purpose)
        try:
            channel = connection.channel(publisher_confirms=True, on_return_raises=True)
            with client_errors():
                async with asyncio.timeout(settings.connect_timeout):
                    await channel.initialize()
        except CLIENT_ERRORS as error:
            await close(connection, settings.connect_timeout)
            raise BrokerAway(f"RabbitMQ opens no channel: {describe(error)}.") from None
        return cls(connection, channel)

    @property
    def is_open(self) -> bool:
        return not (self._channel.is_closed or self.connection.is_closed)

    async def exchange(self, name: str) -> AbstractExchange:
        if name not in self._exchanges:
            self._exchanges[name] = await self._channel.get_exchange(name, ensure=False)
        return self._exchanges[name]


def new_message_id() -> str:
    """A message id that was never used."""
    return uuid4().hex
