"""A vhost of its own on a real broker for each test, with the topology applied.

Tests wait for conditions. The broker does not announce the depth of a queue, so `Broker.until` asks
until it is as wanted. It is the only function that uses a clock.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import aio_pika
import httpx
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection
from pamqp.commands import Basic

from schemas import amqp
from worker.broker import topology
from worker.broker.management import Management
from worker.broker.publisher import Publisher, new_message_id
from worker.settings import Settings

PATIENCE = 60.0
"""Seconds after which a condition counts as not met, on a machine that has other things to do."""

VIEWER = "ada"


@dataclass(frozen=True)
class Found:
    """A message as it lies in a queue."""

    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]
    exchange: str
    routing_key: str
    redelivered: bool


class Broker:
    """A vhost seen from outside the worker: what a viewer and an operator can do to it."""

    def __init__(self, settings: Settings, api: httpx.AsyncClient) -> None:
        self.settings = settings
        self.vhost = urlsplit(settings.amqp_url.get_secret_value()).path[1:]
        self.api = api
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._opening = asyncio.Lock()

    async def channel(self) -> AbstractChannel:
        """A channel of the test's own, opened anew where a refusal has closed it."""
        async with self._opening:
            if self._connection is None or self._connection.is_closed:
                self._connection = await aio_pika.connect(
                    self.settings.amqp_url.get_secret_value(),
                    client_properties={"connection_name": "test"},
                )
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._connection.channel(on_return_raises=True)
            return self._channel

    async def publish(
        self,
        body: bytes | str,
        *,
        exchange: str = amqp.INGEST_EXCHANGE,
        routing_key: str = amqp.attempts_key(VIEWER),
        headers: Mapping[str, Any] | None = None,
        **properties: Any,
    ) -> None:
        """Publishes one message with a confirm, as any program could."""
        message = aio_pika.Message(
            body.encode() if isinstance(body, str) else body,
            headers=dict(headers or {}),
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            **({"message_id": str(uuid4())} | properties),
        )
        target = await (await self.channel()).get_exchange(exchange, ensure=False)
        await target.publish(message, routing_key, timeout=PATIENCE)

    async def publish_raw(self, body: str, *, flags: int, raw: bytes) -> None:
        """Publishes with a property that the client would refuse: its flag and its bytes."""

        class Raw(Basic.Properties):
            def marshal(self) -> bytes:
                # With a message id after it, for the client's own book-keeping.
                properties = flags | Basic.Properties.flags["message_id"]
                before = flags > Basic.Properties.flags["message_id"]
                message_id = b"\x04odd!"
                parts = (raw, message_id) if before else (message_id, raw)
                return properties.to_bytes(2) + b"".join(parts)

        channel = await (await self.channel()).get_underlay_channel()
        await channel.basic_publish(
            body.encode(),
            exchange=amqp.INGEST_EXCHANGE,
            routing_key=amqp.attempts_key(VIEWER),
            properties=Raw(message_id="odd!"),
            mandatory=True,
            timeout=PATIENCE,
        )

    async def depth(self, queue: str) -> int:
        """How many messages are ready in `queue` (those in somebody's hand are not)."""
        declared = await (await self.channel()).declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def consumers(self, queue: str = amqp.ATTEMPTS_QUEUE) -> int:
        declared = await (await self.channel()).declare_queue(queue, passive=True)
        return declared.declaration_result.consumer_count or 0

    async def until_depth(self, queue: str, depth: int) -> None:
        await until(lambda: self.depth(queue), depth.__eq__)

    async def until_consumers(self, count: int) -> None:
        await until(self.consumers, count.__eq__)

    async def take(self, queue: str) -> Found:
        """Takes the message at the head of `queue`, waiting until there is one."""
        source = await (await self.channel()).get_queue(queue, ensure=False)
        message = await until(
            lambda: source.get(no_ack=True, fail=False), lambda it: it is not None
        )
        return Found(
            message.body,
            {k: v for k, v in message.headers.items() if k != "x-delivery-count"},
            dict(message.info()),
            message.exchange or "",
            message.routing_key or "",
            bool(message.redelivered),
        )

    async def connections(self, purpose: str) -> list[str]:
        """The names of the worker's connections for `purpose` in this vhost."""
        listed = (await self.api.get("connections")).raise_for_status().json()
        return [
            each["name"]
            for each in listed
            if each.get("vhost") == self.vhost
            and f" {purpose} " in each.get("client_properties", {}).get("connection_name", "")
        ]

    async def cut(self, purpose: str) -> None:
        """Has the broker close the worker's connections for `purpose`, once it lists one."""
        for name in await until(lambda: self.connections(purpose), bool):
            await self.api.delete(f"connections/{quote(name, safe='')}")

    async def delete(self, kind: str, path: str) -> None:
        """Deletes a thing of one kind (`exchanges`, `bindings`, ...) by its path in the API."""
        (await self.api.delete(f"{kind}/{self.vhost}/{path}")).raise_for_status()

    async def delete_queue(self, name: str) -> None:
        await self.delete("queues", name)

    async def put_policy(self, name: str, **policy: Any) -> None:
        """Sets a policy, its fields with `_` for `-` (`apply_to`)."""
        body = {key.replace("_", "-"): value for key, value in policy.items()}
        answer = await self.api.put(f"policies/{self.vhost}/{name}", json=body)
        answer.raise_for_status()

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


async def until(
    look: Callable[[], Awaitable[Any]], wanted: Callable[[Any], bool], patience: float = PATIENCE
) -> Any:
    """Looks until what is seen is as wanted, and returns it."""
    seen: Any = "nothing"
    try:
        async with asyncio.timeout(patience):
            # A broker tells nobody of its depths: there is no event to wait for.
            while not wanted(seen := await look()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"still {seen!r} after {patience} s")
    return seen


def make_settings(amqp_url: str, **changed: Any) -> Settings:
    """Settings for a test: waits as short as can be."""
    return Settings.model_validate(
        {
            "database_url": os.environ.get("INGEST_DATABASE_URL", "postgresql://unused"),
            "amqp_url": amqp_url,
            "management_url": os.environ.get("INGEST_MANAGEMENT_URL"),
            "require_user_id": False,
            "retry_delays": (0.1, 0.2),
            "pause_delay_min": 0.02,
            "pause_delay_max": 0.2,
            "publish_timeout": 5.0,
            "drain_timeout": 5.0,
            "consumer_check_interval": 0.2,
        }
        | changed
    )


@asynccontextmanager
async def new_vhost() -> AsyncIterator[Broker]:
    """A vhost with nothing in it, until the block ends."""
    server = os.environ.get("INGEST_AMQP_URL")
    if server is None:
        pytest.fail("INGEST_AMQP_URL is not set: run the tests with ./dev test.")
    name = f"test-{uuid4().hex[:16]}"
    settings = make_settings(urlsplit(server)._replace(path=f"/{name}").geturl())
    async with Management(settings) as management:
        api = management.http
        user = quote(management.user, safe="")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        (await api.put(f"vhosts/{name}")).raise_for_status()
        (await api.put(f"permissions/{name}/{user}", json=everything)).raise_for_status()
        broker = Broker(settings, api)
        try:
            yield broker
        finally:
            await broker.close()
            (await api.delete(f"vhosts/{name}", timeout=60)).raise_for_status()


@pytest.fixture
async def bare_broker() -> AsyncIterator[Broker]:
    """A new vhost with nothing in it."""
    async with new_vhost() as broker:
        yield broker


@pytest.fixture
async def broker(bare_broker: Broker, management: Management) -> Broker:
    """A new vhost with the topology applied."""
    await topology.apply(management, bare_broker.settings)
    return bare_broker


@pytest.fixture
async def management(bare_broker: Broker) -> AsyncIterator[Management]:
    """The management API, seen from the test's vhost."""
    async with Management(bare_broker.settings) as management:
        yield management


async def publish(
    publisher: Publisher,
    exchange: str,
    routing_key: str,
    body: bytes,
    message_id: str | None = None,
) -> None:
    """Sends one message by the worker's publisher; raises what that raises."""
    message = aio_pika.Message(body, message_id=message_id or new_message_id())
    await publisher.send(exchange, routing_key, message)


@pytest.fixture
async def publisher(broker: Broker) -> AsyncIterator[Publisher]:
    """The worker's publisher, in the test's vhost."""
    async with Publisher(broker.settings) as publisher:
        yield publisher
