"""Dead letters: each rejection is kept once, whole, in the transaction that rejects."""

import asyncio
import hashlib
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.errors import Rejection
from schemas.words import RejectReason
from tests import factories as make
from tests.factories import Sent, batch, right, sent
from worker.domain.dispositions import Busy, Duplicate, Ingested, Rejected
from worker.domain.policy import Policy
from worker.domain.records import Original
from worker.errors import TransientFault
from worker.ingest.letters import dead_letter
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.store import dead_letters
from worker.store.engine import transaction

UUIDS = [UUID(int=n) for n in range(1, 2_001)]


def refused(
    body: bytes = b"{",
    reason: RejectReason = RejectReason.MALFORMED,
    *,
    viewer: str | None = "phone",
    properties: bytes = bytes(4),
    key: str = "attempts.v1.phone",
    uuid: UUID | None = None,
) -> Incoming:
    """A delivery that was refused before the transaction."""
    rejection = Rejection(reason, "It is not a batch.")
    return Incoming(viewer, rejection, uuid, original=Original(Sent(body, properties), key))


async def letters(engine: AsyncEngine) -> list[dict[str, Any]]:
    return await make.rows(engine, "SELECT * FROM ingest_dead_letters ORDER BY id")


async def test_a_rejection_is_a_row_with_all_that_came(engine: AsyncEngine) -> None:
    unknown = batch(right("nowhere"), uuid=UUIDS[0])
    delivery = Incoming(
        "phone",
        unknown,
        UUIDS[0],
        original=Original(Sent(b"body", b"\0\0\0\0"), "attempts.v1.phone"),
    )
    [disposition] = await Ingest(engine, Policy())([delivery])

    (row,) = await letters(engine)
    assert isinstance(disposition, Rejected)
    assert row.pop("died_at") is not None and row.pop("id") and len(row.pop("key")) == 32
    assert row == {
        "reason": "nothing_resolved",
        "detail": disposition.detail,
        "viewer": "phone",
        "routing_key": b"attempts.v1.phone",
        "client_session_uuid": UUIDS[0],
        "replay_id": None,
        "properties": b"\0\0\0\0",
        "body": b"body",
        "body_bytes": 4,
        "body_sha256": None,
    }


async def test_a_rejection_that_is_delivered_again_is_the_same_letter(engine: AsyncEngine) -> None:
    ingest = Ingest(engine, Policy())
    for _ in range(3):
        await ingest([refused(b"{"), refused(b"{")])
    assert len(await letters(engine)) == 1


async def test_what_makes_another_letter(engine: AsyncEngine) -> None:
    others = [
        refused(b"{"),
        refused(b"["),
        refused(b"{", RejectReason.TOO_LARGE),
        refused(b"{", viewer="bob"),
        refused(b"{", viewer=None),
        refused(b"{", key="attempts.v1.bob"),
        refused(b"{", properties=b"\0\0\0\3\1aV"),
    ]
    await Ingest(engine, Policy())(others * 2)
    assert len(await letters(engine)) == len(others)


async def test_a_thousand_rejections_among_a_thousand_good_batches(engine: AsyncEngine) -> None:
    questions = await make.publish(engine, 4)
    good = [sent(right(questions[n % 4]), uuid=UUIDS[n]) for n in range(1_000)]
    bad = [refused(str(n).encode(), uuid=UUIDS[1_000 + n]) for n in range(1_000)]
    mixed = [each for pair in zip(good, bad, strict=True) for each in pair]
    ingest = Ingest(engine, Policy())

    async def lane(number: int) -> list[Any]:
        decided: list[Any] = []
        for start in range(number * 50, len(mixed), 200):
            left = mixed[start : start + 50]
            while left:  # what is busy comes again
                found = await ingest(left)
                decided += [each for each in found if each != Busy()]
                left = [each for each, fate in zip(left, found, strict=True) if fate == Busy()]
        return decided

    # Four lanes, and each delivery comes twice.
    first = [each for some in await asyncio.gather(*map(lane, range(4))) for each in some]
    again = [each for some in await asyncio.gather(*map(lane, range(4))) for each in some]

    assert sum(isinstance(each, Ingested) for each in first) == 1_000
    assert sum(isinstance(each, Rejected) for each in first) == 1_000
    assert sum(isinstance(each, Duplicate) for each in again) == 1_000
    found = await letters(engine)
    assert sorted(int(row["body"]) for row in found) == list(range(1_000))
    assert await make.count(engine, "ingest_inbox") == 1_000


async def test_two_transactions_that_reject_the_same_do_not_wait_crosswise(
    engine: AsyncEngine,
) -> None:
    ingest = Ingest(engine, Policy())
    some = [refused(str(n).encode()) for n in range(200)]
    await asyncio.gather(*(ingest(some if n % 2 else some[::-1]) for n in range(8)))
    assert len(await letters(engine)) == 200


async def test_a_letter_is_there_exactly_when_its_rejection_is_committed(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = dead_letters.keep

    async def fail(*arguments: Any) -> None:
        await keep(*arguments)
        raise TransientFault("The transaction failed with SQLSTATE 40P01.")

    (question,) = await make.publish(engine)
    with monkeypatch.context() as patch:
        patch.setattr(dead_letters, "keep", fail)
        with pytest.raises(TransientFault):
            await Ingest(engine, Policy())([sent(right(question)), refused(uuid=UUIDS[0])])
    assert await letters(engine) == []
    assert await make.count(engine, "outbox") == 0


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    body=st.binary(max_size=400),
    properties=st.binary(max_size=400),
    key=st.text(max_size=100),
    detail=st.text(max_size=700),
)
async def test_nothing_that_a_viewer_wrote_can_make_a_row_fail(
    engine: AsyncEngine, body: bytes, properties: bytes, key: str, detail: str
) -> None:
    letter = dead_letter(
        Original(Sent(body, properties), key),
        None,
        None,
        "malformed",
        detail,
        body_bytes_max=4_096,
    )
    async with transaction(engine) as connection:
        await dead_letters.keep(connection, [letter], Policy())
    (row,) = await make.rows(
        engine, "SELECT * FROM ingest_dead_letters WHERE key = :key", key=letter.key
    )
    assert (row["body"], row["properties"]) == (body, properties)
    assert row["routing_key"] == key.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_detail_is_plain_in_whatever_encoding(engine: AsyncEngine, encoding: str) -> None:
    letter = dead_letter(
        Original(Sent(b"{"), "k"), "phone", None, "malformed", "‘\0é’", body_bytes_max=4_096
    )
    assert letter.detail == r"\u2018\x00\xe9\u2019"


async def test_a_large_body_keeps_its_beginning_and_says_so(engine: AsyncEngine) -> None:
    body = uuid4().bytes * 1_000
    policy = Policy(dead_body_bytes=5_000)
    await Ingest(engine, policy)([refused(body, RejectReason.TOO_LARGE), refused(body[:5_000])])

    cut, whole = await letters(engine)
    if cut["body_sha256"] is None:
        cut, whole = whole, cut
    assert (cut["body"], cut["body_bytes"]) == (body[:5_000], 16_000)
    assert cut["body_sha256"] == hashlib.sha256(body).digest()
    assert (whole["body"], whole["body_bytes"], whole["body_sha256"]) == (body[:5_000], 5_000, None)


async def test_past_a_viewers_bound_only_what_nothing_can_make_good_is_cut(
    engine: AsyncEngine,
) -> None:
    ingest = Ingest(engine, Policy(dead_letters_per_viewer=3))
    large = uuid4().bytes * 500
    for n in range(3):
        await ingest([refused(bytes([n]) + large, properties=bytes([0, 0, 0, 0]) + large)])
    await ingest(
        [
            refused(b"a" + large, properties=bytes([0, 0, 0, 0]) + large),
            refused(b"b" + large, RejectReason.NOTHING_RESOLVED),
            refused(b"c" + large, viewer="bob"),
            refused(b"d"),
        ]
    )
    found = {row["body"][:1]: row for row in await letters(engine)}
    assert all(found[bytes([n])]["body_sha256"] is None for n in range(3))
    cut = found[b"a"]
    assert (cut["body"], cut["body_bytes"]) == ((b"a" + large)[:4_096], 8_001)
    assert cut["body_sha256"] == hashlib.sha256(b"a" + large).digest()
    assert cut["properties"] == bytes(4)
    for whole in (b"b", b"c", b"d"):
        assert found[whole]["body_sha256"] is None
        assert len(found[whole]["body"]) == found[whole]["body_bytes"]


async def test_letters_that_wait_are_counted_by_viewer_up_to_a_bound(engine: AsyncEngine) -> None:
    async def waiting(bound: int, viewers: int) -> dict[str, int]:
        async with transaction(engine) as connection:
            return await dead_letters.waiting(connection, bound=bound, viewers=viewers)

    assert await waiting(10, 10) == {}
    sent_by = {"ann": 1, "bob": 4, "cid": 2}
    ingest = Ingest(engine, Policy())
    for viewer, count in sent_by.items():
        await ingest([refused(bytes([n]), viewer=viewer) for n in range(count)])
    await ingest([refused(b"a", RejectReason.UNIDENTIFIED_PUBLISHER, viewer=None)])

    assert await waiting(10, 10) == sent_by | {"": 1}
    assert await waiting(3, 10) == sent_by | {"": 1, "bob": 3}
    assert await waiting(10, 2) == {"bob": 4, "cid": 2}
