"""`batch`: what became of batches, and all that is known about one."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from worker.broker.management import Management
from worker.broker.topology import QUEUES
from worker.errors import BrokerAway, NoBatch, TopologyError
from worker.settings import Settings
from worker.store.engine import transaction
from worker.store.operate import batches as stored
from worker.store.operate import dead
from worker.store.operate.batches import Attempt, Batch, Receipt, Session, Wanted
from worker.store.operate.dead import Brief

_LETTERS: Final = 20
"""Copies of one batch that are worth showing: they differ in what was wrong with them."""


@dataclass(frozen=True, slots=True)
class Life:
    """What is on record about one batch. `letters` were rejected under its uuid."""

    client_session_uuid: UUID
    state: str
    receipt: Receipt | None
    sessions: list[Session]
    attempts: list[Attempt]
    result_waits_since: datetime | None
    letters: list[Brief]

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """The attempts that were skipped, as the result tells it."""
        summary = None if self.receipt is None else self.receipt.summary
        return list((summary or {}).get("skipped", ()))


async def find(engine: AsyncEngine, wanted: Wanted, limit: int) -> list[Batch]:
    """The newest batches that are wanted, at most `limit`."""
    async with transaction(engine) as connection:
        return await stored.find(connection, wanted, limit)


async def life(engine: AsyncEngine, settings: Settings, uuid: UUID) -> Life:
    """All that is stored about a batch.

    Raises `NoBatch` if nothing is, with what waits in the broker: the batch may be there.
    """
    async with transaction(engine, isolation="repeatable_read") as connection:
        receipt = await stored.receipt(connection, uuid)
        sessions = await stored.sessions(connection, uuid)
        attempts = await stored.attempts(connection, uuid)
        waits_since = await stored.result_waits_since(connection, uuid)
        letters = await dead.briefs(connection, dead.Wanted(uuids=frozenset({uuid})), _LETTERS)
    if receipt is None and not letters:
        raise NoBatch(
            f"No batch {uuid} is stored, and no dead letter has this uuid",
            f"see whether its viewer has published it: {await _waiting(settings)}.",
        )
    return Life(uuid, _state(receipt, sessions), receipt, sessions, attempts, waits_since, letters)


def _state(receipt: Receipt | None, sessions: list[Session]) -> str:
    if receipt is None:
        return "rejected"
    if receipt.erased_at is not None:
        return "erased"
    return "voided" if any(session.voided_at for session in sessions) else "ingested"


async def _waiting(settings: Settings) -> str:
    """What waits in the broker, as a clause."""
    try:
        async with Management(settings) as management:
            queues = await management.queues(QUEUES)
    except (BrokerAway, TopologyError) as error:
        return f"what waits in the broker is not known ({str(error).rstrip('.')})"
    counts: Counter[str] = Counter()
    for queue in queues:
        counts[_what_for(queue["name"])] += queue.get("messages") or 0
    waits = [f"{count} {why}" for why, count in sorted(counts.items()) if why and count]
    if not waits:
        return "no batch waits in the broker"
    return f"in the broker wait {', '.join(waits)}, and it may be one of them"


def _what_for(queue: str) -> str:
    """What a batch in this queue waits for, as a clause; empty if no batches wait there."""
    if queue == amqp.NEWER_QUEUE:
        return "for a newer worker"
    if queue == amqp.DEAD_QUEUE:
        return "to be collected as dead letters"
    if queue.startswith(amqp.RETRY_QUEUE_PREFIX):
        return "for another try"
    return "for a worker" if queue.startswith(amqp.ATTEMPTS_QUEUE) else ""
