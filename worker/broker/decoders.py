"""Prevents unusual message properties from closing the worker's connection.

The client decodes the properties of a delivery before anybody can look at them. If it can't
represent a value (a timestamp in the year 55,000, a type that is not UTF-8, a table nested a
thousand levels deep), its reader ends, and with it the connection. The broker would count a return
of every message in hand and deliver them again, until all of them become dead letters, including
the good ones. So the few decoders that can fail are replaced by ones that can't, and
`worker.consume.intake` rejects messages that are not readable.
"""

import struct
from typing import Final

from pamqp import decode
from pamqp.common import FieldTable, FieldValue

UNREADABLE_HEADERS: Final = "study-unreadable"
"""The only header of a message whose header table could not be read."""

_Decoded = tuple[int, FieldValue]


def install() -> None:
    """Replaces the decoders for this process. Calling it again makes no difference."""
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["timestamp"] = _timestamp
    decode.METHODS["table"] = _headers
    decode.TABLE_MAPPING[b"T"] = _timestamp


def _short_string(value: bytes) -> tuple[int, str]:
    length = value[0]
    return length + 1, value[1 : length + 1].decode("utf-8", errors="replace")


def _timestamp(value: bytes) -> _Decoded:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return 8, None


def _headers(value: bytes) -> tuple[int, FieldTable]:
    try:
        return decode.field_table(value)
    except (ValueError, OverflowError, RecursionError, ArithmeticError, struct.error, IndexError):
        (length,) = struct.unpack(">I", value[:4])
        return length + 4, {UNREADABLE_HEADERS: True}
