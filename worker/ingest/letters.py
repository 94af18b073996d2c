"""The step *keep*: what becomes a dead letter, and what makes two of them the same one. Pure.

The key of a letter is the SHA-256 of its viewer, its reason, its routing key, its properties (the
message id among them) and headers without the broker's own counters, and the SHA-256 of its body.
So a rejection that is delivered again is the same letter, and the same batch published again is
another one.
"""

import hashlib
from datetime import datetime
from typing import Final
from uuid import UUID

from worker.domain.records import DeadLetter, Original

_DETAIL_MAX: Final = 500


def dead_letter(
    original: Original,
    viewer: str | None,
    client_session_uuid: UUID | None,
    reason: str,
    detail: str,
    *,
    body_bytes_max: int,
    died_at: datetime | None = None,
) -> DeadLetter:
    """The letter that keeps the message, its body cut where it is longer than `body_bytes_max`."""
    message, routing_key, replay_id = original
    body, key = message.body[:body_bytes_max], routing_key.encode("utf-8", "surrogateescape")
    digest = message.digest()
    parts = ((viewer or "").encode(), reason.encode(), key, message.identity(), digest)
    return DeadLetter(
        _digest(*parts),
        died_at,
        reason,
        _plain(detail),
        viewer,
        key,
        client_session_uuid,
        replay_id,
        message.field_table(),
        body,
        message.size,
        digest if len(body) < message.size else None,
    )


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.digest()


def _plain(text: str) -> str:
    """The text as every database can hold it, whatever its encoding is."""
    plain = text.encode("ascii", "backslashreplace").decode().replace("\0", "\\x00")
    return plain[:_DETAIL_MAX]
