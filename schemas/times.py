"""Two readers of the times that viewers send: one for what is stored, and one for the digest.

`read_time` uses a grammar of our own, which may grow. `digest_time` never changes: the digest of a
body decides whether it is a duplicate, so every worker must compute the same digest for ever,
whatever Python it runs on. Neither depends on how the current interpreter reads times.
`usual_times` uses the interpreter only for a form that every Python since 3.11 reads in the same
way.
"""

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Final

Time = tuple[datetime, int | None]
"""A time in UTC, and the offset in minutes with which it was sent. The offset is None if there was
none.
"""

_MINUTE: Final = timedelta(minutes=1)
_CLOCK: Final = r"(?:[01]\d|2[0-3]):[0-5]\d"
_USUAL: Final = re.compile(
    rf"(?:\d\d\d\d-\d\d-\d\d[T ]{_CLOCK}:[0-5]\d(?:\.\d{{1,6}})?(?:Z|[+-]{_CLOCK})?\n)+", re.ASCII
).fullmatch
_GRAMMAR: Final = re.compile(
    r"([0-9]{4})(-?)([0-9]{2})\2([0-9]{2})"
    r"(?:[Tt ]([0-9]{2})(:?)([0-9]{2})(?:\6([0-9]{2})(?:[.,]([0-9]+))?)?"
    r"(?:([Zz])|([+-])([0-9]{2})(?::?([0-9]{2}))?)?)?"
).fullmatch


def usual_times(texts: Sequence[str | None]) -> list[datetime] | None:
    """Reads texts that are all in the usual form, each with the offset with which it was sent.

    Both readers read that form in the same way, and this function takes a tenth of the time.
    Returns None if one of the texts has another form, or names a day that does not exist.
    """
    try:
        if _USUAL("\n".join(texts) + "\n") is None:  # type: ignore[arg-type]  # so None is TypeError
            return None
        return [datetime.fromisoformat(text) for text in texts]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def in_utc(times: Sequence[datetime]) -> list[Time] | None:
    """The result of `read_time` for such times. None if one of them is outside the calendar in
    UTC.
    """
    try:
        return [
            (at.replace(tzinfo=UTC), None)
            if (offset := at.utcoffset()) is None
            else (at.astimezone(UTC), offset // _MINUTE)
            for at in times
        ]
    except OverflowError:
        return None


def read_time(text: str) -> Time | None:
    """Reads an RFC 3339 time. Returns None if it is not a valid time.

    It also accepts: a space or `t` instead of `T`, and `z`; no seconds; no offset, which means UTC;
    an offset without its colon or minutes; the basic format of ISO 8601, without hyphens and
    colons; and a date alone, which is its midnight. `24:00:00` is the next midnight, and second 60
    is the first second of the next minute. Digits after microseconds are dropped.
    """
    found = _GRAMMAR(text)
    if found is None:
        return None
    year, _, month, day, hour, _, minute, second, fraction, zulu, sign, *offset = found.groups()
    hours, minutes, seconds = int(hour or 0), int(minute or 0), int(second or 0)
    microseconds = int((fraction or "")[:6].ljust(6, "0"))
    offset_hours, offset_minutes = (int(part or 0) for part in offset)
    if minutes > 59 or seconds > 60 or offset_hours > 23 or offset_minutes > 59:
        return None
    if hours > 23 and (hours, minutes, seconds, microseconds) != (24, 0, 0, 0):
        return None
    sent_offset = (offset_hours * 60 + offset_minutes) * (-1 if sign == "-" else 1)
    try:
        midnight = datetime(int(year), int(month), int(day), tzinfo=UTC)
        at = midnight + timedelta(
            hours=hours, minutes=minutes - sent_offset, seconds=seconds, microseconds=microseconds
        )
    except (ValueError, OverflowError):
        return None
    return at, sent_offset if zulu or sign else None


def digest_time(text: str) -> datetime | None:
    """Reads a time in UTC exactly as version 0.1.0 did under CPython 3.11. Returns None if that
    failed.

    That version used `datetime.fromisoformat`, with everything that it accepted. Never change this.
    """
    # A separator could be half of a surrogate pair.
    for place in (7, 8, 10):
        if place < len(text) and "\ud800" <= text[place] <= "\udfff":
            text = f"{text[:place]}T{text[place + 1 :]}"
            break
    try:
        encoded = text.encode()
        if len(encoded) < 7:
            return None
        data = encoded + bytes(16)  # the end of a string in C
        separator = _separator(data, len(encoded))
        day = _date(data, separator)
        clock, zone = (0, 0, 0, 0), None
        if len(encoded) > separator:
            clock, zone = _clock_and_zone(data, separator + _width(data[separator]), len(encoded))
        at = datetime(day.year, day.month, day.day, *clock, tzinfo=zone)
        return at.replace(tzinfo=UTC) if zone is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


_ZERO, _NINE = b"09"


def _is_digit(byte: int) -> bool:
    return _ZERO <= byte <= _NINE


def _digits(data: bytes, start: int, count: int) -> int:
    """The number that these digits form. Raises ValueError for other characters."""
    part = data[start : start + count]
    if not all(map(_is_digit, part)):
        raise ValueError
    return int(part or b"0")


def _width(first: int) -> int:
    """The number of bytes of the character that begins with this byte."""
    if not first & 0x80:
        return 1
    return {0xE0: 3, 0xF0: 4}.get(first & 0xF0, 2)


def _separator(data: bytes, length: int) -> int:
    """The position at which the date ends."""
    if length == 7:
        return 7
    if data[4:5] == b"-":
        if data[5:6] != b"W":
            return 10
        if length > 8 and data[8:9] == b"-":
            if length == 9:
                raise ValueError
            return 8 if length > 10 and _is_digit(data[10]) else 10
        return 8
    if data[4:5] != b"W":
        return 8
    end = 7
    while end < length and _is_digit(data[end]):
        end += 1
    if end < 9:
        return end
    return 7 if end % 2 == 0 else 8


def _date(data: bytes, end: int) -> date:
    year = _digits(data, 0, 4)
    hyphen = 1 if data[4:5] == b"-" else 0
    if data[4 + hyphen : 5 + hyphen] == b"W":
        at = 7 + hyphen
        week, weekday = _digits(data, at - 2, 2), 1
        if at < end:
            if hyphen and data[at : at + 1] != b"-":
                raise ValueError
            weekday = _digits(data, at + hyphen, 1)
        return date.fromisocalendar(year, week, weekday)
    month = _digits(data, 4 + hyphen, 2)
    if hyphen and data[7:8] != b"-":
        raise ValueError
    day = _digits(data, 6 + 2 * hyphen, 2)
    if 8 + 2 * hyphen != end:
        raise ValueError
    return date(year, month, day)


def _clock_and_zone(
    data: bytes, start: int, end: int
) -> tuple[tuple[int, int, int, int], timezone | None]:
    zone_at = start
    while data[zone_at : zone_at + 1] not in (b"+", b"-", b"Z"):
        zone_at += 1
        if zone_at >= end:
            break
    clock, has_rest = _clock(data, start, zone_at)
    if zone_at == end:
        if has_rest:
            raise ValueError
        return clock, None
    if data[zone_at : zone_at + 1] == b"Z":
        if data[zone_at + 1] != 0:
            raise ValueError
        return clock, UTC
    (hours, minutes, seconds, microseconds), has_rest = _clock(data, zone_at + 1, end)
    if has_rest:
        raise ValueError
    sign = -1 if data[zone_at : zone_at + 1] == b"-" else 1
    whole = hours * 3600 + minutes * 60 + seconds
    if not whole:
        return clock, UTC
    return clock, timezone(timedelta(seconds=sign * whole, microseconds=sign * microseconds))


def _clock(data: bytes, start: int, end: int) -> tuple[tuple[int, int, int, int], bool]:
    """Hour, minute, second and microsecond, and whether anything follows them."""
    fields = [0, 0, 0]
    at, has_colons = start, True
    for place in range(3):
        fields[place] = _digits(data, at, 2)
        follows = data[at + 2]
        at += 3
        if place == 0:
            has_colons = follows == ord(":")
        if at >= end:
            return (*fields, 0), follows != 0  # type: ignore[return-value]  # three numbers
        if has_colons and follows == ord(":"):
            continue
        if follows in b".,":
            break
        if has_colons:
            raise ValueError
        at -= 1
    count = min(end - at, 6)
    microseconds = _digits(data, at, count) * 10 ** (6 - count)
    at += count
    while _is_digit(data[at]):
        at += 1
    hour, minute, second = fields
    return (hour, minute, second, microseconds), data[at] != 0
