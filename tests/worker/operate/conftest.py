"""One vhost and one database, as an operator finds them after a bad day."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from tests import factories as make
from tests.broker_fixtures import VIEWER, Broker, make_settings, until
from tests.whole_worker import working
from worker.broker import topology
from worker.broker.management import Management
from worker.consume.consumer import Consumer
from worker.settings import Settings


@dataclass(frozen=True)
class Site:
    """What the operator's commands are pointed at."""

    broker: Broker
    engine: AsyncEngine
    settings: Settings

    def working(self) -> AbstractAsyncContextManager[Consumer]:
        """A worker while the block runs."""
        return working(self.settings, self.engine)

    async def publish(
        self, *batches: AttemptBatch, viewer: str = VIEWER, **properties: Any
    ) -> None:
        """Publishes batches as a viewer does, with a header of its own."""
        for batch in batches:
            await self.broker.publish(
                batch.model_dump_json(),
                routing_key=amqp.attempts_key(viewer),
                type=amqp.ATTEMPT_BATCH_TYPE,
                headers={
                    amqp.CLIENT_SESSION_UUID_HEADER: str(batch.client_session_uuid),
                    amqp.TRACEPARENT_HEADER: TRACEPARENT,
                    "app": "notes",
                },
                **properties,
            )

    async def park(self, *batches: AttemptBatch, viewer: str = VIEWER) -> None:
        """Has a worker refuse the batches, one after another."""
        before = await self.letters()
        async with self.working():
            await self.publish(*batches, viewer=viewer)
            await until(self.letters, (before + len(batches)).__eq__)

    async def letters(self) -> int:
        """How many dead letters there are."""
        return await make.count(self.engine, "ingest_dead_letters")

    async def kill_workers_with(self, batch: AttemptBatch, **publish: object) -> None:
        """Has the broker park a batch, because it came back too often."""
        await self.broker.publish(batch.model_dump_json(), **publish)  # type: ignore[arg-type]
        queue = await (await self.broker.channel()).get_queue(amqp.ATTEMPTS_QUEUE, ensure=False)
        for _ in range(self.settings.delivery_limit + 1):
            message = await queue.get(timeout=60)
            assert message is not None
            await message.reject(requeue=True)
        await self.broker.until_depth(amqp.DEAD_QUEUE, 1)
        async with self.working():
            await until(self.letters, bool)
        assert await self.broker.depth(amqp.DEAD_QUEUE) == 0


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def site(bare_broker: Broker, engine: AsyncEngine, database_url: str) -> Site:
    settings = make_settings(
        bare_broker.settings.amqp_url.get_secret_value(),
        database_url=database_url,
        require_user_id=False,
        delivery_limit=5,
    )
    async with Management(settings) as management:
        await topology.apply(management, settings)
    return Site(bare_broker, engine, settings)
