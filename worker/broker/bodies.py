"""Limits how much of a delivery's body is kept in memory.

The client reads every body to its end before anybody sees it, and the broker sends as many messages
as the prefetch allows, whatever their size. On a channel that is bounded here, `room` says how much
of a body to keep. The rest is read and dropped. This replaces a private function of the client.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from inspect import signature
from typing import Final

import structlog
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

Room = Callable[[int], int]
"""The number of bytes to keep of a body of this size, asked when the body begins to arrive."""

_log = structlog.get_logger(__name__)

_PARAMETERS: Final = ["frame", "header"]
"""The parameters of the client's function that is replaced."""

_DIGEST: Final = "sha256"


def digest_of_cut(header: ContentHeader) -> bytes | None:
    """The SHA-256 of a body of which not all was kept; None for any other."""
    digest: bytes | None = getattr(header, _DIGEST, None)
    return digest


def bound(channel: AbstractChannel, room: Room) -> None:
    """Limits the bodies of everything that is delivered on the channel.

    If the client does not have the functions that this replaces and calls, it changes nothing and
    warns once.
    """
    reader = getattr(channel, "_read_content", None)
    next_frame = getattr(channel, "_get_frame", None)
    if next_frame is None or reader is None or [*signature(reader).parameters] != _PARAMETERS:
        _warn_of_whole_bodies()
        return

    async def read_content(frame: Basic.Deliver, header: ContentHeader) -> DeliveredMessage:
        size = header.body_size
        left = room(size)
        digest = hashlib.sha256() if left < size else None
        parts: list[bytes] = []
        read = 0
        while read < size:
            content = await next_frame()
            if not isinstance(content, ContentBody):
                raise ValueError(f"Unexpected frame {content!r} inside a body")
            read += len(content.value)
            if digest is not None:
                digest.update(content.value)
            if left > 0:
                parts.append(content.value[:left])
                left -= len(parts[-1])
        if digest is not None:
            setattr(header, _DIGEST, digest.digest())
        return DeliveredMessage(
            delivery=frame, header=header, body=b"".join(parts), channel=channel
        )

    channel._read_content = read_content  # type: ignore[attr-defined]


@cache
def _warn_of_whole_bodies() -> None:
    """Warns once in a process, not at each of its connections."""
    _log.warning(
        "consumer.whole_bodies",
        aiormq=version("aiormq"),
        meaning="bodies are read whole, so a prefetch of large ones can take all the memory",
        remedy="install the versions in requirements.lock",
    )
