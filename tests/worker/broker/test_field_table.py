"""Properties and headers as a field table: every byte comes through, and nothing makes it fail."""

import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic

from worker.broker import field_table
from worker.broker.field_table import (
    entries,
    of_properties,
    of_shown,
    of_values,
    values_in,
    without_counters,
)

TEXTS = {
    "content_type": 15,
    "content_encoding": 14,
    "correlation_id": 10,
    "reply_to": 9,
    "expiration": 8,
    "message_id": 7,
    "type": 5,
    "user_id": 4,
    "app_id": 3,
    "cluster_id": 2,
}
"""The properties that are texts, and the bits of their flags."""


def test_properties_are_read_as_the_client_wrote_them() -> None:
    sent = Basic.Properties(
        content_type="application/json",
        headers={"tries": 3, "nested": {"a": [1, "b"]}},
        delivery_mode=2,
        message_id="m",
        message_type="study.attempt_batch.v1",
        app_id="phone",
    )
    assert values_in(of_properties(sent.marshal())) == {
        "content_type": "application/json",
        "headers": {"tries": 3, "nested": {"a": [1, "b"]}},
        "delivery_mode": 2,
        "message_id": "m",
        "type": "study.attempt_batch.v1",
        "app_id": "phone",
    }


def test_a_message_is_the_same_on_the_wire_and_as_the_management_api_shows_it() -> None:
    sent = Basic.Properties(
        content_type="application/json",
        headers={"x-delivery-count": 3, "tracestate": "a"},
        delivery_mode=2,
        priority=0,
        message_id="m",
        timestamp=datetime(2026, 3, 1, 9, 30, tzinfo=UTC),
        message_type="study.attempt_batch.v1",
        user_id="ada",
    )
    shown = {
        "type": "study.attempt_batch.v1",
        "user_id": "ada",
        "timestamp": 1_772_357_400,
        "message_id": "m",
        "priority": 0,
        "delivery_mode": 2,
        "headers": {"tracestate": "a", "x-delivery-count": 7},
        "content_type": "application/json",
    }
    assert without_counters(of_shown(shown)) == without_counters(of_properties(sent.marshal()))


@pytest.mark.parametrize("name", ["delivery_mode", "timestamp", "headers", "message_id"])
@pytest.mark.parametrize("odd", [-1, 256, 2**63, 2**64, "2", None, ["x"], {"a": 1}])
def test_what_is_shown_of_another_type_comes_through(name: str, odd: object) -> None:
    table = of_shown({name: odd, "other": "x"})
    assert values_in(table).keys() == {name, "other"}
    without_counters(table)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("byte", [0, 10, 34, 92, 127, 128, 195, 255])
def test_every_byte_of_a_text_comes_through(name: str, byte: int) -> None:
    value = bytes([byte]) * 255
    raw = struct.pack(">H", 1 << TEXTS[name]) + b"\xff" + value
    ((key, kept),) = entries(of_properties(raw))
    assert (key, kept) == (name.encode(), b"S" + struct.pack(">I", 255) + value)


@given(st.binary(max_size=300))
def test_no_bytes_can_make_it_fail(raw: bytes) -> None:
    table = of_properties(raw)
    assert isinstance(values_in(table), dict)
    without_counters(table)
    values_in(raw)
    without_counters(raw)


@given(st.binary(max_size=200))
def test_headers_that_nobody_can_read_are_kept_as_they_are(headers: bytes) -> None:
    table = struct.pack(">I", len(headers)) + headers
    raw = struct.pack(">H", 1 << 13) + table
    ((key, kept),) = entries(of_properties(raw))
    assert (key, kept) == (b"headers", b"F" + table)
    assert "headers" in values_in(of_properties(raw))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=80), VALUES, max_size=4))
def test_plain_values_of_any_length_become_a_table(values: dict[str, object]) -> None:
    assert isinstance(values_in(of_values(values)), dict)


def test_a_text_that_no_property_could_hold_is_kept_whole() -> None:
    assert values_in(of_values({"type": "t" * 5_000})) == {"type": "t" * 5_000}


def test_what_the_broker_counts_and_how_it_sorts_make_no_difference() -> None:
    first = Basic.Properties(headers={"b": 1, "a": "x"}, app_id="phone").marshal()
    again = Basic.Properties(
        headers={
            "a": "x",
            "b": 1,
            "x-delivery-count": 4,
            "x-acquired-count": 5,
            "x-death": [{"queue": "study.attempts"}],
            "x-first-death-queue": "study.attempts",
        },
        app_id="phone",
    ).marshal()
    other = Basic.Properties(headers={"b": 2, "a": "x"}, app_id="phone").marshal()

    assert without_counters(of_properties(first)) == without_counters(of_properties(again))
    assert without_counters(of_properties(first)) != without_counters(of_properties(other))
    # Headers that came up with the second delivery alone.
    bare = Basic.Properties(app_id="phone").marshal()
    counted = Basic.Properties(app_id="phone", headers={"x-delivery-count": 1}).marshal()
    assert without_counters(of_properties(bare)) == without_counters(of_properties(counted))
    assert of_properties(bytes(2)) == field_table.EMPTY
