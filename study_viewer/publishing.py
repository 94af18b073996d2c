"""Publishes one recorded batch to the broker, and waits for the answer."""

from datetime import UTC, datetime
from uuid import uuid4

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractConnection, AbstractExchange, HeadersType
from aio_pika.exceptions import DeliveryError, PublishError

from study_viewer.outbox import Entry
from study_viewer.schemas.amqp import (
    ATTEMPT_BATCH_TYPE,
    CLIENT_SESSION_UUID_HEADER,
    CONTENT_TYPE,
    INGEST_EXCHANGE,
    PRINCIPAL_HEADER,
    TRACEPARENT_HEADER,
)


async def ingest_exchange(connection: AbstractConnection) -> AbstractExchange:
    """The exchange for attempt batches, on a channel of its own with publisher confirms."""
    channel = connection.channel(publisher_confirms=True, on_return_raises=True)
    await channel.initialize()
    # It is not looked up, because that needs a permission. The first publish reports a missing one.
    return await channel.get_exchange(INGEST_EXCHANGE, ensure=False)


async def publish(
    exchange: AbstractExchange,
    entry: Entry,
    routing_key: str,
    user_id: str | None,
    principal: int | None = None,
) -> str | None:
    """Publishes one batch and waits for the broker's answer. `principal` is the user whose session
    it is, if the viewer may write for several.

    Returns None if the broker has confirmed it, or one sentence about why it did not accept it. If
    this is cancelled or times out, the outcome is unknown. Then nothing else may be published on
    this channel, because a late answer could be mistaken for another one.
    """
    try:
        await exchange.publish(
            message(entry, user_id, principal), routing_key=routing_key, mandatory=True
        )
    except PublishError:
        return (
            f"no queue takes messages for {routing_key!r} on the exchange {exchange.name!r}:"
            " set up the broker's topology"
        )
    except DeliveryError:
        return "the broker refused the message, most likely because the queue is full: wait"
    return None


def _app() -> str:
    """This library and its version, by which operators see what is in use."""
    from study_viewer import __version__  # which is there only when everything is imported

    return f"study-viewer {__version__}"


def message(entry: Entry, user_id: str | None, principal: int | None = None) -> Message:
    """The AMQP message for one attempt to publish `entry`."""
    headers: HeadersType = {
        CLIENT_SESSION_UUID_HEADER: str(entry.client_session_uuid),
        TRACEPARENT_HEADER: entry.traceparent,
    }
    if principal is not None:
        headers[PRINCIPAL_HEADER] = str(principal)
    return Message(
        entry.body,
        delivery_mode=DeliveryMode.PERSISTENT,
        content_type=CONTENT_TYPE,
        type=ATTEMPT_BATCH_TYPE,
        timestamp=datetime.now(UTC),
        # New for each attempt. aiormq finds returned messages by this id, and could mix up the
        # answers of two messages in flight with the same id.
        message_id=str(uuid4()),
        user_id=user_id,
        app_id=_app(),
        headers=headers,
    )
