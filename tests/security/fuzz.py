"""Hostile deliveries by the million: `python -m tests.security.fuzz [--seconds N] [--seed N]`.

Three targets, in turn: a mutated body through intake; wild properties and headers through intake
and into a dead letter; mutated bytes of a property frame through the client's decoder. Nothing
may raise, a rejection is one printable sentence that repeats nothing of the message, what is
taken has one meaning however it is spelled, a dead letter fits into its frame, and memory stays.

With `--atheris` (if it is installed) coverage guides the bytes instead of chance.
"""

import argparse
import inspect
import json
import random
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import pamqp.decode
from pamqp import frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from schemas import amqp, attempt_batch
from schemas.attempt_batch import AttemptBatch, decode
from schemas.errors import Rejection
from tests.broker_fixtures import make_settings
from tests.worker.consume.test_intake import BODY, delivery
from worker.broker import copies, decoders, field_table
from worker.consume import intake
from worker.consume.intake import Taken, read

MARKER: Final = "pLaNtEd"
"""Stands in every message, and may stand in no sentence about one."""

FRAME_MAX: Final = 131_072

_SETTINGS = make_settings(
    "amqp://unused", management_url=None, max_body_bytes=65_536, require_user_id=True
)
_UUID = "00000000-0000-0000-0000-000000000001"

_TOKENS: Final = (
    *(b"\xff\xfe", b"\xed\xa0\x80", b"\x00"),
    *(
        token.encode()
        for token in (
            *'{}[]",:\\ ',
            *("null", "true", "NaN", "Infinity", "-0", "1e999", "1.0", "-2147483649", "9" * 4_400),
            *('"\\u0000"', '"\\ud800"', '"\\ud800\\udc00"', "\ufeff", "\u2028", "\x1b[31m", "\r\n"),
            *('"client_session_uuid":', '"attempts":[', '"question_pub_id":', '"answered_at":'),
            *('"0001-01-01T00:00:00+23:59"', '"9999-12-31T23:59:59-23:59"', '"2024-W01-1"', _UUID),
            *("[" * 2_000, '{"a":' * 2_000, f'"{MARKER}"'),
        )
    ),
)

_WILD: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1.0, 1.5, 2**31, -(2**31) - 1, 2**63, 10**400, float("1e308")),
    *("", MARKER, "\x00", "\ud800", "\x1b[2J\n", "x" * 129, "x" * 5_000, _UUID, _UUID.upper()),
    *("9999-12-31T23:59:59.999999-00:01", "0001-01-01T00:00+14", "24:00", "2024-02-30", "now"),
    *([], {}, [[]], [{}], {"": None}, [None] * 1_001),
)

# What the protocol can carry: 64 bits, and text that is UTF-8.
_WIRE: Final = tuple(
    value
    for value in _WILD
    if value != "\ud800" and not (isinstance(value, int) and abs(value) >= 2**63)
)


def body(chance: random.Random) -> bytes:
    """A batch with something changed: a value, some bytes, or nearly everything."""
    document: Any = {
        "client_session_uuid": _UUID,
        "attempts": [
            {
                "question_pub_id": f"{MARKER}-{n}",
                "selected_choice": chance.choice((1, None)),
                "is_unsure": False,
                "answered_at": "2024-03-01T09:30:00.250Z",
            }
            for n in range(chance.randint(1, 3))
        ],
        MARKER: MARKER,
    }
    for _ in range(chance.randint(0, 2)):
        place = chance.choice([document, *document["attempts"]])
        if isinstance(place, dict) and place is not document:
            place[chance.choice([*place, MARKER])] = chance.choice(_WILD)
        elif chance.random() < 0.3:
            document[chance.choice(["client_session_uuid", "new"])] = chance.choice(_WILD)
    try:
        text = json.dumps(document, ensure_ascii=chance.random() < 0.5).encode()
    except (ValueError, UnicodeEncodeError):
        text = json.dumps(document).encode()
    return mutated(text, chance) if chance.random() < 0.7 else text


def mutated(text: bytes, chance: random.Random) -> bytes:
    """The bytes with up to eight of them, or of their stretches, changed."""
    data = bytearray(text)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                data[at:at] = chance.choice(_TOKENS)
            case 2:
                del data[at : at + chance.randint(1, 20)]
            case 3:
                data[at:at] = data[at : at + chance.randint(1, 50)]
            case 4 if data:
                data[at % len(data)] = chance.randrange(256)
            case _:
                data[at:] = data[at:][::-1] if chance.random() < 0.05 else data[at:]
    return bytes(data)


def wild(chance: random.Random, depth: int = 0) -> Any:
    """A value of any type that a header can have."""
    if depth < 3 and chance.random() < 0.25:
        if chance.random() < 0.5:
            return [wild(chance, depth + 1) for _ in range(chance.randint(0, 4))]
        return {name(chance): wild(chance, depth + 1) for _ in range(chance.randint(0, 4))}
    return chance.choice(
        (
            *_WIRE,
            *(b"\xff" * 10, Decimal("1.5"), datetime(2024, 1, 1, tzinfo=UTC)),
            chance.randint(-(2**63), 2**63 - 1),
            "".join(chr(chance.choice((0, 10, 13, 27, 65, 0x2028, 0x10FFFF))) for _ in range(9)),
            MARKER * chance.randint(1, 4_000),
        )
    )


def name(chance: random.Random) -> str:
    """A header's name: one that means something, or none that does."""
    known = (
        *("CC", "BCC", "x-death", "x-delivery-count", amqp.TRACEPARENT_HEADER, "\n", "\x1b[0m"),
        *(amqp.VIEWER_HEADER, amqp.ROUTING_KEY_HEADER, amqp.RETRIES_HEADER, amqp.REASON_HEADER),
        *(amqp.DETAIL_HEADER, amqp.CLIENT_SESSION_UUID_HEADER, MARKER, "x" * 128),
    )
    return chance.choice(known) if chance.random() < 0.8 else MARKER + str(chance.random())


def check(taken: Taken) -> str:
    """What every delivery must come to; returns the word for what became of it."""
    incoming = taken.incoming
    assert incoming.viewer is None or amqp.is_viewer(incoming.viewer)
    assert taken.envelope.retries >= 0
    content = incoming.content
    if isinstance(content, AttemptBatch):
        assert incoming.viewer is not None
        spelled_anew = json.dumps(content.model_dump(), default=str, indent=1)
        again = decode(spelled_anew.encode())
        assert again.digest() == content.digest()
        return "taken"
    assert isinstance(content, Rejection)
    assert content.detail.isprintable(), content.detail
    assert len(content.detail) < 400, content.detail
    assert MARKER not in content.detail, content.detail
    return str(content.reason)


def fuzz_body(chance: random.Random) -> str:
    """A mutated body from a viewer that is who it says."""
    return check(read(delivery(body(chance), user_id="ada"), _SETTINGS))


OURS: Final = {
    *(amqp.VIEWER_HEADER, amqp.ROUTING_KEY_HEADER, amqp.RETRIES_HEADER, amqp.REPLAY_HEADER),
    *(amqp.REASON_HEADER, amqp.DETAIL_HEADER),
    *(amqp.CLIENT_SESSION_UUID_HEADER, amqp.TRACEPARENT_HEADER),
}
"""The headers of a copy."""


def fuzz_properties(chance: random.Random) -> str:
    """Wild properties and headers, through intake and into a dead letter."""
    properties: dict[str, Any] = {
        "headers": {name(chance): wild(chance) for _ in range(chance.randint(0, 6))}
    }
    for each in ("message_type", "content_type", "message_id", "reply_to", "app_id", "user_id"):
        if chance.random() < 0.3:
            properties[each] = chance.choice(("", "ada", MARKER, "\n\x1b[31m", "é" * 200))
    if chance.random() < 0.7:
        properties["user_id"] = "ada"
    exchange, key = amqp.INGEST_EXCHANGE, "attempts.v1.ada"
    if chance.random() < 0.3:
        exchange = chance.choice((amqp.RETURN_EXCHANGE, "", "amq.topic"))
        key = chance.choice((key, "attempts.v2.ada", "attempts.v1.\n", MARKER, ""))
    sent = delivery(BODY, exchange=exchange, routing_key=key, **properties)
    taken = read(sent, _SETTINGS)
    outcome = check(taken)
    assert taken.incoming.original is not None
    field_table.values_in(taken.incoming.original.message.field_table())
    copy = copies.replay_copy(sent.body, taken.envelope)
    assert len(ContentHeader(0, len(copy.body), copy.properties).marshal()) < 4_096
    assert {*(copy.properties.headers or {})} <= OURS
    return outcome


_GOOD_FRAME: Final = frame.marshal(
    ContentHeader(
        0,
        10,
        Basic.Properties(
            content_type="application/json",
            headers={
                "a": "text",
                "n": 5,
                "l": [1, "two", {"three": 3.0}],
                "t": datetime(2024, 1, 1, tzinfo=UTC),
                "d": Decimal("1.5"),
                "b": True,
                "v": None,
            },
            message_id="id",
            timestamp=datetime(2024, 1, 1, tzinfo=UTC),
            message_type=amqp.ATTEMPT_BATCH_TYPE,
            user_id="ada",
        ),
    ),
    1,
)
_TABLE_AT: Final = _GOOD_FRAME.index(b"\x01aS")


def fuzz_frame(chance: random.Random) -> str:
    """Property bytes as a viewer may have written them: lengths right, values anything."""
    data = bytearray(_GOOD_FRAME)
    for _ in range(chance.randint(1, 6)):
        data[chance.randrange(_TABLE_AT, len(data) - 1)] = chance.randrange(256)
    properties = decode_frame(bytes(data))
    if properties is None:
        return "frame refused"
    headers = properties.headers
    return check(read(delivery(BODY, headers=headers, user_id=properties.user_id), _SETTINGS))


def decode_frame(data: bytes) -> Basic.Properties | None:
    """As the client's reader does; None where the length of a string leads out of the frame.

    The broker parses what it forwards, so such a frame never reaches a worker.
    """
    try:
        found = frame.unmarshal(data)[2]
    except (IndexError, struct.error):
        return None
    assert isinstance(found, ContentHeader)
    assert isinstance(found.properties, Basic.Properties)
    return found.properties


TARGETS: Final[tuple[Callable[[random.Random], str], ...]] = (
    fuzz_body,
    fuzz_properties,
    fuzz_frame,
)


def run(seed: int, *, seconds: float = 0, count: int = 0) -> Counter[str]:
    """Fuzzes for so long, or so many inputs; returns how many came to what.

    Whatever fails can be had again: the seed of each input is in the error.
    """
    decoders.install()
    outcomes: Counter[str] = Counter()
    until = time.monotonic() + seconds
    number = 0
    while number < count or time.monotonic() < until:
        target = TARGETS[number % len(TARGETS)]
        try:
            outcomes[f"{target.__name__}: {target(random.Random(f'{seed}/{number}'))}"] += 1
        except Exception as error:
            error.add_note(f"seed {seed}, input {number}, target {target.__name__}")
            raise
        number += 1
    return outcomes


def memory() -> int:
    """The most that this process ever had resident, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _guided() -> None:
    import atheris  # an extra of whoever wants it

    size = len(_GOOD_FRAME) - 1 - _TABLE_AT

    def one(data: bytes) -> None:
        check(read(delivery(data, user_id="ada"), _SETTINGS))
        table = data[:size].ljust(size, b"\0")
        decode_frame(_GOOD_FRAME[:_TABLE_AT] + table + _GOOD_FRAME[-1:])

    # Only what reads what others wrote: all of Python would take a minute to prepare.
    for module in (attempt_batch, intake, decoders, pamqp.decode, pamqp.frame):
        for function in vars(module).values():
            if inspect.isfunction(function):
                atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], "-max_len=4096"], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true")
    given = parser.parse_args()
    if given.atheris:
        _guided()
    run(given.seed, count=3_000)  # warm: what is loaded once is no leak
    before, began = memory(), time.monotonic()
    outcomes = run(given.seed + 1, seconds=given.seconds)
    for outcome, number in sorted(outcomes.items()):
        print(f"{number:>10,}  {outcome}")
    print(
        f"{outcomes.total():>10,}  inputs in {time.monotonic() - began:.0f} s;"
        f" resident {before} -> {memory()} MiB"
    )


if __name__ == "__main__":
    main()
