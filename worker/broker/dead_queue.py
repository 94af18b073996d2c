"""The queue of dead letters by the management API, for a message that AMQP 0-9-1 can't carry.

RabbitMQ 4 also speaks AMQP 1.0, in which a property may be longer than a connection of ours can be
sent: the broker closes it instead, again and again. The API has no such limit. Knows the API's
words; may not know what becomes of a message.
"""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from pamqp.commands import Basic

from schemas import amqp
from worker.broker import field_table
from worker.broker.management import Json, Management

_SHORT_STRING_BYTES_MAX: Final = 255


class ShownMessage:
    """A message that the API has shown."""

    def __init__(self, found: Json) -> None:
        said = found.get("properties")
        self._values: dict[str, Any] = dict(said) if isinstance(said, Mapping) else {}
        headers = self._values.get("headers")
        self.headers: dict[str, Any] = dict(headers) if isinstance(headers, Mapping) else {}
        self.body: bytes = base64.b64decode(found["payload"])
        self.size = len(self.body)
        # What is read of them later; none may be of a type that it is not.
        self.properties = Basic.Properties(
            content_encoding=_text(self._values.get("content_encoding")),
            message_type=_text(self._values.get("type")),
            user_id=_text(self._values.get("user_id")),
            message_id=_text(self._values.get("message_id")),
        )

    @property
    def can_be_delivered(self) -> bool:
        """Whether a connection of AMQP 0-9-1 survives it, as far as can be seen."""
        texts = [value for value in self._values.values() if isinstance(value, str)]
        texts += self.headers
        return all(len(text.encode()) <= _SHORT_STRING_BYTES_MAX for text in texts)

    def digest(self) -> bytes:
        """The SHA-256 of the body."""
        return hashlib.sha256(self.body).digest()

    def field_table(self) -> bytes:
        """Its properties and headers as an AMQP field table, as the API tells them."""
        return field_table.of_shown(self._values)

    def identity(self) -> bytes:
        """The same, as far as it stays the same however often the broker hands the message out."""
        return field_table.without_counters(self.field_table())


class DeadQueue(Management):
    """The queue `study.attempts.dead`. Raises as `Management` does."""

    async def head(self, *, take: bool = False) -> ShownMessage | None:
        """The message at the head, which stays where it is unless `take`; None when there is none.

        A message that stays has been returned once more.
        """
        queue = f"queues/{self._vhost}/{quote(amqp.DEAD_QUEUE, safe='')}/get"
        mode = "ack_requeue_false" if take else "ack_requeue_true"
        wanted = {"count": 1, "ackmode": mode, "encoding": "base64"}
        found = (await self._send("POST", queue, wanted)).json()
        return ShownMessage(found[0]) if found else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
