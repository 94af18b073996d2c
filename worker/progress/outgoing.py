"""Messages to viewers that do not last: pages, refusals and nudges."""

from datetime import UTC, datetime
from typing import Final

from aio_pika import DeliveryMode
from pamqp.commands import Basic

from schemas import amqp
from worker.broker.burst import Outgoing
from worker.broker.publisher import new_message_id

MINUTE: Final = 60.0


def passing(
    routing_key: str,
    type: str,  # the property's name
    body: bytes,
    *,
    answers: str | None = None,
    lives: float = MINUTE,
) -> Outgoing:
    """A message that the broker keeps in memory, and for `lives` seconds at most. It answers the
    request with the message id `answers`.
    """
    properties = Basic.Properties(
        content_type=amqp.CONTENT_TYPE,
        correlation_id=answers,
        delivery_mode=DeliveryMode.NOT_PERSISTENT,
        expiration=str(round(lives * 1000)),
        message_id=new_message_id(),
        message_type=type,
        timestamp=datetime.now(UTC),
    )
    return Outgoing(amqp.RESULTS_EXCHANGE, routing_key, properties, body)
