"""Reads how things stand: queues, consumers, rates, dead letters, outbox, pause and schema.

It looks at both servers at once and changes nothing. A server that is away is part of the picture.
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
from worker.errors import DatabaseAway, IngestError
from worker.ingest.trial import hanging_commits, try_writing
from worker.operate.status.attention import Attention, of_error, of_servers
from worker.operate.status.facts import (
    BrokerStatus,
    DatabaseStatus,
    PartitionStatus,
    QueueStatus,
    WorkerStatus,
)
from worker.settings import Settings
from worker.store import leases, outbox, pause, prune, schema, silence, workers
from worker.store.engine import transaction
from worker.store.operate import dead, grants, schedules, sizes


@dataclass(frozen=True, slots=True)
class Status:
    """Everything, at one moment. `attention` has what somebody should see to, the worst first."""

    at: datetime
    broker: BrokerStatus | None
    database: DatabaseStatus | None
    attention: tuple[Attention, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether there is nothing but notes."""
        return all(each.severity == "note" for each in self.attention)

    @property
    def workers(self) -> tuple[WorkerStatus, ...]:
        """The workers, by name. Those of version 0.1.0 are missing: see `others`."""
        if self.database is None:
            return ()
        leases = self.database.leases
        return tuple(
            WorkerStatus(
                each.worker,
                each.worker.rsplit(":", 2)[0],
                each.version,
                each.started_at,
                each.seen_at,
                each.age > _SILENT,
                each.state,
                each.in_hand,
                each.reason,
                tuple(
                    lease.queue
                    for lease in leases
                    if lease.worker == each.worker and amqp.is_partition(lease.queue)
                ),
            )
            for each in self.database.workers
        )

    @property
    def others(self) -> int:
        """The consumers of batches that are none of `workers`, but workers of version 0.1.0."""
        queue = None if self.broker is None else self.broker.queue(amqp.ATTEMPTS_QUEUE)
        known = sum(each.state == "consuming" and not each.is_silent for each in self.workers)
        return 0 if queue is None else max(0, queue.consumers - known)

    @property
    def partitions(self) -> tuple[PartitionStatus, ...]:
        """The partitions of the queue, with those that are not wanted any more."""
        leased = () if self.database is None else self.database.leases
        return tuple(
            PartitionStatus(
                queue.name,
                queue.ready,
                queue.unacknowledged,
                queue.consumers,
                tuple(lease.worker for lease in leased if lease.queue == queue.name),
            )
            for queue in (() if self.broker is None else self.broker.attempts)
            if amqp.is_partition(queue.name)
        )


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
        return_exceptions=True,
    )
    errors = []
    for one in found:
        if isinstance(one, IngestError):
            errors.append(of_error(one))
        elif isinstance(one, BaseException):
            raise one
    broker = found[0] if isinstance(found[0], BrokerStatus) else None
    database = found[1] if isinstance(found[1], DatabaseStatus) else None
    if broker is not None and isinstance(found[2], int):
        broker = replace(broker, partitions=found[2])
    if database is not None and not _is_moving(broker):
        database = replace(database, refusal=await _refusal(engine, database))
    in_use = settings if broker is None else _with(settings, broker.partitions)
    expected = {queue.name for queue in topology.wanted(in_use).queues}
    seen = of_servers(
        broker,
        database,
        expected=expected,
        enabled=settings.enabled,
        max_followups=settings.max_followups,
        partitions=settings.partitions,
    )
    # Missing queues are named all at once; the check stops at the first.
    if any(each.code == "queues_missing" for each in seen):
        errors = [each for each in errors if each.code != "not_set_up"]
    # A broker that is away fails both that look at it.
    return Status(datetime.now(UTC), broker, database, (*dict.fromkeys(errors), *seen))


def _with(settings: Settings, partitions: int) -> Settings:
    return settings.model_copy(update={"partitions": partitions})


async def _broker(settings: Settings, management: Management) -> BrokerStatus:
    version, queues, names = await asyncio.gather(
        management.version(), management.queues(topology.QUEUES), management.queue_names()
    )
    ours = sorted(
        map(_queue, queues),
        key=lambda queue: [part.zfill(12) for part in queue.name.split(".")],
    )
    ours = [await _with_consumers(queue, settings) for queue in ours]
    listening = frozenset(filter(None, map(topology.viewer_of_results, names)))
    older = (
        viewer
        for viewer in listening
        if amqp.results_queue(viewer) in names and amqp.progress_queue(viewer) not in names
    )
    return BrokerStatus(version, tuple(ours), listening, older=frozenset(older))


def _is_moving(broker: BrokerStatus | None) -> bool:
    """Whether batches are ingested, or would be if there were any, as far as the broker knows.

    Only if they are not is a trial worth what it costs: `top` looks every two seconds.
    """
    attempts = () if broker is None else broker.attempts
    if not any(queue.consumers for queue in attempts):
        return False
    waiting = sum(queue.ready + queue.unacknowledged for queue in attempts)
    return not waiting or any(queue.acknowledged_per_second for queue in attempts)


async def _refusal(engine: AsyncEngine, database: DatabaseStatus) -> str | None:
    """Why the database takes no writes, which is what workers pause for. None if it takes them.

    It is unknown, and so None, for a login that may not write in the first place.
    """
    if database.schema != database.schema_wanted:
        return None
    try:
        await try_writing(engine)
    except DatabaseAway as error:
        return None if _is_forbidden(error) else f"{error.found.rstrip('.')}."
    return None


def _is_forbidden(error: BaseException) -> bool:
    """Whether the login has no right to write."""
    cause = error.__cause__
    said = getattr(cause, "orig", cause)
    return getattr(said, "sqlstate", None) == _INSUFFICIENT_PRIVILEGE


_SILENT: Final = 20.0
"""Seconds after which a worker is silent: it says every five seconds that it is there."""
_INSUFFICIENT_PRIVILEGE: Final = "42501"


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
    if queue.consumers or not (queue.name == amqp.ATTEMPTS_QUEUE or _waits(queue)):
        return queue
    return replace(queue, consumers=await consumer_count(settings, queue.name))


def _waits(queue: QueueStatus) -> bool:
    return amqp.is_partition(queue.name) and queue.ready > 0


async def _database(engine: AsyncEngine) -> DatabaseStatus:
    at, head = await schema.current(engine), schema.head()
    if at != head:
        return DatabaseStatus(at, head, None, None, None, 0)
    async with transaction(engine) as connection:
        granted = frozenset(await grants.all_of(connection))
        kept = await sizes.sizes(connection)
        return DatabaseStatus(
            at,
            head,
            await pause.find(connection),
            await outbox.backlog(connection),
            await dead.overview(connection),
            await hanging_commits(connection),
            granted,
            await schedules.share_of_others(connection),
            jobs=tuple(await outbox.kind_backlogs(connection)),
            silent=tuple(await silence.fallen_silent(connection)),
            workers=tuple(await workers.present(connection)),
            leases=tuple(await leases.live(connection)),
            sizes=tuple(kept),
            growth=await sizes.growth(connection, kept),
            pruning=await prune.find(connection),
        )
