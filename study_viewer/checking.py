"""Finds out what the server has lost: when to ask which batches it has, and how.

After a failover or a restore the server has another epoch, which its messages carry. What was
settled before is then unchecked, until the server has said that it has it, or until it was
published again. docs/viewers.md states the protocol.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID, uuid4

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractIncomingMessage

from study_viewer.schemas.amqp import CHECK_TYPE, CONTENT_TYPE, EPOCH_HEADER
from study_viewer.schemas.checks import Check
from study_viewer.settings import RelaySettings

NOBODY_CHECKS: Final = (
    "nobody says which batches the server still has: it is older than this library, or its topology"
    " is not set up"
)
MAY_NOT_CHECK: Final = (
    "this viewer may not ask which batches the server still has: ask the operator to run"
    " `study-ingest viewer upgrade`"
)
_OURS: Final = "check-"
"""How the ids of checks begin, so that an answer tells that it is about one."""


class Pace:
    """When to ask, by one clock that never goes back. Pure."""

    def __init__(self, settings: RelaySettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._due = 0.0
        self._tries = 0

    def wait(self) -> float:
        """The seconds until the next check may be sent."""
        return max(0.0, self._due - self._clock())

    def asked(self) -> None:
        """A check was sent. Without an answer there is another one, after growing delays."""
        self._due = self._clock() + patience(self._settings, self._tries)
        self._tries += 1

    def answered(self, again: int) -> None:
        """An answer has come, and so many batches are published again."""
        self._due = self._clock() + again / self._settings.resend_rate
        self._tries = 0


def patience(settings: RelaySettings, tries: int) -> float:
    """The seconds to wait for an answer after so many checks without one."""
    return min(settings.check_patience * 2.0 ** min(tries, 30), settings.check_patience_max)


def check(client_session_uuids: Sequence[UUID], user_id: str | None) -> Message:
    """The AMQP message that asks which of the batches the server has. `user_id` is the login, if it
    is the viewer.
    """
    return Message(
        Check(client_session_uuids=tuple(client_session_uuids)).model_dump_json().encode(),
        delivery_mode=DeliveryMode.NOT_PERSISTENT,
        content_type=CONTENT_TYPE,
        type=CHECK_TYPE,
        timestamp=datetime.now(UTC),
        message_id=f"{_OURS}{uuid4()}",
        user_id=user_id,
    )


def is_about_check(message: AbstractIncomingMessage) -> bool:
    """Whether a message answers a check."""
    return (message.correlation_id or "").startswith(_OURS)


def epoch_of(message: AbstractIncomingMessage) -> str | None:
    """The epoch of the server that had the message. None if an older worker sent it."""
    said = message.headers.get(EPOCH_HEADER)
    return said if isinstance(said, str) and said else None
