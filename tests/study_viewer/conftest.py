"""Fixtures: an outbox, and a vhost of the test's own with the topology that a viewer meets."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import aio_pika
import httpx
import pytest

from study_viewer import Outbox
from study_viewer.schemas.amqp import (
    ATTEMPTS_BINDING,
    ATTEMPTS_QUEUE,
    INGEST_EXCHANGE,
    RESULTS_EXCHANGE,
)
from tests.study_viewer.support import Broker


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "viewer.db") as outbox:
        yield outbox


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    url = os.environ.get("INGEST_AMQP_URL")
    management_url = os.environ.get("INGEST_MANAGEMENT_URL")
    if url is None or management_url is None:
        pytest.fail("INGEST_AMQP_URL is not set: run the tests with ./dev test.")
    name = f"viewer-{uuid4().hex[:12]}"
    login = urlsplit(management_url).username
    async with httpx.AsyncClient(base_url=f"{management_url}/api/", trust_env=False) as management:
        (await management.put(f"vhosts/{name}")).raise_for_status()
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        await management.put(f"permissions/{name}/{login}", json=everything)
        try:
            own = urlsplit(url)._replace(path=f"/{name}").geturl()
            connection = await aio_pika.connect(own, name="test")
            async with connection:
                channel = await connection.channel(on_return_raises=True)
                exchange = await channel.declare_exchange(INGEST_EXCHANGE, "topic", durable=True)
                await channel.declare_exchange(RESULTS_EXCHANGE, "topic", durable=True)
                queue = await channel.declare_queue(ATTEMPTS_QUEUE, durable=True)
                await queue.bind(exchange, ATTEMPTS_BINDING)
                yield Broker(own, name, management, channel, queue)
        finally:
            await management.delete(f"vhosts/{name}")
