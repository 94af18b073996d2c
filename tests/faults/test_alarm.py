"""A broker in an alarm: it takes nothing from whoever publishes, and says so to nobody in time."""

import asyncio
import gc
import logging
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from devtools.rabbitmq import RabbitMQ
from schemas import amqp
from tests import factories
from tests.broker_fixtures import VIEWER, Broker, make_settings, publish, until
from tests.worker_process import running
from worker.broker import topology
from worker.broker.management import Management
from worker.broker.publisher import Publisher
from worker.errors import Unconfirmed
from worker.settings import Settings

pytestmark = pytest.mark.broker

ALARMS = {
    "memory": ("vm_memory_monitor:set_vm_memory_high_watermark({absolute, 1}).",),
    "disk": ("rabbit_disk_monitor:set_disk_free_limit(1000000000000000).",),
}
CALM = (
    "vm_memory_monitor:set_vm_memory_high_watermark({absolute, 1000000000}),"
    "rabbit_disk_monitor:set_disk_free_limit(50000000)."
)


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQ]:
    with RabbitMQ() as node:
        yield node.start()


@pytest.fixture
async def calm(node: RabbitMQ, database_url: str) -> AsyncIterator[Broker]:
    """A broker that has no alarm yet, and none when the test is over."""
    settings = make_settings(
        node.url,
        management_url=node.management_url,
        database_url=database_url,
        publish_timeout=0.3,
    )
    async with Management(settings) as management:
        await topology.apply(management, settings)
        broker = Broker(settings, management.http)
        yield broker
        await asyncio.to_thread(node.ctl, "eval", CALM)
        await broker.close()


async def raise_alarm(node: RabbitMQ, kind: str, settings: Settings) -> None:
    await asyncio.to_thread(node.ctl, "eval", *ALARMS[kind])
    async with Publisher(settings) as probe:

        async def refused() -> bool:
            try:
                await publish(probe, "", amqp.NEWER_QUEUE, b"probe")
            except Unconfirmed:
                return True
            return False

        await until(refused, bool)


async def settled() -> int:
    """What this process has resident, in MiB, once only the test's own tasks are left."""

    async def others() -> int:
        return len(asyncio.all_tasks())

    await until(others, lambda count: count <= 8)
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])  # noqa: ASYNC240
    return pages * resource.getpagesize() // 1024**2


@pytest.mark.parametrize("kind", ALARMS)
async def test_what_an_alarm_does_not_take_does_not_stay_in_memory(
    kind: str, node: RabbitMQ, calm: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    for logger in ("aiormq", "asyncio"):  # a captured traceback holds what it was about
        caplog.set_level(logging.CRITICAL, logger)
    await raise_alarm(node, kind, calm.settings)
    body = b"x" * 4_000_000  # under the broker's limit, and over what sockets buffer

    async def tries(publisher: Publisher, count: int) -> None:
        unsent = 0
        while unsent < count:
            with pytest.raises(Unconfirmed) as trouble:
                await publish(publisher, "", amqp.NEWER_QUEUE, body)
            unsent += "was not confirmed" in str(trouble.value)
            await asyncio.sleep(0.01)

    async with Publisher(calm.settings) as publisher:
        await tries(publisher, 4)
        before = await settled()
        await tries(publisher, 40)
        assert await settled() - before < 80, "MiB, where 160 were written"


@pytest.mark.parametrize("kind", ALARMS)
async def test_a_worker_in_an_alarm_ingests_on_and_ends_when_told(
    kind: str, node: RabbitMQ, calm: Broker, engine: AsyncEngine
) -> None:
    [question] = await factories.publish(engine, 1)
    for _ in range(20):
        batch = factories.batch(factories.right(question))
        await calm.publish(batch.model_dump_json(), routing_key=amqp.attempts_key(VIEWER))
    settings = calm.settings.model_copy(update={"publish_timeout": 5.0, "drain_timeout": 10.0})
    await raise_alarm(node, kind, calm.settings)
    async with running(settings) as worker:
        await worker.until_metric(
            'study_ingest_deliveries_settled_total{disposition="ingested",reason=""}', 20
        )
        # Their results can't leave.
        await worker.logged("publisher.lost", purpose="relay")
        worker.process.terminate()
        async with asyncio.timeout(settings.drain_timeout + settings.publish_timeout):
            assert await worker.process.wait() == 0
    assert await factories.count(engine, "outbox") == 20
