"""The account: counts every result as it is published.

It listens with queues of its own, so it takes nothing from viewers or operators. It does not know
what was supposed to happen.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from schemas import amqp
from schemas.ingest_result import IngestResult
from schemas.words import Status


class Account:
    """What has happened to the deliveries so far."""

    def __init__(self) -> None:
        self.results: Counter[Status] = Counter()
        self.rejected: Counter[str] = Counter()
        self._seen: set[str] = set()
        self.on_change: Callable[[], None] = lambda: None
        self._changed = asyncio.Event()

    @property
    def settled(self) -> int:
        """The number of deliveries that were ingested, duplicates, or rejected."""
        told = self.results[Status.INGESTED] + self.results[Status.ALREADY_INGESTED]
        return told + self.rejected.total()

    async def until(self, condition: Callable[[], bool], patience: float) -> bool:
        """Waits for `condition`. Returns False if nothing was settled for `patience` seconds."""
        while not condition():
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), patience)
            except TimeoutError:
                return condition()
        return True

    async def add_result(self, message: AbstractIncomingMessage) -> None:
        """Counts one result. The same message counts once."""
        if message.message_id not in self._seen:
            self._seen.add(message.message_id or "")
            result = IngestResult.model_validate_json(message.body)
            self.results[result.status] += 1
            if result.reason is not None:
                self.rejected[result.reason] += 1
            self.on_change()
            self._changed.set()


@asynccontextmanager
async def keep(amqp_url: str) -> AsyncIterator[tuple[Account, aio_pika.abc.AbstractChannel]]:
    """An account that is kept while the block runs, and a channel with confirms for publishing."""
    account = Account()
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(f"demo.{uuid4().hex}", exclusive=True)
        await queue.bind(amqp.RESULTS_EXCHANGE, "result.#")
        await queue.consume(account.add_result, no_ack=True)
        yield account, await connection.channel(publisher_confirms=True)
