"""What these tests share: batches, results, and the worker's side of a vhost."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import aio_pika
import httpx
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue, HeadersType

from study_viewer import Outbox, Relay, RelaySettings
from study_viewer.schemas.amqp import (
    EPOCH_HEADER,
    INGEST_RESULT_TYPE,
    RESULTS_EXCHANGE,
    result_key,
    results_queue,
)
from study_viewer.schemas.attempt_batch import Attempt, AttemptBatch
from study_viewer.schemas.ingest_result import IngestResult
from study_viewer.schemas.model import WireModel
from study_viewer.schemas.words import Status
from tests.study_viewer.proxy import PATIENCE

VIEWER = "ada"
_MARKER = b"not a result"

QUICK = RelaySettings(
    retry_delay_min=0.02, retry_delay_max=0.1, poll_interval=0.02, answer_timeout=5.0
)
"""For tests: waits that are as short as can be."""


def make_batch(uuid: UUID | None = None, choice: int = 1) -> AttemptBatch:
    attempt = Attempt(question_pub_id="q-1", selected_choice=choice)
    return AttemptBatch(client_session_uuid=uuid or uuid4(), attempts=(attempt,))


def make_result(uuid: UUID, status: Status = Status.INGESTED, **fields: object) -> IngestResult:
    made = {"client_session_uuid": uuid, "status": status, "received_at": datetime.now(UTC)}
    return IngestResult.model_validate(made | fields)


def record(outbox: Outbox, *batches: AttemptBatch) -> list[UUID]:
    """Records in a transaction as a viewer would; returns the uuids."""
    with closing(sqlite3.connect(outbox.path)) as connection, connection:
        for batch in batches:
            outbox.record(connection, batch)
    return [batch.client_session_uuid for batch in batches]


@dataclass
class Broker:
    """The worker's and the operator's side of the test's vhost."""

    url: str
    vhost: str
    management: httpx.AsyncClient
    channel: AbstractChannel
    attempts: AbstractQueue
    arrived: asyncio.Queue[AbstractIncomingMessage] = field(default_factory=asyncio.Queue)

    def login(self, name: str) -> str:
        """The URL for another login, whose password is its name."""
        host = urlsplit(self.url).netloc.rpartition("@")[2]
        return urlsplit(self.url)._replace(netloc=f"{name}:{name}@{host}").geturl()

    @asynccontextmanager
    async def with_few_rights(self) -> AsyncIterator[str]:
        """The name of a viewer with a login of its own and the rights that 0.1.0 gave to one."""
        viewer = self.vhost  # also a fine name
        queue = await self.channel.declare_queue(results_queue(viewer), durable=True)
        await queue.bind(RESULTS_EXCHANGE, result_key(viewer))
        await self.management.put(f"users/{viewer}", json={"password": viewer, "tags": ""})
        rights = {
            "configure": "^$",
            "write": "^study[.]ingest$",
            "read": f"^study[.]results[.]{viewer}$",
        }
        await self.management.put(f"permissions/{self.vhost}/{viewer}", json=rights)
        try:
            yield viewer
        finally:
            await self.management.delete(f"users/{viewer}")

    async def consume(self) -> None:
        """Begins to take what arrives for workers, as `next` then gives it."""

        async def take(message: AbstractIncomingMessage) -> None:
            await message.ack()
            self.arrived.put_nowait(message)

        await self.attempts.consume(take)

    async def next(self) -> AbstractIncomingMessage:
        """The next message for workers, which has been acked."""
        return await asyncio.wait_for(self.arrived.get(), PATIENCE)

    async def next_uuid(self) -> UUID:
        return UUID(json.loads((await self.next()).body)["client_session_uuid"])

    async def answer(
        self,
        result: WireModel | bytes,
        viewer: str = VIEWER,
        kind: str = INGEST_RESULT_TYPE,
        epoch: str | None = None,
    ) -> None:
        """Publishes a result, as a worker would, or what else goes where results go."""
        body = result if isinstance(result, bytes) else result.model_dump_json().encode()
        exchange = await self.channel.get_exchange(RESULTS_EXCHANGE, ensure=False)
        headers: HeadersType = {} if epoch is None else {EPOCH_HEADER: epoch}
        message = aio_pika.Message(body, type=kind, message_id=str(uuid4()), headers=headers)
        await exchange.publish(message, result_key(viewer))

    async def count(self, queue: str) -> int:
        """How many messages are ready in a queue."""
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def results_left(self, viewer: str = VIEWER) -> list[bytes]:
        """Takes and returns what waits for the viewer, but for the markers of `drained`."""
        queue = await self.channel.declare_queue(results_queue(viewer), passive=True)
        left = []
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            left.append(message.body)
        return [body for body in left if body != _MARKER]

    async def viewers_connections(self) -> list[str]:
        """The names of all connections to this vhost but the test's own."""
        listed = (await self.management.get("connections")).raise_for_status().json()
        return [
            each["name"]
            for each in listed
            if each.get("vhost") == self.vhost
            and each.get("client_properties", {}).get("connection_name") != "test"
        ]

    async def close_viewers(self) -> None:
        """Has the broker close the viewers' connections, once it lists one."""
        async with asyncio.timeout(PATIENCE):
            # The API has no events to wait for.
            while not (names := await self.viewers_connections()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        for name in names:
            await self.management.delete(f"connections/{name}")


async def drained(relay: Relay, broker: Broker) -> None:
    """Waits until the relay has taken all results that were sent before: a marker follows them.

    The marker is told by being unreadable, so no other such result may be on its way.
    """
    before = relay.status.unreadable_results
    await broker.answer(_MARKER)
    async with asyncio.timeout(PATIENCE):
        await relay.until(lambda: relay.status.unreadable_results > before)
