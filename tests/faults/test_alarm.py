"""A broker in an alarm: it takes nothing from whoever publishes, and says so to nobody in time."""

import asyncio
import ctypes
import gc
import logging
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

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

FAILS = """CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE SQLSTATE '54000'; END $$;;
CREATE TRIGGER trouble BEFORE INSERT ON ingest_inbox FOR EACH ROW
WHEN (NEW.client_session_uuid = '{uuid}') EXECUTE FUNCTION trouble()"""


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQ]:
    with RabbitMQ() as node:
        yield node.start()


@pytest.fixture
async def calm(node: RabbitMQ, database_url: str) -> AsyncIterator[Broker]:
    """A vhost of a broker that has no alarm yet, and none when the test is over."""
    name = f"test-{uuid4().hex[:16]}"
    settings = make_settings(
        f"{node.url.rstrip('/')}/{name}",
        management_url=node.management_url,
        database_url=database_url,
        publish_timeout=0.3,
    )
    async with Management(settings) as management:
        api = management.http
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        (await api.put(f"vhosts/{name}")).raise_for_status()
        (await api.put(f"permissions/{name}/guest", json=everything)).raise_for_status()
        await topology.apply(management, settings)
        broker = Broker(settings, api)
        yield broker
        await asyncio.to_thread(node.ctl, "eval", CALM)
        await broker.close()
        (await api.delete(f"vhosts/{name}", timeout=60)).raise_for_status()


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
    ctypes.CDLL(None).malloc_trim(0)  # what is free, and only kept by the allocator, does not count
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
@pytest.mark.parametrize("bad", ["fails", "is newer"])
async def test_a_worker_in_an_alarm_ingests_on_past_a_bad_batch_and_ends_when_told(
    bad: str, kind: str, node: RabbitMQ, calm: Broker, engine: AsyncEngine
) -> None:
    [question] = await factories.publish(engine, 1)
    batches = [factories.batch(factories.right(question)) for _ in range(21)]
    for number, batch in enumerate(batches):
        newer = bad == "is newer" and number == 0
        await calm.publish(
            batch.model_dump_json(),
            routing_key=f"attempts.v2.{VIEWER}" if newer else amqp.attempts_key(VIEWER),
        )
    if bad == "fails":
        for statement in FAILS.format(uuid=batches[0].client_session_uuid).split(";;"):
            await factories.execute(engine, statement)
    settings = calm.settings.model_copy(update={"publish_timeout": 5.0, "drain_timeout": 10.0})
    await raise_alarm(node, kind, calm.settings)
    async with running(settings) as worker:
        unconfirmed = await worker.logged("copy.unconfirmed")
        assert unconfirmed["client_session_uuid"] in (str(batches[0].client_session_uuid), "None")
        await worker.until_metric(
            'study_ingest_deliveries_settled_total{disposition="ingested",reason=""}', 20
        )
        await worker.until_metric("study_ingest_deliveries_in_hand", 1)
        await worker.until_metric("study_ingest_copies_unconfirmed", 1)
        await worker.until_ready()
        # Their results can't leave.
        await worker.logged("publisher.lost", purpose="relay")
        worker.process.terminate()
        async with asyncio.timeout(settings.drain_timeout + settings.publish_timeout):
            assert await worker.process.wait() == 0
    assert await factories.count(engine, "outbox") == 20
    assert await calm.depth(amqp.ATTEMPTS_QUEUE) == 1  # the bad one, and nothing else
