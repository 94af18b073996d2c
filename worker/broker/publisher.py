"""Publishing with confirms: a publish returns when the broker has the message, or raises.

Many publishes may be in flight at once, and each waits for its own confirm. The publisher opens its
connection with the first publish, and again after a loss. If the broker is unreachable, publishes
fail at once, and the worker continues to run.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Final, Self
from uuid import uuid4

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import DeliveryError, PublishError
from aiormq.abc import AbstractChannel as UnderlayChannel
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from pamqp.commands import Basic

from schemas import amqp
from worker.broker.burst import Confirm, Outgoing, burst, can_burst, forget, one_by_one
from worker.broker.connection import CLIENT_ERRORS, client_errors, close, connect, describe
from worker.domain.backoff import Backoff
from worker.errors import BrokerAway, Unconfirmed
from worker.settings import Settings

_log = structlog.get_logger(__name__)

_IN_FLIGHT_MAX: Final = 500
"""The number of unconfirmed publishes at once: enough to keep the broker busy, and it limits
memory.
"""
_AT_ONCE: Final = 100
"""The number of messages in one write, which keep the event loop busy for about 2 ms."""
_CLOSES_WITHIN: Final = 1.0
"""Seconds for a good end of a connection. One that doesn't read has nothing more to say."""


class Refused(Unconfirmed):
    """Raised by a publisher if the broker answers and refuses the message."""


class Unacceptable(Unconfirmed):
    """Raised by a publisher when the broker closed the channel over a message: this one or one that
    was in flight with it can't be published as it is, however often that is tried.
    """


class Misdirected(Unconfirmed):
    """Raised by a publisher if the exchange is missing, or if the login may not publish to it."""


class Unroutable(Refused):
    """Raised by a publisher if no queue is bound for the message's destination."""


class Publisher:
    """One connection for publishing, with one channel.

    Use it as `async with Publisher(settings) as publisher`, from any number of tasks.
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

    async def __aexit__(self, *_: object) -> None:
        if self._wire is not None:
            self._abandon(self._wire)
        await asyncio.gather(*self._closers)

    def alone(self) -> "Publisher":
        """A publisher of the same broker, beside which nothing is in flight."""
        return Publisher(self._settings, f"{self._purpose}, alone")

    async def send(self, exchange: str, routing_key: str, message: Message) -> None:
        """Publishes one message, and waits until the broker has it.

        Raises `Unroutable`, `Refused`, or `Unconfirmed`, which means that it may or may not have
        arrived. You can publish again with the same `message_id` after this has returned or raised.
        While it is still running, that raises ValueError.
        """
        outgoing = Outgoing(exchange, routing_key, message.properties, message.body)
        async with self._slots:
            [fate] = await self.publish_all([outgoing])
        if fate is not None:
            raise fate

    async def publish_all(self, messages: Sequence[Outgoing]) -> list[Unconfirmed | None]:
        """Publishes the messages in order, and waits until the broker has all of them.

        Returns for each message what `send` would have raised, or None if it is confirmed. A
        message id that is empty, repeated or in flight raises ValueError. It costs a third of
        sending the messages one by one.
        """
        if not messages:
            return []
        try:
            wire = await self._open()
        except Unconfirmed as trouble:
            return [trouble] * len(messages)
        ids: set[str] = set()
        for message in messages:
            # The client finds returned messages by their id. With two in flight under one id, the
            # unroutable one might count as confirmed.
            message_id = message.message_id
            if not message_id or message_id in ids or message_id in wire.in_flight:
                raise ValueError(
                    f"message_id {message_id!r} is empty, repeated or still in flight: give each"
                    " message an id of its own, and wait until its publish has returned."
                )
            ids.add(message_id)
        wire.in_flight |= ids
        answers: list[Confirm] = []
        lost: Unconfirmed | None = None
        try:
            with client_errors():
                async with asyncio.timeout(self._settings.publish_timeout):
                    await wire.write(messages, answers)
        except CLIENT_ERRORS as error:
            # After a timeout nothing is known, and the ids may still be in flight. Give up the
            # channel, and with it its late confirms and returns.
            lost = self._lost(wire, error)
        except asyncio.CancelledError:
            self._abandon(wire)
            raise
        finally:
            wire.in_flight -= ids
        fates = [
            self._fate(wire, message, answer) if answer.done() else lost
            for message, answer in zip(messages, answers, strict=False)
        ]
        fates += [lost] * (len(messages) - len(answers))
        if None in fates and self._wire is wire:
            self._confirmed()
        return fates

    def _fate(self, wire: "_Wire", message: Outgoing, answer: Confirm) -> Unconfirmed | None:
        error = asyncio.CancelledError() if answer.cancelled() else answer.exception()
        match error:
            case None:
                return None
            case asyncio.CancelledError():
                return self._lost(wire, ConnectionError("the channel was closed"))
            case PublishError():
                return Unroutable(
                    f"No queue takes {message.routing_key!r} from exchange {message.exchange!r}:"
                    " run `study-ingest topology`."
                )
            case DeliveryError():
                return Refused(
                    f"The broker refused a message for exchange {message.exchange!r}: the queue"
                    " behind it is full or has no majority."
                )
            case ChannelPreconditionFailed():
                lost = self._lost(wire, error)
                # The broker is there, and only this message is to blame: the others need not wait.
                self._not_before = 0.0
                return Unacceptable(str(lost))
            case ChannelNotFoundEntity() | ChannelAccessRefused():
                return Misdirected(str(self._lost(wire, error)))
            case _:
                return self._lost(wire, error)

    async def _open(self) -> "_Wire":
        async with self._opening:
            if self._wire is not None:
                if self._wire.is_open:
                    return self._wire
                # It was lost while nothing was published. No attempt has failed, so none has to
                # wait.
                self._abandon(self._wire)
                self._note(ConnectionError("the channel was closed"))
            if asyncio.get_running_loop().time() < self._not_before:
                raise Unconfirmed(f"The publisher waits before its next attempt: {self._trouble}.")
            try:
                self._wire = await _Wire.open(self._settings, self._purpose)
            except BrokerAway as error:
                self._wait_before_next(error)
                raise Unconfirmed(str(error)) from None
            return self._wire

    def _lost(self, wire: "_Wire", error: BaseException) -> Unconfirmed:
        if self._wire is wire:
            self._abandon(wire)
            self._wait_before_next(error)
        return Unconfirmed(f"A publish was not confirmed: {describe(error)}.")

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
            closer = asyncio.create_task(close(wire.connection, _CLOSES_WITHIN))
            self._closers.add(closer)
            closer.add_done_callback(self._closers.discard)


class _Wire:
    """A connection with its channel, until one of them ends."""

    def __init__(
        self, connection: AbstractConnection, channel: AbstractChannel, underlay: UnderlayChannel
    ) -> None:
        self.connection = connection
        self._channel = channel
        self._underlay = underlay
        self._books = underlay if can_burst(underlay) else None
        if self._books is None:
            _warn_of_no_bursts()
        self.in_flight: set[str] = set()

    @classmethod
    async def open(cls, settings: Settings, purpose: str) -> "_Wire":
        connection = await connect(settings, purpose)
        try:
            channel = connection.channel(publisher_confirms=True, on_return_raises=True)
            with client_errors():
                async with asyncio.timeout(settings.connect_timeout):
                    await channel.initialize()
                    underlay = await channel.get_underlay_channel()
        except CLIENT_ERRORS as error:
            await close(connection, settings.connect_timeout)
            raise BrokerAway(f"RabbitMQ opens no channel: {describe(error)}.") from None
        except asyncio.CancelledError:
            await close(connection, 0)  # nobody would ever close it
            raise
        return cls(connection, channel, underlay)

    @property
    def is_open(self) -> bool:
        return not (self._channel.is_closed or self.connection.is_closed)

    async def write(self, messages: Sequence[Outgoing], answers: list[Confirm]) -> None:
        """Writes the messages, adds an answer to `answers` for each, and waits for all of them."""
        books = self._books
        for start in range(0, len(messages), _AT_ONCE):
            if start:
                await asyncio.sleep(0)  # others have a turn
            some = messages[start : start + _AT_ONCE]
            answers += await burst(books, some) if books else one_by_one(self._underlay, some)
        await asyncio.wait(answers)
        if books:
            forget(books, messages)


@cache
def _warn_of_no_bursts() -> None:
    """Warns once in a process, not at each of its connections."""
    _log.warning(
        "publisher.no_bursts",
        aiormq=version("aiormq"),
        meaning="publishing works, and takes three times the CPU time",
        remedy="install the versions in requirements.lock",
    )


def outgoing(
    exchange: str,
    routing_key: str,
    body: bytes,
    *,
    message_id: str,
    type: str,  # the property's name
    headers: Mapping[str, str],
) -> Outgoing:
    """A persistent JSON message with the current time."""
    properties = Basic.Properties(
        content_type=amqp.CONTENT_TYPE,
        delivery_mode=DeliveryMode.PERSISTENT,
        headers=dict(headers),
        message_id=message_id,
        message_type=type,
        timestamp=datetime.now(UTC),
    )
    return Outgoing(exchange, routing_key, properties, body)


def new_message_id() -> str:
    """A new message id."""
    return uuid4().hex
