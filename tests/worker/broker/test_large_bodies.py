"""Bodies as large as a broker without a limit accepts: what a worker keeps of them in memory."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from devtools.rabbitmq import RabbitMQ
from schemas import amqp
from tests import factories
from tests.broker_fixtures import PATIENCE, Broker, make_settings
from tests.whole_worker import working
from tests.worker_process import running
from worker.broker import topology
from worker.broker.management import Management
from worker.broker.message_size import MAX_MESSAGE_SIZE, accepts
from worker.consume.in_hand import BYTES_IN_HAND
from worker.settings import Settings

pytestmark = pytest.mark.broker

MEGABYTE = 1024**2


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQ]:
    """A broker that accepts any size, and has the memory for it."""
    limits = {"max_message_size": "134217728", "vm_memory_high_watermark.absolute": "6GB"}
    with RabbitMQ(settings=limits) as node:
        yield node.start()


@pytest.fixture
async def unlimited(node: RabbitMQ, database_url: str) -> AsyncIterator[Broker]:
    settings = make_settings(
        node.url, management_url=node.management_url, database_url=database_url
    )
    async with Management(settings) as management:
        await topology.apply(management, settings)
        broker = Broker(settings, management.http)
        yield broker
        await (await broker.channel()).queue_delete(amqp.ATTEMPTS_QUEUE)
        await (await broker.channel()).queue_delete(amqp.DEAD_QUEUE)
        await broker.close()


async def test_only_a_configured_broker_refuses_large_messages(
    unlimited: Broker, broker: Broker
) -> None:
    assert await accepts(unlimited.settings, MAX_MESSAGE_SIZE + 1)
    assert not await accepts(broker.settings, MAX_MESSAGE_SIZE + 1)
    assert await accepts(broker.settings, MAX_MESSAGE_SIZE)


def test_the_configuration_that_we_ship_says_the_same() -> None:
    shipped = Path(__file__).parents[3] / "deploy/rabbitmq/study-ingest.conf"
    assert f"\nmax_message_size = {MAX_MESSAGE_SIZE}\n" in shipped.read_text()


async def test_a_prefetch_of_large_bodies_is_bounded_by_its_bytes(
    unlimited: Broker, engine: AsyncEngine
) -> None:
    [question] = await factories.publish(engine, 1)
    large, good = 3 * BYTES_IN_HAND // (5 * MEGABYTE), 20
    for number in range(large):
        await unlimited.publish(b"x" * 5 * MEGABYTE)
        if number < good:
            batch = factories.batch(factories.right(question))
            await unlimited.publish(batch.model_dump_json())

    most = 0
    # What came back for want of room shall not be a suspect, which the worker itself gives back.
    settings = unlimited.settings.model_copy(update={"alone_after": 1_000})
    async with working(settings, engine) as consumer:

        def done() -> bool:
            nonlocal most
            most = max(most, consumer._hand._bytes)
            return consumer.counts["ingested"] == good and consumer.counts["rejected"] == large

        assert await consumer.changed.until(done, 4 * PATIENCE)
    assert most <= BYTES_IN_HAND + MAX_MESSAGE_SIZE
    assert consumer.counts["given_back"] == 0, "what had no room is counted by the broker alone"


@pytest.mark.slow
async def test_bodies_of_50_megabytes_do_not_fill_a_worker(
    unlimited: Broker, engine: AsyncEngine
) -> None:
    settings: Settings = unlimited.settings
    for _ in range(20):
        await unlimited.publish(b"x" * 50 * 1000**2)
    async with running(settings) as worker:
        await worker.until_ready()
        await worker.until_metric(
            'study_ingest_deliveries_settled_total{disposition="rejected",reason="too_large"}', 20
        )
        status = Path(f"/proc/{worker.process.pid}/status").read_text()  # noqa: ASYNC240
        highest = int(status.partition("VmHWM:")[2].split()[0]) // 1024
        assert highest < 300, "MiB at its highest"
