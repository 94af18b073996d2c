"""Intake: who sent a delivery, what can be believed of it, and nothing that raises."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pytest
from aiormq.abc import AbstractChannel, DeliveredMessage
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from schemas.errors import Rejection
from schemas.words import RejectReason
from tests.broker_fixtures import make_settings
from worker.broker.decoders import UNREADABLE_HEADERS
from worker.broker.subscription import Delivery, Subscription
from worker.consume.intake import Taken, read

UUID_1 = UUID(int=1)
BODY = json.dumps(
    {
        "client_session_uuid": str(UUID_1),
        "attempts": [{"question_pub_id": "q-1", "selected_choice": 1}],
    }
).encode()
TRACEPARENT = f"00-{10:032x}-{11:016x}-01"

OPEN = make_settings("amqp://unused", management_url=None)
STRICT = make_settings("amqp://unused", management_url=None, require_user_id=True)


def delivery(
    body: bytes = BODY,
    *,
    exchange: str = amqp.INGEST_EXCHANGE,
    routing_key: str = "attempts.v1.ada",
    redelivered: bool = False,
    **properties: Any,
) -> Delivery:
    frame = Basic.Deliver("tag", 1, redelivered)
    # Set apart, as the client's reader does: the constructor is stricter than the wire.
    frame.exchange, frame.routing_key = exchange, routing_key
    message = DeliveredMessage(
        delivery=frame,
        header=ContentHeader(properties=Basic.Properties(**properties)),
        body=body,
        channel=cast("AbstractChannel", None),
    )
    return Delivery(message, cast("Subscription", None))


def reason_of(taken: Taken) -> RejectReason | None:
    content = taken.incoming.content
    return content.reason if isinstance(content, Rejection) else None


def test_a_valid_delivery_is_read_as_a_batch() -> None:
    taken = read(
        delivery(
            user_id="ada",
            message_type="study.attempt_batch.v1.3",
            content_encoding="utf-8",
            headers={"traceparent": TRACEPARENT},
        ),
        STRICT,
    )
    assert isinstance(taken.incoming.content, AttemptBatch)
    assert taken.incoming.viewer == "ada"
    assert taken.incoming.client_session_uuid == UUID_1
    assert taken.incoming.traceparent == TRACEPARENT
    assert (taken.envelope.routing_key, taken.envelope.retries) == ("attempts.v1.ada", 0)


# Who sent it


@pytest.mark.parametrize(
    ("routing_key", "user_id", "strict", "viewer"),
    [
        ("attempts.v1.ada", "ada", True, "ada"),
        ("attempts.v1.ada", "ada", False, "ada"),
        ("attempts.v1.ada", None, False, "ada"),
        ("attempts.v1.ada", None, True, None),
        ("attempts.v1.ada", "", True, None),
        ("attempts.v1.ada", "eve", True, None),
        ("attempts.v1.ada", "eve", False, None),
        ("attempts.v1.ada", "ada\N{REPLACEMENT CHARACTER}", False, None),
        ("attempts.v1.a.b", "a.b", False, None),
        ("attempts.v1.", "", False, None),
        ("study.attempts", None, False, None),
        ("study.attempts", "study.attempts", False, None),
    ],
)
def test_the_viewer_is_who_the_broker_vouches_for(
    routing_key: str, user_id: str | None, strict: bool, viewer: str | None
) -> None:
    taken = read(delivery(routing_key=routing_key, user_id=user_id), STRICT if strict else OPEN)

    assert taken.incoming.viewer == taken.envelope.viewer == viewer
    expected = None if viewer else RejectReason.UNIDENTIFIED_PUBLISHER
    assert reason_of(taken) == expected


OURS = {
    amqp.VIEWER_HEADER: "bob",
    amqp.ROUTING_KEY_HEADER: "attempts.v1.bob",
    amqp.RETRIES_HEADER: 4,
}


def test_our_headers_are_believed_of_what_comes_back() -> None:
    taken = read(
        delivery(
            exchange=amqp.RETURN_EXCHANGE, routing_key="study.attempts.retry.100", headers=OURS
        ),
        STRICT,
    )
    assert taken.incoming.viewer == "bob"
    assert (taken.envelope.routing_key, taken.envelope.retries) == ("attempts.v1.bob", 4)
    assert isinstance(taken.incoming.content, AttemptBatch)


@pytest.mark.parametrize("exchange", [amqp.INGEST_EXCHANGE, "", "amq.topic"])
def test_our_headers_are_ignored_from_anybody_else(exchange: str) -> None:
    taken = read(delivery(exchange=exchange, headers=OURS), OPEN)

    assert taken.incoming.viewer == "ada"
    assert (taken.envelope.routing_key, taken.envelope.retries) == ("attempts.v1.ada", 0)


@pytest.mark.parametrize(
    "headers",
    [
        {amqp.VIEWER_HEADER: "a.b"},
        {amqp.VIEWER_HEADER: 7},
        {amqp.VIEWER_HEADER: None},
        {amqp.RETRIES_HEADER: 1},
        {},
    ],
)
def test_a_returned_message_without_a_viewer_is_unidentified(headers: dict[str, Any]) -> None:
    taken = read(delivery(exchange=amqp.RETURN_EXCHANGE, headers=headers), OPEN)

    assert taken.incoming.viewer is None
    assert reason_of(taken) is RejectReason.UNIDENTIFIED_PUBLISHER


@pytest.mark.parametrize("retries", [-1, "3", None, 1.5, Decimal(2), [1]])
def test_an_unreadable_count_of_retries_is_none(retries: object) -> None:
    headers = OURS | {amqp.RETRIES_HEADER: retries}
    assert (
        read(delivery(exchange=amqp.RETURN_EXCHANGE, headers=headers), OPEN).envelope.retries == 0
    )


# What is refused


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"headers": {"CC": ["attempts.v1.eve"]}}, RejectReason.MALFORMED),
        ({"headers": {"BCC": []}}, RejectReason.MALFORMED),
        ({"headers": {UNREADABLE_HEADERS: True}}, RejectReason.MALFORMED),
        ({"content_encoding": "gzip"}, RejectReason.MALFORMED),
        ({"message_type": "study.attempt_batch.v2"}, RejectReason.UNSUPPORTED_VERSION),
        ({"message_type": "other"}, RejectReason.UNSUPPORTED_VERSION),
        ({"body": b"{"}, RejectReason.MALFORMED),
        ({"body": b"[" * 100_000}, RejectReason.MALFORMED),
        ({"body": b"x" * 1_048_577}, RejectReason.TOO_LARGE),
    ],
)
def test_refused_and_told_to_whom_it_is_about(
    properties: dict[str, Any], reason: RejectReason
) -> None:
    headers = {amqp.CLIENT_SESSION_UUID_HEADER: str(UUID_1)} | properties.pop("headers", {})
    taken = read(delivery(headers=headers, **properties), OPEN)

    assert reason_of(taken) is reason
    assert taken.incoming.viewer == "ada"
    assert taken.incoming.client_session_uuid == UUID_1


@pytest.mark.parametrize("encoding", ["UTF-8", "identity", "", None])
def test_plain_encodings_are_taken(encoding: str | None) -> None:
    assert reason_of(read(delivery(content_encoding=encoding), OPEN)) is None


@pytest.mark.parametrize("value", [7, None, b"\xff", "not-a-uuid", str(UUID_1) + "0", "{" * 36, {}])
def test_an_unreadable_uuid_header_addresses_nobody(value: object) -> None:
    headers = {amqp.CLIENT_SESSION_UUID_HEADER: value}
    assert read(delivery(b"{", headers=headers), OPEN).incoming.client_session_uuid is None


@pytest.mark.parametrize("value", [7, b"\xff", "", "00-x", TRACEPARENT + "\n", TRACEPARENT.upper()])
def test_an_unreadable_traceparent_is_left_out(value: object) -> None:
    assert read(delivery(headers={"traceparent": value}), OPEN).incoming.traceparent is None


def test_a_count_on_a_first_delivery_is_forged() -> None:
    headers = {"x-delivery-count": 19}
    assert delivery(headers=headers).delivery_count == 0
    assert delivery(headers=headers, redelivered=True).delivery_count == 19
    assert delivery(headers={"x-delivery-count": "19"}, redelivered=True).delivery_count == 0


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.just(datetime(2024, 1, 1, tzinfo=UTC)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
NAMES = st.text() | st.sampled_from(
    [
        amqp.VIEWER_HEADER,
        amqp.ROUTING_KEY_HEADER,
        amqp.RETRIES_HEADER,
        amqp.CLIENT_SESSION_UUID_HEADER,
        amqp.TRACEPARENT_HEADER,
        "CC",
        "x-delivery-count",
    ]
)


@given(
    body=st.binary() | st.just(BODY),
    exchange=st.text() | st.just(amqp.RETURN_EXCHANGE),
    routing_key=st.text() | st.just("attempts.v1.ada"),
    redelivered=st.booleans(),
    headers=st.none() | st.dictionaries(NAMES, VALUES),
    user_id=st.none() | st.text(),
    message_type=st.none() | st.text(),
    content_encoding=st.none() | st.text(),
)
def test_nothing_a_publisher_writes_raises(**wild: Any) -> None:
    taken = read(delivery(**wild), OPEN)
    assert taken.incoming.viewer is None or amqp.is_viewer(taken.incoming.viewer)
    assert isinstance(taken.delivery.delivery_count, int)
