"""Prevents unusual message properties from closing the worker's connection.

The client decodes the properties of a delivery before anybody can look at them. If it can't
represent a value (a timestamp in the year 55,000, a type that is not UTF-8, a table nested a
thousand levels deep), its reader ends, and with it the connection. The broker would count a return
of every message in hand and deliver them again, until all of them become dead letters, including
the good ones. So the few decoders that can fail are replaced by ones that can't, and
`worker.consume.intake` rejects messages that are not readable.
"""

import struct
from contextlib import suppress
from typing import Final

from pamqp import decode, frame, header
from pamqp.common import FieldTable, FieldValue

from worker.errors import InstallationError

UNREADABLE_HEADERS: Final = "study-unreadable"
"""The only header of a message whose header table could not be read."""

_Decoded = tuple[int, FieldValue]

_NO_TIME: Final = struct.pack(">q", 2**63 - 1)
_HEADERS, _TIMESTAMP, _TYPE = 1 << 13, 1 << 6, 1 << 5
"""Which properties a content header has (AMQP 0-9-1, 4.2.6.1)."""

_RAW: Final = "raw_properties"
_NO_PROPERTIES: Final = bytes(2)
_BEFORE_PROPERTIES: Final = 12
"""Bytes of a content header: its class, its weight, and the size of the body."""
_unmarshal: Final = header.ContentHeader.unmarshal


def install() -> None:
    """Replaces the decoders for this process, and reads samples to check that the client uses them.

    Calling it again makes no difference. Raises `InstallationError` if the client reads messages
    with other functions, because a single message could then close every worker's connection.
    """
    with suppress(AttributeError):  # the samples will show it
        decode.METHODS["shortstr"] = _short_string
        decode.METHODS["timestamp"] = _timestamp
        decode.METHODS["table"] = _headers
        decode.TABLE_MAPPING[b"T"] = _timestamp
        header.ContentHeader.unmarshal = _keeping_raw  # type: ignore[method-assign, assignment]
    table = b"\x02atT" + _NO_TIME
    read = _read(_HEADERS | _TIMESTAMP | _TYPE, _sized(table) + _NO_TIME + b"\x01\xff")
    unreadable = _read(_HEADERS, _sized(b"\x01a?"))
    if (read, unreadable) != (
        ({"at": None}, None, "\ufffd"),
        ({UNREADABLE_HEADERS: True}, None, None),
    ):
        raise InstallationError(
            "The installed version of pamqp can't be protected against unreadable messages",
            "install the versions in requirements.lock.",
        )


def _sized(table: bytes) -> bytes:
    return struct.pack(">I", len(table)) + table


def _read(flags: int, properties: bytes) -> tuple[object, object, object] | None:
    """The properties that the client reads from a content header. None if it can't read it."""
    payload = struct.pack(">HHQH", 60, 0, 0, flags) + properties  # class Basic, an empty body
    sample = struct.pack(">BHI", 2, 1, len(payload)) + payload + b"\xce"
    try:
        _, _, found = frame.unmarshal(sample)
    except Exception:  # noqa: BLE001  # whatever it raises would end the client's reader
        return None
    assert isinstance(found, header.ContentHeader)
    if raw_properties(found) != payload[_BEFORE_PROPERTIES:]:
        return None
    properties_read = found.properties
    return properties_read.headers, properties_read.timestamp, properties_read.message_type


def raw_properties(found: header.ContentHeader) -> bytes:
    """A delivery's properties as they arrived: their flags and values, none of them decoded."""
    raw: bytes = getattr(found, _RAW, _NO_PROPERTIES)
    return raw


def _keeping_raw(found: header.ContentHeader, data: bytes) -> None:
    setattr(found, _RAW, data[_BEFORE_PROPERTIES:])
    _unmarshal(found, data)


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
