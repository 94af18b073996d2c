"""A message's properties and headers as one AMQP field table, byte for byte as they came.

A dead letter keeps them in this form: no value is decoded on the way there, so none that a viewer
wrote can be in the way. Knows the encodings of AMQP 0-9-1; may not know what a property is for.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from pamqp import decode, encode

from worker.broker import decoders

Entry = tuple[bytes, bytes]
"""A key, and its value as the table holds it: a byte for its type, and the encoded value."""

EMPTY: Final = bytes(4)
"""The table that holds nothing."""

_SHORT_STRING: Final = b"s"
_PROPERTIES: Final = (
    # In the order of their flags, from the highest bit on: the name, and how a table says its type.
    (b"content_type", _SHORT_STRING),
    (b"content_encoding", _SHORT_STRING),
    (b"headers", b"F"),
    (b"delivery_mode", b"B"),
    (b"priority", b"B"),
    (b"correlation_id", _SHORT_STRING),
    (b"reply_to", _SHORT_STRING),
    (b"expiration", _SHORT_STRING),
    (b"message_id", _SHORT_STRING),
    (b"timestamp", b"T"),
    (b"type", _SHORT_STRING),
    (b"user_id", _SHORT_STRING),
    (b"app_id", _SHORT_STRING),
    (b"cluster_id", _SHORT_STRING),
)
_UNREADABLE: Final = b"unreadable"
"""The one key of properties that can't be told apart; its value is all of their bytes."""

_COUNTERS: Final = frozenset(
    {
        b"x-delivery-count",
        b"x-acquired-count",
        b"x-death",
        *(
            b"x-" + when + b"-death-" + what
            for when in (b"first", b"last")
            for what in (b"exchange", b"queue", b"reason")
        ),
    }
)
"""The headers in which a broker counts what has become of a message."""

_SIZES: Final = {
    **dict.fromkeys((b"V", b"\0"), 0),
    **dict.fromkeys((b"t", b"b", b"B"), 1),
    **dict.fromkeys((b"s", b"u", b"U"), 2),
    **dict.fromkeys((b"I", b"i", b"f"), 4),
    b"D": 5,
    **dict.fromkeys((b"l", b"L", b"d", b"T"), 8),
}
_WITH_LENGTH: Final = (b"S", b"x", b"A", b"F")


def of_properties(raw: bytes) -> bytes:
    """The table for a message's properties as they came on the wire: their flags and values."""
    try:
        return _table(_properties(raw))
    except (ValueError, struct.error):
        return _table([(_UNREADABLE, b"x" + _with_length(raw))])


def of_values(values: Mapping[str, Any]) -> bytes:
    """The table for plain values (text, numbers, lists, tables); a long text is no trouble."""
    return _table((name.encode(), _encoded(value)) for name, value in values.items())


def of_shown(shown: Mapping[str, Any]) -> bytes:
    """The table for a message's properties as the management API shows them. It is that of the wire
    as far as the API tells the types, so that a message is the same whichever way it was read.
    """
    known = {name.decode(): kind for name, kind in _PROPERTIES}
    names = [
        *(name for name in known if name in shown),
        *(name for name in shown if name not in known),
    ]
    return _table((name.encode(), _as_on_the_wire(known.get(name), shown[name])) for name in names)


def _as_on_the_wire(kind: bytes | None, value: Any) -> bytes:
    if kind in (b"B", b"T") and isinstance(value, int):
        with suppress(struct.error):
            return kind + struct.pack(">B" if kind == b"B" else ">Q", value)
    return _encoded(value)


def without_counters(table: bytes) -> bytes:
    """What stays the same of a table, however often and in whatever order the broker hands the
    message out: its entries but for the broker's counters, the headers in the order of their keys.
    """
    try:
        kept: list[Entry] = []
        for key, value in entries(table):
            if key == b"headers":
                headers = [each for each in entries(value[1:]) if each[0] not in _COUNTERS]
                if headers:
                    kept.append((key, b"F" + _table(sorted(headers))))
            else:
                kept.append((key, value))
        return _table(kept)
    except (ValueError, struct.error):
        return table


def entries(table: bytes) -> Iterator[Entry]:
    """The entries of a table, in their order; raises ValueError when it can't be read."""
    at, end = 4, 4 + _length(table, 0)
    if end > len(table):
        raise ValueError("the table is cut")
    while at < end:
        start = at + 1 + table[at]
        if start >= end:
            raise ValueError("an entry has no value")
        stop = _end_of_value(table, start)
        if stop > end:
            raise ValueError("a value is cut")
        yield table[at + 1 : start], table[start:stop]
        at = stop


def values_in(table: bytes) -> dict[str, Any]:
    """What a table says, for people and programs: never raises, and shows what can't be read."""
    try:
        return {key.decode("utf-8", "backslashreplace"): _decoded(v) for key, v in entries(table)}
    except (ValueError, struct.error):
        return {_UNREADABLE.decode(): table}


def _decoded(value: bytes) -> Any:
    if value[:1] == b"F":
        return values_in(value[1:])
    decoders.install()
    try:
        return decode.embedded_value(value)[1]
    except (ValueError, OverflowError, ArithmeticError, OSError, RecursionError, struct.error):
        return value[1:]


def _properties(raw: bytes) -> Iterator[Entry]:
    (flags,) = struct.unpack_from(">H", raw)
    if flags & 1:
        raise ValueError("there are more flags than properties")
    at = 2
    for place, (name, kind) in enumerate(_PROPERTIES):
        if not flags & 1 << 15 - place:
            continue
        if kind == _SHORT_STRING:
            start = at + 1
            at = start + raw[at] if at < len(raw) else len(raw) + 1
            value = b"S" + _with_length(raw[start:at])
        else:
            start = at
            at = _end(raw, kind, start)
            value = kind + raw[start:at]
        if at > len(raw):
            raise ValueError("a property is cut")
        yield name, value


def _end_of_value(table: bytes, start: int) -> int:
    return _end(table, table[start : start + 1], start + 1)


def _end(data: bytes, kind: bytes, start: int) -> int:
    """Where the value ends that begins there."""
    if kind in _WITH_LENGTH:
        return start + 4 + _length(data, start)
    if kind in _SIZES:
        return start + _SIZES[kind]
    raise ValueError(f"no type is {kind!r}")


def _length(data: bytes, at: int) -> int:
    return int(struct.unpack_from(">I", data, at)[0])


def _with_length(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _table(found: Iterator[Entry] | list[Entry]) -> bytes:
    return _with_length(b"".join(bytes([len(key)]) + key + value for key, value in found))


def _encoded(value: Any) -> bytes:
    match value:
        case bytes():
            return b"x" + _with_length(value)
        case str():
            return b"S" + _with_length(value.encode("utf-8", "surrogatepass"))
        case float():
            return b"d" + struct.pack(">d", value)
        case list():
            return b"A" + _with_length(b"".join(map(_encoded, value)))
        case Mapping():
            return b"F" + _with_length(
                b"".join(
                    bytes([len(name)]) + name + _encoded(each)
                    for name, each in ((str(key).encode()[:255], v) for key, v in value.items())
                )
            )
        case _:
            try:
                return encode.encode_table_value(value)
            except (TypeError, ValueError, OverflowError, struct.error):
                return _encoded(str(value))
