"""The last hours: what waited and was done, by the broker's own samples, and when letters died.

The broker keeps a sample for each minute of an hour. Nobody else needs to run for that.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from worker.broker.management import Json, Management
from worker.errors import IngestError
from worker.store.engine import transaction
from worker.store.operate import dead

_HOURS: Final = 24
_QUEUES: Final = f"^{amqp.ATTEMPTS_QUEUE.replace('.', '[.]')}([.][0-9]+)?$"


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute of all queues for attempts together, which ended at `at`."""

    at: datetime
    ready: int
    published_per_second: float
    acknowledged_per_second: float


@dataclass(frozen=True, slots=True)
class History:
    """What is known; empty where its server is away."""

    minutes: Sequence[Minute] = ()
    """Of the last hour, the oldest first."""
    died: Sequence[int] = ()
    """Letters in each of the last 24 hours, the oldest first."""


async def history(engine: AsyncEngine, management: Management) -> History:
    """The last hour and the last day. Never raises `IngestError`."""
    minutes, died = await asyncio.gather(
        management.samples(_QUEUES, seconds=3600, every=60), _died(engine), return_exceptions=True
    )
    for one in (minutes, died):
        if isinstance(one, BaseException) and not isinstance(one, IngestError):
            raise one
    return History(
        () if isinstance(minutes, BaseException) else _minutes(minutes),
        () if isinstance(died, BaseException) else died,
    )


async def _died(engine: AsyncEngine) -> list[int]:
    async with transaction(engine) as connection:
        return await dead.by_hour(connection, _HOURS)


def _minutes(queues: Iterable[Json]) -> list[Minute]:
    ready: dict[int, int] = {}
    done: dict[str, dict[int, float]] = {"publish": {}, "ack": {}}
    for queue in queues:
        for at, value in _samples(queue, "messages_ready_details"):
            ready[at] = ready.get(at, 0) + value
        stats = queue.get("message_stats") or {}
        for word, rates in done.items():
            samples = _samples(stats, f"{word}_details")
            for (before, first), (at, second) in pairwise(samples):
                if at > before:
                    rates[at] = rates.get(at, 0.0) + (second - first) * 1000 / (at - before)
    return [
        Minute(
            datetime.fromtimestamp(at / 1000, UTC),
            ready[at],
            done["publish"].get(at, 0.0),
            done["ack"].get(at, 0.0),
        )
        for at in sorted(ready)
    ]


def _samples(found: Json, name: str) -> list[tuple[int, Any]]:
    """Pairs of a time in milliseconds and a value, the oldest first."""
    samples = (found.get(name) or {}).get("samples") or ()
    return sorted((each["timestamp"], each["sample"]) for each in samples)
