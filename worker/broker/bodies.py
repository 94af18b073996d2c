"""Reads no more of a delivery's body than there is room for.

The client reads every body to its end before anybody sees it, and the broker sends as many as the
prefetch, whatever their size. On a channel that is bounded here, a body is kept as far as `room`
says, and what follows is read and dropped.
"""

from collections.abc import Callable

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

Room = Callable[[int], int]
"""How many bytes to keep of a body of so many bytes, when it begins to arrive."""


def bound(channel: Channel, room: Room) -> None:
    """Bounds the bodies of everything that is delivered on the channel."""

    async def read_content(frame: Basic.Deliver, header: ContentHeader) -> DeliveredMessage:
        size = header.body_size
        left = room(size)
        parts: list[bytes] = []
        read = 0
        while read < size:
            content = await channel._get_frame()
            if not isinstance(content, ContentBody):
                raise ValueError(f"Unexpected frame {content!r} inside a body")
            read += len(content.value)
            if left > 0:
                parts.append(content.value[:left])
                left -= len(parts[-1])
        return DeliveredMessage(
            delivery=frame, header=header, body=b"".join(parts), channel=channel
        )

    channel._read_content = read_content  # type: ignore[method-assign, assignment]
