"""Reading times: by our own grammar for what is stored, and as 0.1.0 did for the digest."""

import json
import random
import sys
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.attempt_batch import AttemptBatch, decode
from schemas.errors import Rejection
from schemas.times import digest_time, in_utc, read_time, usual_times
from tests.schemas.released import attempt_batch_0_1_0 as released

CPYTHON_311: Final = sys.implementation.name == "cpython" and sys.version_info < (3, 12)
"""Whether the interpreter is the one whose reading of times is frozen."""

BODIES: Final = 100_000
UUID_TEXT: Final = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"

READ = {
    # RFC 3339
    "2026-03-01T09:30:00Z": ("2026-03-01T09:30:00+00:00", 0),
    "2026-03-01T09:30:00.250Z": ("2026-03-01T09:30:00.250000+00:00", 0),
    "2026-03-01t09:30:00z": ("2026-03-01T09:30:00+00:00", 0),
    "2026-03-01 09:30:00Z": ("2026-03-01T09:30:00+00:00", 0),
    "2026-03-01T10:30:00+01:00": ("2026-03-01T09:30:00+00:00", 60),
    "2026-03-01T00:30:00-09:30": ("2026-03-01T10:00:00+00:00", -570),
    "2026-03-01T09:30:00-00:00": ("2026-03-01T09:30:00+00:00", 0),
    "2026-03-01T09:30:00.123456789Z": ("2026-03-01T09:30:00.123456+00:00", 0),
    "2024-02-29T12:00:00Z": ("2024-02-29T12:00:00+00:00", 0),
    # a second that a clock adds, and the end of a day
    "2016-12-31T23:59:60Z": ("2017-01-01T00:00:00+00:00", 0),
    "2016-12-31T23:59:60.5Z": ("2017-01-01T00:00:00.500000+00:00", 0),
    "2026-03-01T12:00:60+05:30": ("2026-03-01T06:31:00+00:00", 330),
    "2026-02-28T24:00:00Z": ("2026-03-01T00:00:00+00:00", 0),
    "2026-02-28T24:00:00.000+01:00": ("2026-02-28T23:00:00+00:00", 60),
    "2026-02-28T24:00": ("2026-03-01T00:00:00+00:00", None),
    # without an offset, without seconds, with less of an offset
    "2026-03-01T09:30:00": ("2026-03-01T09:30:00+00:00", None),
    "2026-03-01T09:30": ("2026-03-01T09:30:00+00:00", None),
    "2026-03-01T09:30Z": ("2026-03-01T09:30:00+00:00", 0),
    "2026-03-01T10:30+0100": ("2026-03-01T09:30:00+00:00", 60),
    "2026-03-01T10:30:00+01": ("2026-03-01T09:30:00+00:00", 60),
    "2026-03-01T09:30:00,5Z": ("2026-03-01T09:30:00.500000+00:00", 0),
    # ISO 8601's basic format, and a date
    "20260301T093000Z": ("2026-03-01T09:30:00+00:00", 0),
    "20260301T103000.25+0100": ("2026-03-01T09:30:00.250000+00:00", 60),
    "2026-03-01": ("2026-03-01T00:00:00+00:00", None),
    # clocks that are wrong are read as they are
    "0008-03-01T09:30:00Z": ("0008-03-01T09:30:00+00:00", 0),
    "2569-03-01T09:30:00+07:00": ("2569-03-01T02:30:00+00:00", 420),
}

UNREADABLE = [
    "",
    "yesterday",
    "1772357400",
    "2026-03-01T09:30:00Zulu",
    "2026-03-01T09:30:00Z\n",
    " 2026-03-01T09:30:00Z",
    "2026-03-01T",
    "2026-03-01T9:30:00Z",
    "2026-03-01T09:30:61Z",
    "2026-03-01T09:60:00Z",
    "2026-03-01T24:00:01Z",
    "2026-03-01T24:00:00.001Z",
    "2026-03-01T25:00:00Z",
    "2026-03-01T09:30:00+24:00",
    "2026-03-01T09:30:00+01:60",
    "2026-02-29T09:30:00Z",
    "2026-13-01T09:30:00Z",
    "0000-03-01T09:30:00Z",
    "0001-01-01T00:00:00+08:00",
    "9999-12-31T24:00:00Z",
    "2026-0301T09:30:00Z",
    "2026-03-01T0930:00Z",
    "2026-W09-7T09:30:00Z",
    "2026-03-01T09:30:00\u0660Z",
    "٢٠٢٦-03-01T09:30:00Z",
    "2026-03-01T09:30:00Z\x00",
    "\ud800",
]


@pytest.mark.parametrize("text", READ)
def test_a_time_is_read_with_its_offset(text: str) -> None:
    read = read_time(text)
    assert read is not None
    assert (read[0].isoformat(), read[1]) == READ[text]
    assert read[0].tzinfo is UTC


@pytest.mark.parametrize("text", UNREADABLE)
def test_invalid_times_are_not_read(text: str) -> None:
    assert read_time(text) is None


moments = st.timedeltas(timedelta(days=-719_000), timedelta(days=2_932_000)).map(
    lambda since: datetime(1970, 1, 1, tzinfo=UTC) + since
)


@given(moments, st.integers(-23 * 60 - 59, 23 * 60 + 59), st.sampled_from("Tt "))
@settings(deadline=None)
def test_every_time_is_read_back_from_rfc_3339(at: datetime, offset: int, letter: str) -> None:
    local = (at + timedelta(minutes=offset)).replace(tzinfo=None)
    hours, minutes = divmod(abs(offset), 60)
    text = local.isoformat(sep=letter) + f"{'-' if offset < 0 else '+'}{hours:02}:{minutes:02}"
    assert read_time(text) == (at, offset)


@given(st.lists(st.sampled_from([*READ, *UNREADABLE]), min_size=1, max_size=4))
@settings(deadline=None)
def test_the_fast_reader_reads_as_both_slow_ones_or_not_at_all(texts: list[str]) -> None:
    usual = usual_times(texts)
    read = None if usual is None else in_utc(usual)
    if read is not None:
        assert read == [read_time(text) for text in texts]
        assert [at for at, _ in read] == [digest_time(text) for text in texts]


# ---- the digest's reader ---------------------------------------------------------------------

AS_UNDER_311 = {
    "2026-03-01": "2026-03-01T00:00:00+00:00",
    "2026-03-01T09": "2026-03-01T09:00:00+00:00",
    "2026-03-01x09:30": "2026-03-01T09:30:00+00:00",
    "2026-03-01\U0001f60009:30": "2026-03-01T09:30:00+00:00",
    "2026-03-01\ud80009:30": "2026-03-01T09:30:00+00:00",
    "2026-W09-7T09:30": "2026-03-01T09:30:00+00:00",
    "2026W097T0930": "2026-03-01T09:30:00+00:00",
    "2026-W01-09": "2025-12-29T09:00:00+00:00",
    "2015-W53-7": "2016-01-03T00:00:00+00:00",
    "20260301T093000,5Z": "2026-03-01T09:30:00.500000+00:00",
    "20260301T09300025": "2026-03-01T09:30:00.250000+00:00",
    "2026-03-01T09:30:15:25": "2026-03-01T09:30:15.250000+00:00",
    "2026-03-01T09.5": "2026-03-01T09:00:00.500000+00:00",
    "2026-03-01T09:30:00.1234567x+01:00": "2026-03-01T08:30:00.123456+00:00",
    "2026-03-01T09:30:00+01:99": "2026-03-01T06:51:00+00:00",
    "2026-03-01T09:30:00+01:00:30.5": "2026-03-01T08:29:29.500000+00:00",
    "2026-03-01T09:30:00+00:00:00.5": "2026-03-01T09:30:00+00:00",
    "2026-03-01T09:30:00Z\x00what": "2026-03-01T09:30:00+00:00",
    "2026-03-01T09:30\x00": "2026-03-01T09:30:00+00:00",
    # what newer interpreters, and our own grammar, read
    "2026-03-01T24:00:00Z": None,
    "2026-03-01T24:00:00": None,
    "2026-03-01T09:30:60Z": None,
    "2026-03-01t09:30:00z": None,
    "2026-03-01T09:30:00z": None,
    "2026-03-01T": None,
    "2020-W53-8": None,
    "2021-W53-1": None,
    "0000-W52-7": None,
    "0001-01-01T00:00:00+08:00": None,
    "2026-03-01T09:30:00+24:00": None,
    "2026-03-01\ud800\ud80009:30": None,
    "": None,
}


@pytest.mark.parametrize("text", AS_UNDER_311)
def test_the_digest_reads_a_time_as_0_1_0_did_whatever_interpreter_runs(text: str) -> None:
    at = digest_time(text)
    assert (None if at is None else at.isoformat()) == AS_UNDER_311[text]


_LETTERS: Final = "0123456789-:.,TWZz+ t\x00x€😀é"
_WHOLE: Final = [text for text in (*READ, *UNREADABLE, *AS_UNDER_311) if "\ud800" not in text]


def _time(chance: random.Random) -> str | None:
    """A time, whole or with some characters changed; most of what comes out can still be read."""
    if chance.random() < 0.05:
        return None
    letters = [*chance.choice([*READ] if chance.random() < 0.7 else _WHOLE)]
    for _ in range(chance.choice((0, 0, 0, 0, 1, 3))):
        place = chance.randrange(len(letters) + 1)
        letters[place : place + chance.choice((0, 1, 1))] = chance.choice(_LETTERS)
    return "".join(letters)


def _body(chance: random.Random) -> bytes:
    attempts: list[dict[str, Any]] = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        attempt: dict[str, Any] = {
            "question_pub_id": chance.choice(("a", 'b"', "ä", "x" * 128, "😀")),
            "selected_choice": chance.choice((None, 0, 1, -7, 2.0)),
            "is_unsure": chance.random() < 0.2,
            "answered_at": _time(chance),
            # What minor versions add, and what nobody has added yet.
            "duration_ms": chance.choice((None, 1_500)),
            "mood": ["good"],
        }
        for name in ("selected_choice", "is_unsure", "answered_at", "duration_ms", "mood"):
            if chance.random() < 0.2:
                del attempt[name]
        attempts.append(attempt)
    uuid = f"{chance.randrange(2**128):032x}"
    parts = (uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:])
    body = {"client_session_uuid": "-".join(parts), "attempts": attempts}
    return json.dumps(body, ensure_ascii=chance.random() < 0.5).encode()


@pytest.mark.skipif(not CPYTHON_311, reason="0.1.0 reads times as the interpreter at hand does")
def test_workers_of_0_1_0_and_of_today_agree_about_every_body() -> None:
    chance = random.Random(20)
    times = 0
    for _ in range(BODIES):
        body = _body(chance)
        then, now = released.decode(body), decode(body)
        assert now.digest() == then.digest(), body
        times += sum(at is not None for at in now.sent_times.digested)
    assert times > BODIES / 2  # or nothing was compared


def test_a_field_of_a_minor_version_never_joins_the_digest() -> None:
    attempt = {"question_pub_id": "q-1", "selected_choice": 2, "answered_at": "2026-03-01T09:30Z"}
    plain = AttemptBatch.model_validate({"client_session_uuid": UUID_TEXT, "attempts": [attempt]})
    longer = plain.model_validate(
        {
            "client_session_uuid": UUID_TEXT,
            "attempts": [attempt | {"duration_ms": 2_000, "confidence": 3}],
            "device": "tablet",
        }
    )
    assert longer.digest() == plain.digest()
    assert set(released.Attempt.__dataclass_fields__) == {
        "question_pub_id",
        "selected_choice",
        "is_unsure",
        "answered_at",
    }


@pytest.mark.parametrize(
    "uuid",
    [
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "FfffFfff-FFFF-ffff-ffff-fffffffffffF",
    ],
)
def test_a_uuid_that_everybody_has_is_nobodys_key(uuid: str) -> None:
    body = {"client_session_uuid": uuid, "attempts": [{"question_pub_id": "q-1"}]}
    assert released.decode(json.dumps(body).encode())  # which took the first for a session
    with pytest.raises(Rejection, match="made for this session"):
        decode(json.dumps(body).encode())
