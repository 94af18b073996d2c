"""Reading an attempt batch: exactly what its JSON Schema says, and never a crash or an echo."""

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.attempt_batch import MAX_ATTEMPTS, MAX_BODY_BYTES, AttemptBatch, decode
from schemas.documents import json_schema
from schemas.errors import Rejection
from schemas.words import RejectReason
from tests.schemas.from_schema import from_schema

SCHEMA = json_schema(AttemptBatch, "validation")
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
UUID_TEXT = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"

Json = dict[str, Any]

quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def body(document: object) -> bytes:
    return json.dumps(document).encode()


def attempt(**fields: object) -> Json:
    return {"question_pub_id": "q-1", "selected_choice": 2} | fields


def batch(*attempts: object, **fields: object) -> Json:
    return {"client_session_uuid": UUID_TEXT, "attempts": list(attempts)} | fields


def rejection(sent: bytes, **limits: int) -> Rejection:
    with pytest.raises(Rejection) as caught:
        decode(sent, **limits)
    return caught.value


def accepted(sent: bytes) -> bool:
    try:
        decode(sent)
    except Rejection:
        return False
    return True


# ---- the schema and the decoder say the same -------------------------------------------------


@given(from_schema(SCHEMA))
@quick
def test_every_batch_that_the_schema_allows_is_decoded(document: Json) -> None:
    read = decode(body(document))
    assert len(read.attempts) == len(document["attempts"])
    assert read.client_session_uuid == UUID(document["client_session_uuid"])


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**31 - 1, -(2**31), -(2**31) - 1, 10**400, 1.0, -0.0, 1e10, 0.5])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["", "\x00", "a\x00b", "x" * 128, "x" * 129, "\U0001f600" * 128])
    | st.sampled_from([UUID_TEXT, UUID_TEXT.upper(), UUID_TEXT.replace("-", "")])
    | st.sampled_from([re.sub("[0-9a-f]", digit, UUID_TEXT) for digit in "0fF1"])
    | st.sampled_from([f"{{{UUID_TEXT}}}", f"urn:uuid:{UUID_TEXT}", f"{UUID_TEXT}0"])
    | st.sampled_from(["2026-03-01T09:30:00Z", "yesterday"])
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
nearly_attempt = st.fixed_dictionaries(
    {},
    optional={
        "question_pub_id": scalars,
        "selected_choice": scalars,
        "is_unsure": scalars,
        "answered_at": scalars,
        "duration_ms": scalars | st.sampled_from([86_400_000, 86_400_001, 86_400_000.0]),
        "confidence": anything,
    },
)
nearly_batch = st.fixed_dictionaries(
    {},
    optional={
        "client_session_uuid": st.just(UUID_TEXT) | scalars,
        "attempts": st.lists(nearly_attempt | anything, max_size=3) | anything,
        "app": anything,
    },
)


@given(nearly_batch | anything)
@quick
def test_the_decoder_and_the_schema_agree_on_anything(document: object) -> None:
    assert accepted(body(document)) == VALIDATOR.is_valid(document)


@given(from_schema(SCHEMA), st.data())
@quick
def test_they_agree_on_a_batch_with_one_thing_changed(document: Json, data: st.DataObject) -> None:
    place: Any = data.draw(st.sampled_from([document, *document["attempts"]]))
    keys = ["client_session_uuid", "attempts"] if place is document else list(nearly_keys())
    key = data.draw(st.sampled_from(keys))
    if data.draw(st.booleans()):
        place.pop(key, None)
    else:
        place[key] = data.draw(anything)
    assert accepted(body(document)) == VALIDATOR.is_valid(document)


def nearly_keys() -> tuple[str, ...]:
    return ("question_pub_id", "selected_choice", "is_unsure", "answered_at")


def test_the_schema_has_the_limit_on_attempts() -> None:
    assert VALIDATOR.is_valid(batch(*[attempt()] * MAX_ATTEMPTS))
    assert not VALIDATOR.is_valid(batch(*[attempt()] * (MAX_ATTEMPTS + 1)))


# ---- what JSON Schema can't say --------------------------------------------------------------


@given(st.binary(max_size=200))
@quick
def test_no_bytes_crash_the_decoder(sent: bytes) -> None:
    if not accepted(sent):
        assert rejection(sent).reason is RejectReason.MALFORMED


@pytest.mark.parametrize(
    ("sent", "detail"),
    [
        (b"", "not JSON at line 1, column 1"),
        (b"\xef\xbb\xbf" + body(batch(attempt())), "not JSON at line 1, column 1"),
        (b"\xff\xfe{", "not UTF-8 at byte 0"),
        (body(batch(attempt()))[:-1], "not JSON"),
        (body(batch(attempt())) + b"{}", "not JSON"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"[" * 500_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"x":' + b"9" * 5_000 + b"}", "too many digits"),
        (b'{"x":NaN}', "NaN"),
        (b'{"x":-Infinity}', "-Infinity"),
        (b'{"x":1,"x":1}', "the same key twice"),
        (b'{"attempts":[{"is_unsure":true,"is_unsure":false}]}', "the same key twice"),
        (b'{"x":"\x01"}', "not JSON"),
        (body(batch()), "attempts: should have at least 1 item"),
        (body(batch(attempts=None)), "attempts: should be an array"),
        (body(batch(7)), "attempts.0: should be an object"),
        (body(batch(attempt(selected_choice=True))), "attempts.0.selected_choice"),
        (body(batch(attempt(selected_choice="2"))), "attempts.0.selected_choice"),
        (body(batch(attempt(selected_choice=1e400))).replace(b"Infinity", b"1e400"), "selected"),
        (body(batch(attempt(is_unsure=1))), "attempts.0.is_unsure"),
        (body(batch(attempt(question_pub_id="\ud800"))), "attempts.0.question_pub_id"),
        (body(batch(attempt(question_pub_id="a\x00"))), "attempts.0.question_pub_id"),
        (body(batch(attempt(), client_session_uuid="\ud800")), "client_session_uuid"),
        (body(batch(attempt(), client_session_uuid=UUID_TEXT + "\n")), "client_session_uuid"),
        (body(batch(attempt(), client_session_uuid=1)), "client_session_uuid"),
        (body(batch(attempt(), client_session_uuid="Q" + UUID_TEXT[1:])), "should be a uuid of 36"),
        (body(batch(attempt(), client_session_uuid=UUID_TEXT.replace("-", ""))), "36 characters"),
        (body(batch(attempt(), client_session_uuid=f"{{{UUID_TEXT}}}")), "36 characters"),
        (body(batch(attempt(), client_session_uuid=f"urn:uuid:{UUID_TEXT}")), "36 characters"),
        (body(batch(*[{}] * 5)), "and 2 more"),
    ],
)
def test_malformed_bodies_are_told_in_one_sentence(sent: bytes, detail: str) -> None:
    rejected = rejection(sent)
    assert rejected.reason is RejectReason.MALFORMED
    assert detail in rejected.detail
    assert len(rejected.detail) < 300
    assert "`" not in rejected.detail  # in which pydantic shows what it was given
    assert rejected.detail.endswith(".")


@pytest.mark.parametrize(
    ("sent", "detail"),
    [
        (b" " * 20_000_000, "20000000 bytes, and the limit is 1048576"),
        (body(batch(*[0] * 10_000)), "10000 attempts, and the limit is 1000"),
    ],
)
def test_large_batches_are_refused_before_they_are_looked_at(sent: bytes, detail: str) -> None:
    rejected = rejection(sent)
    assert rejected.reason is RejectReason.TOO_LARGE
    assert detail in rejected.detail


def test_the_limits_are_the_largest_that_pass() -> None:
    sent = body(batch(*[attempt()] * MAX_ATTEMPTS))
    assert decode(sent + b" " * (MAX_BODY_BYTES - len(sent)))
    assert rejection(sent, max_attempts=MAX_ATTEMPTS - 1).reason is RejectReason.TOO_LARGE
    assert rejection(sent, max_body_bytes=len(sent) - 1).reason is RejectReason.TOO_LARGE


@given(nearly_batch)
@quick
def test_an_error_detail_never_repeats_message_content(document: Json) -> None:
    secret = "S3CR3T"
    for sent in (body(_marked(document, secret)), body(_marked(document, secret))[:-1]):
        try:
            decode(sent)
        except Rejection as rejected:
            assert secret.lower() not in str(rejected).lower()


def test_unknown_fields_make_no_difference() -> None:
    plain = decode(body(batch(attempt())))
    assert decode(body(batch(attempt(mood="\ud800"), app={"version": [3]}))) == plain


# ---- the digest ------------------------------------------------------------------------------

attempts = st.builds(
    attempt,
    question_pub_id=st.sampled_from(["a", "b", "a\x01", '"', "ä"]),
    selected_choice=st.none() | st.integers(-2, 2),
    is_unsure=st.booleans(),
    answered_at=st.none() | st.sampled_from(["2026-03-01T09:30:00Z", "2026-03-01T09:30:01Z"]),
)
batches = st.builds(
    lambda made, uuid: batch(*made, client_session_uuid=str(uuid)),
    st.lists(attempts, min_size=1, max_size=3),
    st.uuids(allow_nil=False) | st.just(UUID(UUID_TEXT)),
)


@given(batches, batches)
@quick
def test_other_content_has_another_digest(one: Json, other: Json) -> None:
    same = decode(body(one)) == decode(body(other))
    assert (decode(body(one)).digest() == decode(body(other)).digest()) == same


@given(batches, st.data())
@quick
def test_any_change_of_content_changes_the_digest(document: Json, data: st.DataObject) -> None:
    before = decode(body(document)).digest()
    changed = data.draw(st.sampled_from(document["attempts"]))
    match data.draw(st.integers(0, 5)):
        case 0:
            changed["question_pub_id"] += "!"
        case 1:
            changed["selected_choice"] = (changed["selected_choice"] or 0) + 7
        case 2:
            changed["is_unsure"] = not changed["is_unsure"]
        case 3:
            changed["answered_at"] = "2026-03-01T09:30:02Z"
        case 4:
            document["attempts"].append(attempt())
        case _:
            document["client_session_uuid"] = "00000000-0000-4000-8000-000000000000"
    assert decode(body(document)).digest() != before


@given(batches, st.integers(0, 3), st.booleans())
@quick
def test_spelling_does_not_change_the_digest(document: Json, indent: int, upper: bool) -> None:
    before = decode(body(document)).digest()
    document["later"] = {"field": 1}
    if upper:
        document["client_session_uuid"] = document["client_session_uuid"].upper()
    for each in document["attempts"]:
        each["later"] = [None]
        each["duration_ms"] = 4200
        if each["is_unsure"] is False:
            del each["is_unsure"]
        if each["selected_choice"] is None:
            del each["selected_choice"]
        else:
            each["selected_choice"] = float(each["selected_choice"])
        if each["answered_at"] is None:
            each["answered_at"] = "unreadable"
        else:
            each["answered_at"] = (
                each["answered_at"].replace("09:30", "10:30").replace("Z", "+01:00")
            )
    turned = json.loads(body(document), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    spelled = json.dumps(turned, indent=indent, ensure_ascii=False).encode()
    assert decode(spelled).digest() == before


@pytest.mark.parametrize("duration", [None, 0, 4200.0, 86_400_000])
def test_a_duration_is_whole_milliseconds_of_at_most_a_day(duration: float | None) -> None:
    (read,) = decode(body(batch(attempt(duration_ms=duration)))).attempts
    assert read.duration_ms == duration


@pytest.mark.parametrize("duration", [-1, 86_400_001, 0.5, "4200", True, [], {}])
def test_another_duration_is_malformed(duration: object) -> None:
    refused = rejection(body(batch(attempt(), attempt(duration_ms=duration))))
    assert refused.reason is RejectReason.MALFORMED
    assert "attempts.1.duration_ms: " in refused.detail


def test_the_digest_of_known_batches_has_not_changed() -> None:
    # Stored in the inbox: a change here would turn every late duplicate into `uuid_reused`.
    known = "73aac02733f373a845e809768d91906651e0486ec770fe6dee44f3cfa92f2337"
    sent = batch(attempt(answered_at="2026-03-01T09:30:00Z"), attempt(is_unsure=True))
    assert decode(body(sent)).digest().hex() == known


@given(st.lists(st.none() | st.datetimes(timezones=st.just(UTC)), min_size=1, max_size=5))
@settings(max_examples=1_000, deadline=None)
def test_the_digest_is_of_plain_json_with_iso_times(times: list[datetime | None]) -> None:
    texts = [None if at is None else at.isoformat() for at in times]
    document = batch(*(attempt(question_pub_id="fräge", answered_at=each) for each in texts))
    content = [UUID_TEXT, [["fräge", 2, False, each] for each in texts]]
    spelled = json.dumps(content, separators=(",", ":")).encode()
    assert decode(body(document)).digest() == hashlib.sha256(spelled).digest()


def _marked(value: Any, mark: str) -> Any:
    """`value` with `mark` in all its strings and unknown keys, where it stays JSON."""
    if isinstance(value, str):
        return mark + value
    if isinstance(value, list):
        return [_marked(inner, mark) for inner in value]
    if isinstance(value, dict):
        return {
            key if re.fullmatch("[a-z_]+", key) else mark + key: _marked(inner, mark)
            for key, inner in value.items()
        }
    return value
