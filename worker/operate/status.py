"""How things stand: queues, consumers, rates, dead letters, outbox, pause and schema, at a glance.

Looks at both servers at once and changes nothing; a server that is away is part of the picture.
Decides what needs attention, in sentences; may not know how it is shown.
"""

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from worker.broker import topology
from worker.broker.management import Json, Management
from worker.broker.subscription import consumer_count
from worker.errors import IngestError
from worker.ingest.trial import hanging_commits
from worker.settings import Settings
from worker.store import outbox, pause, schema
from worker.store.engine import transaction
from worker.store.operate import dead
from worker.store.operate.dead import Overview
from worker.store.outbox import Backlog
from worker.store.pause import Pause

_OUTBOX_LAG: Final = 60.0
"""Seconds that a result may wait in the outbox before somebody should look."""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue; rates are messages a second, None where the broker keeps none."""

    name: str
    ready: int
    unacknowledged: int
    consumers: int
    published_per_second: float | None
    acknowledged_per_second: float | None


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    version: str
    queues: tuple[QueueStatus, ...]

    def queue(self, name: str) -> QueueStatus | None:
        """The queue of this name; None when there is none."""
        return next((queue for queue in self.queues if queue.name == name), None)


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    schema: str | None
    schema_wanted: str
    pause: Pause | None
    outbox: Backlog | None
    dead: Overview | None


@dataclass(frozen=True, slots=True)
class Status:
    """Everything, at one moment; `attention` is empty when all is well."""

    at: datetime
    broker: BrokerStatus | None
    database: DatabaseStatus | None
    attention: tuple[str, ...]


async def look(
    settings: Settings,
    engine: AsyncEngine,
    management: Management,
) -> Status:
    """How things stand now; never raises `IngestError`."""
    found = await asyncio.gather(
        _broker(settings, management),
        _database(engine),
        topology.check(management, settings),
        _commits(engine),
        return_exceptions=True,
    )
    broker, database, _, commits = found
    attention: list[str] = []
    for server in found:
        if isinstance(server, IngestError):
            attention.append(str(server))
        elif isinstance(server, BaseException):
            raise server
    if isinstance(broker, BrokerStatus):
        attention += _of_the_broker(broker)
    if isinstance(database, DatabaseStatus):
        attention += _of_the_database(database)
    if isinstance(commits, list):
        attention += commits
    if not settings.enabled:
        attention.append("INGEST_ENABLED is false here: workers with this setting do not ingest.")
    return Status(
        datetime.now(UTC),
        broker if isinstance(broker, BrokerStatus) else None,
        database if isinstance(database, DatabaseStatus) else None,
        tuple(dict.fromkeys(attention)),
    )


async def _broker(settings: Settings, management: Management) -> BrokerStatus:
    version, queues = await asyncio.gather(management.version(), management.queues())
    ours = sorted(
        (_queue(each) for each in queues if each["name"].startswith((_OURS, _JOBS))),
        key=lambda queue: [part.zfill(12) for part in queue.name.split(".")],
    )
    ours = [await _with_consumers(queue, settings) for queue in ours]
    return BrokerStatus(version, tuple(ours))


_OURS: Final = amqp.ATTEMPTS_QUEUE
_JOBS: Final = amqp.FOLLOWUPS_EXCHANGE


def _queue(found: Json) -> QueueStatus:
    stats = found.get("message_stats") or {}

    def rate(what: str) -> float | None:
        value = (stats.get(f"{what}_details") or {}).get("rate")
        return None if value is None else float(value)

    return QueueStatus(
        found["name"],
        # A queue that was just declared has no counts yet.
        found.get("messages_ready", 0),
        found.get("messages_unacknowledged", 0),
        found.get("consumers", 0),
        rate("publish"),
        rate("ack"),
    )


async def _with_consumers(queue: QueueStatus, settings: Settings) -> QueueStatus:
    """The queue with the consumers that it really has where the API, which lags, knows of none."""
    if queue.name != amqp.ATTEMPTS_QUEUE or queue.consumers:
        return queue
    return replace(queue, consumers=await consumer_count(settings, queue.name))


async def _database(engine: AsyncEngine) -> DatabaseStatus:
    at, wanted = await schema.current(engine), schema.head()
    if at != wanted:
        return DatabaseStatus(at, wanted, None, None, None)
    async with transaction(engine) as connection:
        return DatabaseStatus(
            at,
            wanted,
            await pause.find(connection),
            await outbox.backlog(connection),
            await dead.overview(connection),
        )


async def _commits(engine: AsyncEngine) -> list[str]:
    async with transaction(engine) as connection:
        hanging = await hanging_commits(connection)
    if not hanging:
        return []
    return [
        f"{hanging} commits hang: check that the replicas in synchronous_standby_names are there."
    ]


def _of_the_broker(broker: BrokerStatus) -> list[str]:
    attempts = broker.queue(amqp.ATTEMPTS_QUEUE)
    collected = broker.queue(amqp.DEAD_QUEUE)
    if attempts is None or collected is None:
        return ["The broker is not set up: run `study-ingest topology`."]
    found = []
    if not attempts.consumers:
        found.append(
            f"Nobody consumes {attempts.name}, where {attempts.ready} batches wait:"
            " start a worker, or see why none is ready."
        )
    if collected.ready:
        found.append(
            f"{collected.ready} messages wait in {collected.name} to be kept as dead letters:"
            " a worker takes them within seconds. For one that AMQP 0-9-1 cannot carry, it needs"
            " INGEST_MANAGEMENT_URL."
        )
    newer = broker.queue(amqp.NEWER_QUEUE)
    if newer is not None and newer.ready:
        found.append(f"{newer.ready} batches wait for a newer worker: upgrade, and they are taken.")
    return found


def _of_the_database(database: DatabaseStatus) -> list[str]:
    if database.schema != database.schema_wanted:
        return [
            f"The schema is at {database.schema or 'none'} and this program needs"
            f" {database.schema_wanted}: run `study-ingest migrate`, or the newer program."
        ]
    found = []
    if database.dead is not None and database.dead.letters:
        found.append(
            f"{database.dead.letters} dead letters wait for a decision: `study-ingest dead list`."
        )
    if pause := database.pause:
        because = f" ({pause.reason})" if pause.reason else ""
        since = pause.paused_at.isoformat(sep=" ", timespec="seconds")
        found.append(
            f"Ingest is paused since {since} by {pause.actor}{because}:"
            " `study-ingest resume` ends it."
        )
    if database.outbox is not None and database.outbox.oldest_age > _OUTBOX_LAG:
        found.append(
            f"{database.outbox.messages} results and jobs wait in the outbox, the oldest for"
            f" {database.outbox.oldest_age:.0f} s: see that a relay runs and reaches the broker."
        )
    return found
