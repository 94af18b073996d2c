"""The step *intake*: what a delivery contains, who sent it, and whether that can be believed.

It turns a `Delivery` into the `Incoming` that the transaction takes. Whatever a publisher wrote
becomes a batch or a rejection, and never an exception.
"""

from dataclasses import replace
from typing import Any, Final, NamedTuple, NoReturn, Protocol
from uuid import UUID

import structlog
from pamqp.commands import Basic

from schemas import amqp
from schemas.attempt_batch import AttemptBatch, decode
from schemas.errors import Rejection
from schemas.words import RejectReason
from worker.broker import identity
from worker.broker.copies import Envelope
from worker.broker.decoders import UNREADABLE_HEADERS
from worker.broker.subscription import Delivery
from worker.domain.records import Bytes, Original, storable
from worker.ingest.resolve import Incoming
from worker.settings import Settings

_log = structlog.get_logger(__name__)

_MAJOR: Final = 1
"""The major version of attempt batches that this worker knows, with all its minor versions."""
_PATIENCE: Final = 3
"""The number of times a batch may find its principal busy before it waits for it."""
_PLAIN_ENCODINGS: Final = ("", "utf-8", "identity")
_APP_MAX: Final = 64
"""Characters that are kept of what a publisher calls itself."""
_COPYING_HEADERS: Final = ("CC", "BCC")
"""Headers with routing keys, which the broker's topic permissions ignore before 4.0."""


class Readable(Bytes, Protocol):
    """A message, wherever it lies, and how it came: a delivery, or a dead letter."""

    exchange: str
    routing_key: str
    properties: Basic.Properties
    times_busy: int

    @property
    def headers(self) -> dict[str, Any]: ...


class Taken(NamedTuple):
    """A delivery in hand, read."""

    delivery: Delivery
    envelope: Envelope
    incoming: Incoming

    @property
    def version(self) -> tuple[int, int] | None:
        """The batch's, as (major, minor), if it has one."""
        return self.envelope.version

    @property
    def is_for_newer_worker(self) -> bool:
        """Whether the only problem is that this worker is too old for the message."""
        content = self.incoming.content
        return (
            isinstance(content, Rejection)
            and content.reason is RejectReason.UNSUPPORTED_VERSION
            and self.version is not None
            and self.version[0] > _MAJOR
        )

    @property
    def is_exhausted(self) -> bool:
        """Whether this was its last attempt."""
        content = self.incoming.content
        return isinstance(content, Rejection) and content.reason is RejectReason.RETRIES_EXHAUSTED

    def exhausted(self, why: str) -> "Taken":
        """The same delivery as one that will not be tried again."""
        rejection = Rejection(
            RejectReason.RETRIES_EXHAUSTED, f"{why}: it is kept, and an operator can replay it."
        )
        return self._replace(incoming=replace(self.incoming, content=rejection))


def read(delivery: Delivery, settings: Settings) -> Taken:
    """Reads one delivery. It never raises."""
    return Taken(delivery, *understand(delivery, settings))


def understand(delivery: Readable, settings: Settings) -> tuple[Envelope, Incoming]:
    """What a message contains, and what its copies carry of that. It never raises."""
    returned = delivery.exchange == amqp.RETURN_EXCHANGE
    envelope = _returned_envelope(delivery) if returned else _envelope(delivery, settings)
    headers = delivery.headers
    principal: int | None = None
    version = amqp.version_of_batch(delivery.properties.message_type, envelope.routing_key)
    content: AttemptBatch | Rejection
    try:
        if envelope.refused is not None:
            raise envelope.refused
        if not returned:
            _refuse_forgeries(delivery)
        if envelope.viewer is None:
            _refuse(
                RejectReason.UNIDENTIFIED_PUBLISHER,
                "The sender is unknown: publish to study.ingest under the routing key"
                " of the viewer whose login is used.",
            )
        principal = _principal_of(headers)
        content = _decode(delivery, version, settings)
        uuid: UUID | None = content.client_session_uuid
    except Rejection as rejection:
        content = rejection
        uuid = _uuid(headers.get(amqp.CLIENT_SESSION_UUID_HEADER))
    traceparent = amqp.traceparent_of(headers)
    envelope = envelope._replace(
        version=version,
        content_encoding=delivery.properties.content_encoding or "",
        client_session_uuid=uuid,
        traceparent=traceparent,
        principal=principal,
        refused=content if isinstance(content, Rejection) else None,
    )
    return envelope, Incoming(
        viewer=envelope.viewer,
        content=content,
        client_session_uuid=uuid,
        traceparent=traceparent,
        principal=principal,
        can_come_again=delivery.times_busy < _PATIENCE,
        published_at=None if returned else storable(delivery.properties.timestamp),
        app=_app(delivery),
        original=Original(delivery, envelope.routing_key, envelope.replay_id),
    )


def _envelope(delivery: Readable, settings: Settings) -> Envelope:
    """Identifies the sender (see `identity.sender`)."""
    viewer = amqp.viewer_of_key(delivery.routing_key)
    login = delivery.properties.user_id
    return Envelope(
        identity.sender(viewer, login, delivery.exchange, settings), delivery.routing_key
    )


def _returned_envelope(delivery: Readable) -> Envelope:
    """Identifies the sender by our own headers, because no viewer may publish to this exchange."""
    viewer = delivery.headers.get(amqp.VIEWER_HEADER)
    routing_key = delivery.headers.get(amqp.ROUTING_KEY_HEADER)
    retries = delivery.headers.get(amqp.RETRIES_HEADER)
    return Envelope(
        viewer if isinstance(viewer, str) and amqp.is_viewer(viewer) else None,
        routing_key if isinstance(routing_key, str) else delivery.routing_key,
        retries if isinstance(retries, int) and retries >= 0 else 0,
        refused=_refused(delivery.headers),
        replay_id=_uuid(delivery.headers.get(amqp.REPLAY_HEADER)),
    )


def _app(delivery: Readable) -> str | None:
    return (delivery.properties.app_id or "").replace("\0", "")[:_APP_MAX] or None


def _principal_of(headers: dict[str, Any]) -> int | None:
    try:
        return amqp.principal_of(headers)
    except ValueError as error:
        _refuse(RejectReason.MALFORMED, f"{str(error).capitalize()}.")


def _refused(headers: dict[str, Any]) -> Rejection | None:
    """Why the message was refused when it first came, if that could not be written down then."""
    reason, detail = headers.get(amqp.REASON_HEADER), headers.get(amqp.DETAIL_HEADER)
    if not isinstance(reason, str) or reason not in {*RejectReason}:
        return None
    return Rejection(RejectReason(reason), detail if isinstance(detail, str) else "")


def _refuse_forgeries(delivery: Readable) -> None:
    if UNREADABLE_HEADERS in delivery.headers:
        _refuse(RejectReason.MALFORMED, "The message's headers can't be read.")
    if any(name in delivery.headers for name in _COPYING_HEADERS):
        _refuse(
            RejectReason.MALFORMED,
            "The message has a CC or BCC header: publish each batch once, under one key.",
        )


def _decode(
    delivery: Readable, version: tuple[int, int] | None, settings: Settings
) -> AttemptBatch:
    if version is None or version[0] != _MAJOR:
        _refuse(
            RejectReason.UNSUPPORTED_VERSION,
            f"The message's type is not {amqp.ATTEMPT_BATCH_TYPE}: publish that version, or"
            " upgrade the worker.",
        )
    if (delivery.properties.content_encoding or "").lower() not in _PLAIN_ENCODINGS:
        _refuse(
            RejectReason.MALFORMED,
            "The body is compressed or otherwise encoded: publish plain UTF-8 JSON.",
        )
    try:
        return decode(
            delivery.body,
            max_body_bytes=settings.max_body_bytes,
            max_attempts=settings.max_attempts,
        )
    except Rejection:
        raise
    except Exception as error:  # noqa: BLE001  # a body must never stop a worker
        _log.exception("delivery.undecodable", error=type(error).__name__)
        _refuse(RejectReason.MALFORMED, "The body can't be read.")


def _refuse(reason: RejectReason, detail: str) -> NoReturn:
    raise Rejection(reason, detail)


def _uuid(value: object) -> UUID | None:
    if isinstance(value, str) and len(value) == 36:
        try:
            return UUID(value)
        except ValueError:
            return None
    return None
