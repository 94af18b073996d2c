"""What a viewer can say by AMQP 1.0, and what it costs the batches beside it: next to nothing.

RabbitMQ 4 speaks AMQP 1.0 on the same port by default, and what AMQP 0-9-1 can't carry of such a
message it can't deliver: it closes the worker's connection over it, again and again, until the
delivery limit. A real client publishes each case, other viewers' batches around it.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from chaos import amqp10
from schemas import amqp
from tests import factories
from tests.broker_fixtures import PATIENCE, VIEWER, Broker, until
from tests.whole_worker import working
from worker.broker import topology
from worker.broker.management import Management
from worker.operate.status.look import look

pytestmark = pytest.mark.broker

LIMIT = 6
"""Returns until the broker parks a message; the default of 20 has a test of its own."""
BESIDE = 8
"""Bystanders before the odd message, and as many after it."""

DATA = {"data": ["{}"]}
HEX = "00112233445566778899aabbccddeeff"

TEXTS = (
    *("message_id", "to", "subject", "reply_to", "correlation_id", "content_type"),
    *("content_encoding", "group_id", "reply_to_group_id"),
)
LENGTHS = (256, 5_000)
"""A short string of AMQP 0-9-1 holds 255 bytes."""

TYPED: dict[str, Any] = {
    "null": None,
    "boolean": True,
    "ubyte": {"ubyte": 255},
    "ushort": {"ushort": 65_535},
    "uint": {"uint": 2**32 - 1},
    "ulong": {"ulong": 2**53},
    "byte": {"byte": -128},
    "short": {"short": -(2**15)},
    "int": {"int": -(2**31)},
    "long": {"long": -(2**53)},
    "float": {"float": 1.5},
    "double": {"double": 1.5},
    "decimal32": {"decimal32": "00" * 4},
    "decimal64": {"decimal64": "00" * 8},
    "decimal128": {"decimal128": "00" * 16},
    "char": {"char": 0x1F600},
    "timestamp": {"timestamp": -1},
    "timestamp of a far year": {"timestamp": 2**52},
    "uuid": {"uuid": HEX},
    "binary": {"binary": "ff" * 300},
    "string": {"repeat": ["x", 70_000]},
    "symbol": {"symbol": "y" * 300},
    "list": {"list": [1]},
    "map": {"map": {"a": 1}},
}

CASES: dict[str, dict[str, Any]] = {
    **{
        f"{name} of {length} bytes": {
            "properties": {name: {"repeat": ["x", length]}},
            "body": DATA,
        }
        for name in TEXTS
        for length in LENGTHS
    },
    **{
        f"user_id of {length} bytes": {
            "properties": {"user_id": {"bytes": ["x", length]}},
            "body": DATA,
        }
        for length in LENGTHS
    },
    "absolute_expiry_time": {"properties": {"absolute_expiry_time": 1}, "body": DATA},
    "creation_time before 1970": {"properties": {"creation_time": -1}, "body": DATA},
    "creation_time of a far year": {"properties": {"creation_time": 2**52}, "body": DATA},
    "group_sequence": {"properties": {"group_sequence": 2**32 - 1}, "body": DATA},
    **{
        f"{name} as {what}": {"properties": {name: value}, "body": DATA}
        for name in ("message_id", "correlation_id")
        for what, value in {
            "number": {"ulong": 2**53},
            "uuid": {"uuid": HEX},
            "binary": {"binary": "ff00fe"},
            "long binary": {"binary": "ff" * 5_000},
        }.items()
    },
    **{
        f"application property: {what}": {"application": {"odd": value}, "body": DATA}
        for what, value in TYPED.items()
    },
    "application property with a long name": {"application": {"k" * 300: 1}, "body": DATA},
    "annotation of our protocol's": {"annotations": {"x-basic-type": "y" * 300}, "body": DATA},
    "annotation that copies": {"annotations": {"x-cc": {"list": ["attempts.v1.bob"]}}},
    "no body": {},
    "two data sections": {"body": {"data": ["{", "}"]}},
    "a value section": {"body": {"value": "{}"}},
    "a sequence section": {"body": {"sequence": [[1, 2], [3]]}},
    "a lifetime": {"header": {"ttl": 600_000}, "body": DATA},
    "not durable": {"header": {"durable": False}, "body": DATA},
    "a high priority": {"header": {"priority": 255}, "body": DATA},
    "reply_to of the broker's own": {
        "properties": {"reply_to": "amq.rabbitmq.reply-to"},
        "body": DATA,
    },
}


@pytest.fixture(scope="module")
def client() -> Path:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = amqp10.client()
    if folder is None:
        pytest.skip("npm could not install rhea: is there a network?")
    return folder


@pytest.fixture
async def bare(bare_broker: Broker, management: Management) -> Broker:
    """A vhost of a broker that speaks AMQP 1.0."""
    if not amqp10.speaks(await management.version()):
        pytest.skip("this RabbitMQ does not speak AMQP 1.0")
    return bare_broker


@pytest.fixture
async def newer(bare: Broker, management: Management) -> Broker:
    """With a low delivery limit."""
    bare.settings = bare.settings.model_copy(update={"delivery_limit": LIMIT})
    await topology.apply(management, bare.settings)
    return bare


async def bystanders(broker: Broker, engine: AsyncEngine, count: int, user_id: int) -> None:
    published = await factories.publish(engine, 1, user_id=user_id)
    for _ in range(count):
        batch = factories.batch(factories.right(published[0]))
        await broker.publish(batch.model_dump_json(), routing_key=amqp.attempts_key("bob"))


@pytest.mark.parametrize("case", CASES)
async def test_an_odd_message_costs_the_others_nothing(
    case: str, client: Path, newer: Broker, engine: AsyncEngine
) -> None:
    await costs_nothing(case, client, newer, engine)


@pytest.mark.parametrize(
    "case", ["content_encoding of 256 bytes", "content_encoding of 5000 bytes"]
)
async def test_nor_under_the_default_delivery_limit(
    case: str, client: Path, bare: Broker, management: Management, engine: AsyncEngine
) -> None:
    assert bare.settings.delivery_limit == 20
    await topology.apply(management, bare.settings)
    await costs_nothing(case, client, bare, engine, patience=4 * PATIENCE)

    # The broker gave it up itself. Nor can it deliver it to whoever collects dead letters.
    async def letters() -> list[str]:
        rows = await factories.rows(engine, "SELECT reason FROM ingest_dead_letters")
        return [row["reason"] for row in rows]

    async with working(bare.settings, engine):
        await until(letters, ["delivery_limit"].__eq__)
        await bare.until_depth(amqp.DEAD_QUEUE, 0)


async def costs_nothing(
    case: str, client: Path, newer: Broker, engine: AsyncEngine, *, patience: float = PATIENCE
) -> None:
    """Publishes the case among batches of others."""
    await bystanders(newer, engine, BESIDE, user_id=1)
    url = newer.settings.amqp_url.get_secret_value()
    outcomes, _ = await amqp10.publish(client, url, VIEWER, [CASES[case]])
    refused = outcomes != ["accepted"]
    await bystanders(newer, engine, BESIDE, user_id=2)

    with capture_logs() as events:
        async with working(newer.settings, engine) as consumer:

            def done() -> int:
                # One whose ack was lost with the connection comes again.
                return consumer.counts["ingested"] + consumer.counts["duplicate"]

            await consumer.changed.until(lambda: done() == 2 * BESIDE, patience)
            assert done() == 2 * BESIDE
            # The odd one is dealt with as well, and stops nobody for longer. The depth does not
            # say so: it is 0 also while the broker fails to deliver it.

            async def is_dead() -> bool:
                letters = await factories.count(engine, "ingest_dead_letters")
                return letters + await newer.depth(amqp.DEAD_QUEUE) > 0

            await until(is_dead, (not refused).__eq__)
            await newer.until_depth(amqp.ATTEMPTS_QUEUE, 0)
            assert await consumer.changed.until(
                lambda: consumer.in_hand == 0 and consumer.state == "consuming", patience
            )
    lost = [event for event in events if event["event"] == "consumer.lost"]
    assert len(lost) <= newer.settings.delivery_limit + 1
    settled = [event for event in events if event["event"] == "delivery.settled"]
    rejected = [event for event in settled if event["disposition"] == "rejected"]
    assert refused or len(rejected) == 1 or lost, json.dumps(outcomes)
    good = [event for event in settled if event["disposition"] in ("ingested", "duplicate")]
    # What is in hand when the odd one first comes is returned with it, and nothing after that.
    assert max(event["delivery_count"] for event in good) <= 1


def poison(number: int) -> dict[str, Any]:
    """It expires at once, and ends every connection of AMQP 0-9-1 to which it is delivered."""
    said = {"message_id": f"poison {number}", "content_type": {"repeat": ["x", 300]}}
    return {"header": {"ttl": 1}, "properties": said, "body": DATA}


async def expire(broker: Broker, client: Path, parts: Sequence[int | None]) -> int:
    """Puts messages that have expired into the queue of dead letters: so many good ones, or a
    poisonous one for None. Returns how many they are.
    """
    there = 0
    for part in parts:
        if part is None:
            url = broker.settings.amqp_url.get_secret_value()
            outcomes, complaints = await amqp10.publish(client, url, VIEWER, [poison(there)])
            assert outcomes == ["accepted"], complaints
        for _ in range(part or 0):
            batch = factories.batch(factories.right("a"))
            await broker.publish(batch.model_dump_json(), expiration=0.001)
        there += 1 if part is None else part
        await broker.until_depth(amqp.DEAD_QUEUE, there)
    return there


async def kept(engine: AsyncEngine) -> int:
    return await factories.count(engine, "ingest_dead_letters")


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_lies_behind_letters_that_can_not_be_carried_is_collected(
    workers: int, client: Path, newer: Broker, engine: AsyncEngine
) -> None:
    # More behind them than are delivered at once, and as long waits as a worker has by default.
    count = await expire(newer, client, [3, None, 2, None, None, 30])
    settings = newer.settings.model_copy(update={"pause_delay_min": 0.2, "pause_delay_max": 10.0})
    with capture_logs() as events:
        async with AsyncExitStack() as running:
            for _ in range(workers):
                await running.enter_async_context(working(settings, engine))
            # Each ends up to four connections.
            await until(lambda: kept(engine), count.__eq__, 4 * PATIENCE)
            await newer.until_depth(amqp.DEAD_QUEUE, 0)

    taken = [event for event in events if event["event"] == "collector.took_head"]
    assert len(taken) >= 3
    letters = await factories.rows(
        engine,
        "SELECT reason, position(convert_to(repeat('x', 300), 'UTF8') IN properties) > 0 AS is_odd"
        " FROM ingest_dead_letters",
    )
    assert {letter["reason"] for letter in letters} == {"expired"}
    assert sum(letter["is_odd"] for letter in letters) == 3
    assert len(letters) == count


async def test_without_the_management_api_it_stays_and_status_says_so(
    client: Path, newer: Broker, engine: AsyncEngine, management: Management
) -> None:
    count = await expire(newer, client, [None, 1])
    alone = newer.settings.model_copy(
        update={"management_url": SecretStr("http://guest:guest@127.0.0.1:1")}
    )

    async def attention() -> list[str]:
        seen = await look(newer.settings, engine, management)
        return [each.found for each in seen.attention if each.code == "uncollected"]

    with capture_logs() as events:
        async with working(alone, engine):

            async def blocked() -> int:
                return sum(event["event"] == "collector.blocked" for event in events)

            await until(blocked, (3).__le__)
            # What lies behind it is collected all the same.
            await until(lambda: kept(engine), (count - 1).__eq__)
            (found,) = await until(attention, bool)
            assert "in study.attempts.dead" in found
    assert await kept(engine) == count - 1
    async with working(newer.settings, engine):
        await until(lambda: kept(engine), count.__eq__)
        await newer.until_depth(amqp.DEAD_QUEUE, 0)


async def test_what_lies_behind_a_letter_that_nothing_can_show_is_collected(
    client: Path, newer: Broker, engine: AsyncEngine
) -> None:
    # The management API has no form for these types, and the broker none for a consumer of ours.
    good = await expire(newer, client, [3])
    url = newer.settings.amqp_url.get_secret_value()
    for odd in ({"uuid": HEX}, {"decimal32": "00" * 4}):
        message = {"header": {"ttl": 1}, "application": {"odd": odd}, "body": DATA}
        outcomes, complaints = await amqp10.publish(client, url, VIEWER, [message])
        assert outcomes == ["accepted"], complaints
    await newer.until_depth(amqp.DEAD_QUEUE, good + 2)
    for _ in range(30):
        batch = factories.batch(factories.right("a"))
        await newer.publish(batch.model_dump_json(), expiration=0.001)
    await newer.until_depth(amqp.DEAD_QUEUE, good + 32)
    async with working(newer.settings, engine):
        await until(lambda: kept(engine), (good + 30).__eq__, 4 * PATIENCE)
