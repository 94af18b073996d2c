"""Copies of a delivery: into the dead-letter queue with a reason, or into a retry queue.

A copy is confirmed before its original is acked, so a message is twice there rather than never.
Knows properties and headers; may not know what the reasons mean.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from aio_pika import DeliveryMode, Message
from pamqp import encode

from schemas import amqp
from schemas.words import RejectReason
from worker.broker.publisher import Publisher, new_message_id
from worker.broker.subscription import Delivery
from worker.broker.topology import retry_queue

_HEADERS_BYTES_MAX: Final = 16_384
"""Of the original's headers: they travel in one frame (128 KiB by default), ours with them."""
_DETAIL_MAX: Final = 500
_SHORT_STRING_BYTES_MAX: Final = 255


@dataclass(frozen=True, slots=True)
class Envelope:
    """What must outlive a delivery in its copies: who sent it, under which key, how often tried."""

    viewer: str | None
    routing_key: str
    retries: int


async def park(
    publisher: Publisher, delivery: Delivery, envelope: Envelope, reason: RejectReason, detail: str
) -> None:
    """Puts a copy of body, properties and headers into the dead-letter queue, with the reason.

    Raises `Unconfirmed`: then the copy may not be there, and the original must not be acked.
    """
    headers = _ours(envelope) | {
        amqp.REASON_HEADER: str(reason),
        amqp.DETAIL_HEADER: detail[:_DETAIL_MAX],
        amqp.PARKED_AT_HEADER: datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    await publisher.send(
        amqp.DEAD_EXCHANGE, _short(envelope.routing_key) or "", _copy(delivery, headers)
    )


async def defer(
    publisher: Publisher,
    delivery: Delivery,
    envelope: Envelope,
    delay: float,
    *,
    is_counted: bool = True,
) -> None:
    """Puts a copy into the queue in which it waits `delay` seconds, one try further if it counts.

    Raises `Unconfirmed` as `park` does.
    """
    headers = _ours(envelope) | {amqp.RETRIES_HEADER: envelope.retries + is_counted}
    await publisher.send("", retry_queue(delay), _copy(delivery, headers))


async def postpone(publisher: Publisher, delivery: Delivery, envelope: Envelope) -> None:
    """Puts a copy where it waits for a newer worker; that counts as no try.

    Raises `Unconfirmed` as `park` does.
    """
    await publisher.send("", amqp.NEWER_QUEUE, _copy(delivery, _ours(envelope)))


async def replay(publisher: Publisher, delivery: Delivery, envelope: Envelope) -> None:
    """Puts a copy into the queue that workers consume, as one that was never tried before.

    Raises `Unconfirmed` as `park` does.
    """
    fresh = replace(envelope, retries=0)
    await publisher.send(amqp.RETURN_EXCHANGE, "", _copy(delivery, _ours(fresh)))


def replayed(delivery: Delivery, envelope: Envelope) -> Delivery:
    """The delivery as a worker would get it after `replay`; it can't be settled."""
    headers = _theirs(delivery.headers) | _ours(replace(envelope, retries=0))
    return delivery.as_if(amqp.RETURN_EXCHANGE, "", headers)


def _ours(envelope: Envelope) -> dict[str, str | int]:
    headers: dict[str, str | int] = {
        amqp.ROUTING_KEY_HEADER: _short(envelope.routing_key) or "",
        amqp.RETRIES_HEADER: envelope.retries,
    }
    if envelope.viewer is not None:
        # The property user_id can't be published again: the broker would refuse it of us.
        headers[amqp.VIEWER_HEADER] = envelope.viewer
    return headers


def _copy(delivery: Delivery, headers: Mapping[str, str | int]) -> Message:
    """The delivery as a new message, without what would take it away again (its expiration)."""
    properties = delivery.properties
    return Message(
        delivery.body,
        headers=_theirs(delivery.headers) | dict(headers),
        content_type=_short(properties.content_type),
        content_encoding=_short(properties.content_encoding),
        delivery_mode=DeliveryMode.PERSISTENT,
        correlation_id=_short(properties.correlation_id),
        message_id=new_message_id(),
        timestamp=properties.timestamp,
        type=_short(properties.message_type),
        app_id=_short(properties.app_id),
    )


def _theirs(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The publisher's headers that can travel on: not the broker's, not ours, not too many."""
    sized: list[tuple[int, str, Any]] = []
    for key, value in headers.items():
        if key.startswith(("x-", "study-")) or key in ("CC", "BCC"):
            continue
        try:
            size = len(encode.field_table({key: value}))
        except (TypeError, ValueError, OverflowError, struct.error, RecursionError):
            continue
        sized.append((size, key, value))
    kept: dict[str, Any] = {}
    room = _HEADERS_BYTES_MAX
    for size, key, value in sorted(sized, key=lambda each: each[0]):
        room -= size
        if room < 0:
            break
        kept[key] = value
    return kept


def _short(text: str | None) -> str | None:
    """Cut to what the protocol's short string holds: decoding may have made it longer."""
    if text is None:
        return None
    return text.encode()[:_SHORT_STRING_BYTES_MAX].decode(errors="ignore")
