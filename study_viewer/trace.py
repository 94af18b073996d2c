"""W3C trace context, version 00: as much as is needed to begin a trace for a batch."""

import re
import secrets

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def new_traceparent() -> str:
    """A new `traceparent` that is marked as sampled."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    made = f"00-{trace}-{span}-01"
    # All zeros is the only invalid value, and as likely as any other.
    return made if is_traceparent(made) else new_traceparent()


def is_traceparent(text: str) -> bool:
    """Whether `text` is a `traceparent` that a receiver may use."""
    return _TRACEPARENT.fullmatch(text) is not None


def checked_traceparent(given: str | None) -> str:
    """`given`, or a new one if it is None. Raises ValueError if it is not valid."""
    if given is None:
        return new_traceparent()
    if not is_traceparent(given):
        raise ValueError(
            f"traceparent {given!r} is not of the form 00-<32 hex>-<16 hex>-<2 hex>:"
            " leave it out to begin a new trace"
        )
    return given
