"""The only error of the wire: a message that cannot be accepted, and why."""

from .words import RejectReason


class Rejection(Exception):
    """A delivery that can never be ingested as it is.

    `reason` is the stable word, and `detail` is one sentence for a person. The detail never repeats
    what the message contained, so that a message can't write into logs or headers.
    """

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
