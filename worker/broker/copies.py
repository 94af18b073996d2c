"""Copies of a message that waits in the broker for another try, or for a newer worker; and replays.

A copy is confirmed before its original is acked, so a message is twice there rather than never. It
carries the body and headers of our own, and of what the publisher wrote nothing else: no property
of a stranger can make the broker refuse it. Knows properties and headers; may not know what became
of a message, nor why.
"""

import hashlib
import re
from typing import Any, Final, NamedTuple
from uuid import UUID

from aio_pika import DeliveryMode, Message
from pamqp.commands import Basic

from schemas import amqp
from schemas.errors import Rejection
from worker.broker import field_table
from worker.broker.burst import Outgoing
from worker.broker.publisher import Misdirected, Publisher, Unacceptable, new_message_id
from worker.broker.topology import retry_queue

_DETAIL_MAX: Final = 500
_SHORT_STRING_BYTES_MAX: Final = 255
_ENCODING: Final = re.compile(r"[a-zA-Z0-9-]{0,32}")
_UNKNOWN: Final = "unknown"
"""Instead of a type or an encoding that nobody understands: the copy is not understood either."""


class Envelope(NamedTuple):
    """What must outlive a message in its copies; whatever its publisher wrote of it is checked."""

    viewer: str | None
    routing_key: str
    retries: int = 0
    version: tuple[int, int] | None = None
    """None where neither its type nor its routing key says one."""
    content_encoding: str = ""
    client_session_uuid: UUID | None = None
    traceparent: str | None = None
    principal: int | None = None
    """The user that the viewer named, if it named one."""
    refused: Rejection | None = None
    """Why it is not read again, though it is tried again: it was refused when it came."""
    replay_id: UUID | None = None
    """The replay by which it came, if it had been a dead letter before."""


def envelope_of(
    table: bytes,
    *,
    viewer: str | None,
    routing_key: bytes,
    client_session_uuid: UUID | None,
    replay_id: UUID | None = None,
) -> Envelope:
    """The envelope of a dead letter, whose properties are `table`; as if it was never tried."""
    properties = field_table.values_in(table)
    table_of_headers = properties.get("headers")
    headers = table_of_headers if isinstance(table_of_headers, dict) else {}
    said, encoding = properties.get("type"), properties.get("content_encoding")
    key = routing_key.decode(errors="replace")
    return Envelope(
        viewer,
        key,
        version=amqp.version_of_batch(said if isinstance(said, str) else None, key),
        content_encoding=encoding if isinstance(encoding, str) else "",
        client_session_uuid=client_session_uuid,
        traceparent=amqp.traceparent_of(headers),
        principal=named_principal(headers),
        replay_id=replay_id,
    )


def named_principal(headers: object) -> int | None:
    """The user that a message's headers name; None if they name none, or nothing readable."""
    if not isinstance(headers, dict):
        return None
    try:
        return amqp.principal_of(headers)
    except ValueError:
        return None


async def defer(
    publisher: Publisher,
    body: bytes,
    envelope: Envelope,
    delay: float,
    *,
    is_counted: bool = True,
    to_partition: bool = False,
) -> None:
    """Puts a copy into the queue in which it waits `delay` seconds, one try further if it counts.

    With `to_partition` it comes back to its viewer's partition.

    Raises `Unconfirmed`: then the copy may not be there, and the original must not be acked. Where
    that is `Unacceptable` the broker takes no copy at all.
    """
    retries = envelope.retries + is_counted
    await _send(publisher, retry_queue(delay), body, envelope, retries, to_partition)


async def postpone(
    publisher: Publisher, body: bytes, envelope: Envelope, *, to_partition: bool = False
) -> None:
    """Puts a copy where it waits for a newer worker; that counts as no try.

    Raises as `defer` does.
    """
    unread = envelope._replace(refused=None)
    await _send(publisher, amqp.NEWER_QUEUE, body, unread, envelope.retries, to_partition)


def replay_copy(body: bytes, envelope: Envelope) -> Outgoing:
    """The message that puts a dead letter back into the queue that workers consume.

    Its message id is `envelope.replay_id`, however often it is published.
    """
    message_id = str(envelope.replay_id)
    properties = _message(body, envelope, 0, message_id=message_id, is_bare=False).properties
    return Outgoing(amqp.RETURN_EXCHANGE, _short(envelope.routing_key), properties, body)


class Replayed:
    """A dead letter as a worker would get it, were it replayed; it can't be settled."""

    def __init__(self, body: bytes, envelope: Envelope) -> None:
        message = _message(body, envelope, 0, message_id=new_message_id(), is_bare=False)
        self.body = body
        self.size = len(body)
        self.exchange: str = amqp.RETURN_EXCHANGE
        self.routing_key = ""
        self.properties: Basic.Properties = message.properties
        self.times_busy = 0

    @property
    def headers(self) -> dict[str, Any]:
        return self.properties.headers or {}

    def digest(self) -> bytes:
        """The SHA-256 of the body."""
        return hashlib.sha256(self.body).digest()

    def field_table(self) -> bytes:
        """As of any message."""
        return field_table.of_values({"headers": self.headers})

    def identity(self) -> bytes:
        """As of any message."""
        return self.field_table()


async def _send(
    publisher: Publisher,
    queue: str,
    body: bytes,
    envelope: Envelope,
    retries: int,
    to_partition: bool,
) -> None:
    message_id = new_message_id()
    # With partitions, each of these queues has an exchange of its name. The hash of the first
    # routing key then finds the partition when the copy comes back.
    exchange, key = (queue, _short(envelope.routing_key)) if to_partition else ("", queue)
    try:
        await publisher.send(
            exchange, key, _message(body, envelope, retries, message_id=message_id, is_bare=False)
        )
    except (Unacceptable, Misdirected) as error:
        if isinstance(error, Misdirected) and not to_partition:
            raise
        # Perhaps because of another message, or because the exchange is not there any more: so
        # alone, straight into the queue, and perhaps with as little as can be.
        is_bare = isinstance(error, Unacceptable)
        async with publisher.alone() as alone:
            await alone.send(
                "", queue, _message(body, envelope, retries, message_id=message_id, is_bare=is_bare)
            )


def _message(
    body: bytes, envelope: Envelope, retries: int, *, message_id: str, is_bare: bool
) -> Message:
    headers: dict[str, str | int] = {
        amqp.ROUTING_KEY_HEADER: _short(envelope.routing_key),
        amqp.RETRIES_HEADER: retries,
    }
    if envelope.viewer is not None:
        # The property user_id can't be published again: the broker would refuse it of us.
        headers[amqp.VIEWER_HEADER] = envelope.viewer
    if envelope.refused is not None:
        headers[amqp.REASON_HEADER] = str(envelope.refused.reason)
        headers[amqp.DETAIL_HEADER] = envelope.refused.detail[:_DETAIL_MAX]
    if envelope.principal is not None:
        headers[amqp.PRINCIPAL_HEADER] = str(envelope.principal)
    if envelope.replay_id is not None:
        headers[amqp.REPLAY_HEADER] = str(envelope.replay_id)
    if not is_bare:
        if envelope.client_session_uuid is not None:
            headers[amqp.CLIENT_SESSION_UUID_HEADER] = str(envelope.client_session_uuid)
        if envelope.traceparent is not None:
            headers[amqp.TRACEPARENT_HEADER] = envelope.traceparent
    return Message(
        body,
        headers=dict(headers),
        content_encoding=None if is_bare else _encoding(envelope.content_encoding),
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=message_id,
        type=_type(envelope.version),
    )


def _type(version: tuple[int, int] | None) -> str:
    if version is None:
        return _UNKNOWN
    major, minor = version
    return amqp.batch_type(major, minor)


def _encoding(said: str) -> str | None:
    if not said:
        return None
    return said if _ENCODING.fullmatch(said) else _UNKNOWN


def _short(text: str) -> str:
    """Cut to what the protocol's short string holds: decoding may have made it longer."""
    return text.encode()[:_SHORT_STRING_BYTES_MAX].decode(errors="ignore")
