"""Keeps a viewer's odd properties from closing the worker's connection.

The client decodes a delivery's properties before anybody can look at them, and a value that it
can't represent (a timestamp in the year 55,000, a type that is not UTF-8, a table nested a
thousand deep) ends its reader, and with it the connection: every message in hand would come
back counted, and come again, until the broker parks them all, the innocent too. So the few
decoders that can fail are replaced by ones that can't; `worker.consume.intake` then rejects what is
unreadable. Knows pamqp's decoder tables; may not know what a property is for.
"""

import struct
from typing import Final

from pamqp import decode
from pamqp.common import FieldTable, FieldValue

UNREADABLE_HEADERS: Final = "study-unreadable"
"""The one header of a message whose header table could not be read."""

_Decoded = tuple[int, FieldValue]


def install() -> None:
    """Replaces the decoders, once for the process; doing it again makes no difference."""
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
