"""A publisher that is none of our viewers: bad messages, copies, and uuids that are already used.

It publishes with confirms, straight to the broker, and repeats each message until it is confirmed.
So everything that it lists in `sent` must have its effect.
"""

import asyncio
import json
import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import aio_pika
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, DeliveryError

from chaos.evidence import MARK_WORD, Strange
from schemas import amqp

_NAME: Final = "stranger"
_PATIENCE: Final = 5.0
"""Seconds for one confirm, and between attempts."""
_KINDS: Final = (
    "uuid_reused",
    "echo",
    "malformed",
    "not json",
    "too_large",
    "unsupported_version",
)
_ATTEMPT: Final = {"question_pub_id": "pub-1-1", "selected_choice": 1}


class Stranger:
    """Publishes one unusual message every `pause` seconds, plus or minus half."""

    def __init__(self, url: str, outboxes: Sequence[Path], seed: int, pause: float) -> None:
        self.sent: list[Strange] = []
        self._url = url
        self._outboxes = outboxes
        self._rng = random.Random(f"{seed}/{_NAME}")
        self._pause = pause
        self._quiet = asyncio.Event()

    async def run(self) -> None:
        """Publishes until `quiet`, and then until the last message is confirmed."""
        number = 0
        while not self._quiet.is_set():
            number += 1
            message, strange = self._message(f"strange-{number}")
            await self._publish(message)
            self.sent.append(strange)
            wait = self._pause * self._rng.uniform(0.5, 1.5)
            try:
                await asyncio.wait_for(self._quiet.wait(), wait)
            except TimeoutError:
                continue

    def quiet(self) -> None:
        """Ends the publishing."""
        self._quiet.set()

    async def _publish(self, message: aio_pika.Message) -> None:
        while True:
            try:
                async with asyncio.timeout(_PATIENCE):
                    async with await aio_pika.connect(self._url) as connection:
                        channel = await connection.channel(on_return_raises=True)
                        exchange = await channel.get_exchange(amqp.INGEST_EXCHANGE, ensure=False)
                        message.message_id = uuid4().hex
                        await exchange.publish(message, amqp.attempts_key(_NAME), mandatory=True)
                        return
            except (*CONNECTION_EXCEPTIONS, DeliveryError, TimeoutError, asyncio.CancelledError):
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                await asyncio.sleep(self._rng.uniform(0.2, 1.0))

    def _message(self, mark: str) -> tuple[aio_pika.Message, Strange]:
        uuid = UUID(int=self._rng.getrandbits(128), version=4)
        attempts = [_ATTEMPT]
        message_type = amqp.ATTEMPT_BATCH_TYPE
        kind = _KINDS[len(self.sent) % len(_KINDS)]
        ingested = self._ingested() if kind in ("uuid_reused", "echo") else None
        if kind in ("uuid_reused", "echo") and ingested is None:
            kind = "malformed"
        body: dict[str, Any] = {"client_session_uuid": str(uuid), "attempts": attempts}
        expected = kind
        match kind:
            case "malformed":
                body = {"client_session_uuid": str(uuid), "attempts": [{"selected_choice": "1"}]}
            case "not json":
                expected = "malformed"
            case "too_large":
                body = {"client_session_uuid": str(uuid), "attempts": attempts * 1_001}
            case "unsupported_version":
                message_type = "study.attempt_batch.v0"
            case "uuid_reused" | "echo":
                assert ingested is not None
                uuid = UUID(ingested["client_session_uuid"])
                body = ingested
                if kind == "echo":
                    expected = "already_ingested"
                else:
                    body = ingested | {"attempts": [*ingested["attempts"], _ATTEMPT]}
        # In the body, where it does not count: no header of a stranger's travels on.
        marked = (
            f"\0 {MARK_WORD} {mark}" if kind == "not json" else json.dumps(body | {MARK_WORD: mark})
        )
        return (
            aio_pika.Message(
                marked.encode(),
                type=message_type,
                content_type=amqp.CONTENT_TYPE,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                headers={amqp.CLIENT_SESSION_UUID_HEADER: str(uuid)},
            ),
            Strange(mark, uuid, expected),
        )

    def _ingested(self) -> dict[str, Any] | None:
        """A batch of a viewer that was ingested. None while there is none."""
        path = self._rng.choice(self._outboxes)
        if not path.exists():
            return None
        try:
            with closing(sqlite3.connect(path, timeout=1)) as file:
                row = file.execute(
                    "SELECT body FROM study_outbox WHERE status = 'ingested' ORDER BY seq DESC"
                ).fetchone()
        except sqlite3.OperationalError:
            return None
        return None if row is None else json.loads(row[0])
