"""A short run of the fuzzer, and wild batches through the real transaction.

`python -m tests.security.fuzz` runs for as long as one likes: millions of inputs.
"""

import json
import random
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.attempt_batch import AttemptBatch, decode
from schemas.errors import Rejection
from tests import factories
from tests.security import fuzz
from worker.domain.dispositions import Duplicate, Ingested, Rejected
from worker.domain.policy import Policy
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.operate.repair import verify

SEED = 20260
POLICY = Policy(21.0, 4, 10, 5)

TIMES = (
    *(None, "", "now", "2024-03-01T09:30:00Z", "2024-03-01T09:30:00.123456", "2024-02-30"),
    *("0001-01-01T00:00:00+23:59", "0001-01-01T00:00:00Z", "1583-01-01", "1969-12-31T23:59:59Z"),
    *("9999-12-31T23:59:59.999999-23:59", "9999-12-31T23:59:59Z", "2999-01-01", "24:00"),
)
CHOICES = (None, 0, 1, 2, -1, 2**31 - 1, -(2**31), 1.0)


def test_a_short_run_of_the_fuzzer() -> None:
    outcomes = fuzz.run(SEED, count=1_500)
    # It reaches what it is to reach, or it would prove nothing.
    for outcome in ("body: taken", "body: malformed", "frame: taken", "properties: taken"):
        assert outcomes[f"fuzz_{outcome}"] > 10, outcomes


def test_decoding_needs_bounded_memory() -> None:
    """Bodies at the limit, of the shapes that cost a parser most, again and again."""
    limit = 1_048_576
    bodies = (
        b"[" * limit,
        b'{"a":' * (limit // 5),
        b'{"attempts":[' + b"{}," * (limit // 3 - 10) + b"{}]}",
        b'{"attempts":[' + b"0," * (limit // 2 - 10) + b"0]}",
        b'{"' + b"a" * (limit - 10) + b'":1}',
        b'"' + b"\\u0000" * (limit // 6 - 2) + b'"',
        b"9" * limit,
    )

    def all_of_them() -> None:
        for body in bodies:
            with pytest.raises(Rejection):
                decode(body)

    all_of_them()
    before = fuzz.memory()
    for _ in range(3):
        all_of_them()
    assert fuzz.memory() - before < 20, "MiB more than after the first time"


def wild_batch(chance: random.Random, pub_ids: list[str], uuids: list[str]) -> Incoming:
    """A batch that the schema allows, of everything that could trouble a database."""
    pub_ids = [*pub_ids, "unknown", "é" * 64, "'; DROP TABLE outbox; --", "\u2028", "%s :x {0}"]
    document: dict[str, Any] = {
        "client_session_uuid": chance.choice(uuids),
        "attempts": [
            {
                "question_pub_id": chance.choice(pub_ids),
                "selected_choice": chance.choice(CHOICES),
                "is_unsure": chance.random() < 0.3,
                "answered_at": chance.choice(TIMES),
                "new": chance.choice(("\x00", None, {"a": [1]})),
            }
            for _ in range(chance.randint(1, 12))
        ],
    }
    content = decode(json.dumps(document).encode())
    viewer = chance.choice(("ada", "bob", None))
    return factories.incoming(content, viewer)


async def fuzz_transaction(engine: AsyncEngine, seed: int, groups: int) -> set[type]:
    """Random groups through the transaction; returns the kinds of dispositions there were."""
    chance = random.Random(seed)
    pub_ids: list[str] = []
    for user_id in (1, 2):
        published = await factories.publish(engine, 6, user_id=user_id, correct_choice=1)
        await factories.withdraw(engine, published[4])
        await factories.delete_question(engine, published[5])
        # One user's questions more than the other's, so that most batches have one owner.
        pub_ids += [question.pub_id for question in published] * (1 if user_id == 2 else 3)
    ingest = Ingest(engine, POLICY)
    kinds: set[type] = set()
    sent: list[Incoming] = []
    for _ in range(groups):
        uuids = [f"00000000-0000-0000-0000-{chance.randrange(1, 401):012x}" for _ in range(12)]
        some = pub_ids[: len(pub_ids) if chance.random() < 0.2 else 18]
        group = [
            chance.choice(sent)
            if sent and chance.random() < 0.15
            else wild_batch(chance, some, uuids)
            for _ in range(chance.randint(1, 10))
        ]
        sent += group
        dispositions = await ingest(group)
        assert len(dispositions) == len(group)
        kinds |= {type(disposition) for disposition in dispositions}
    return kinds


async def check_rows(engine: AsyncEngine) -> None:
    """Whatever was stored is what the log comes to, and everything in it is finite."""
    for user_id in await factories.users(engine):
        assert await verify(engine, user_id, POLICY) == []
    odd = await factories.rows(
        engine,
        "SELECT * FROM study_question_progress WHERE stability = 'NaN' OR difficulty = 'NaN'"
        " OR stability > 1e6 OR NOT isfinite(due_at) OR due_at > '9999-12-31'",
    )
    assert odd == []
    unanswered = await factories.rows(
        engine,
        "SELECT client_session_uuid FROM ingest_inbox AS inbox WHERE NOT EXISTS"
        " (SELECT FROM study_quiz_sessions AS session"
        " WHERE session.client_session_uuid = inbox.client_session_uuid)",
    )
    assert unanswered == []


async def test_wild_batches_leave_only_good_rows(engine: AsyncEngine) -> None:
    kinds = await fuzz_transaction(engine, SEED, 40)
    assert kinds == {Ingested, Duplicate, Rejected}
    await check_rows(engine)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
async def test_many_wild_batches_leave_only_good_rows(engine: AsyncEngine, seed: int) -> None:
    await fuzz_transaction(engine, seed, 400)
    await check_rows(engine)


def test_the_batches_are_what_the_schema_allows() -> None:
    made = wild_batch(random.Random(SEED), ["q"], [str(fuzz._UUID)])
    assert isinstance(made.content, AttemptBatch)
