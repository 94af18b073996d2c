"""What `status` reads of the two servers, as plain values."""

from dataclasses import dataclass
from datetime import datetime

from schemas import amqp
from worker.store.leases import Lease
from worker.store.operate.dead import Overview
from worker.store.operate.sizes import Growth, Size
from worker.store.outbox import Backlog, KindBacklog
from worker.store.pause import Pause
from worker.store.prune import Pruned
from worker.store.workers import Worker


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
class PartitionStatus:
    """A partition of the queue, and the workers that have a lease of it: one, but for moments."""

    name: str
    ready: int
    unacknowledged: int
    consumers: int
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker, as it said itself at `seen_at`. `paused_for` is None while it is not paused.

    `is_silent` is a worker that was killed, or can't reach the database. `partitions` are the
    queues that it consumes besides the common one.
    """

    name: str
    host: str
    version: str
    since: datetime
    seen_at: datetime
    is_silent: bool
    state: str
    in_hand: int
    paused_for: str | None
    partitions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """The broker: our queues, and the viewers that have a queue for results."""

    version: str
    queues: tuple[QueueStatus, ...]
    listening: frozenset[str]
    partitions: int = 1
    """The number of partitions among which batches are dealt out."""
    older: frozenset[str] = frozenset()
    """The viewers with a queue for results and none for progress."""

    @property
    def attempts(self) -> tuple[QueueStatus, ...]:
        """The queues in which batches wait for workers: the common one, and all partitions."""
        return tuple(
            queue
            for queue in self.queues
            if queue.name == amqp.ATTEMPTS_QUEUE or amqp.is_partition(queue.name)
        )

    def queue(self, name: str) -> QueueStatus | None:
        """The queue of this name; None when there is none."""
        return next((queue for queue in self.queues if queue.name == name), None)


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """The database. Everything but the versions is None where the schema does not fit."""

    schema: str | None
    schema_wanted: str
    pause: Pause | None
    outbox: Backlog | None
    dead: Overview | None
    hanging_commits: int
    """Sessions of this role that have been waiting in COMMIT, for a replica, say."""
    granted: frozenset[str] = frozenset()
    """The viewers that may write for somebody."""
    other_schedules: float = 0.0
    """The share of progress that another scheduler computed, from 0 to 1, as an estimate."""
    refusal: str | None = None
    """Why it takes no writes, as a sentence; None if it takes them, or if that is not known."""
    jobs: tuple[KindBacklog, ...] = ()
    """The follow-up jobs that wait in the outbox."""
    silent: tuple[str, ...] = ()
    """The viewers that published every week, but nothing in the last one."""
    workers: tuple[Worker, ...] = ()
    """Those that say that they are there."""
    leases: tuple[Lease, ...] = ()
    """Which worker consumes which queue, where there are partitions."""
    sizes: tuple[Size, ...] = ()
    """What is kept, and how large it is."""
    growth: Growth | None = None
    """How fast that grows; None while it is not known."""
    pruning: Pruned | None = None
    """Who prunes, and how much has gone."""


def sized(count: float) -> str:
    """A number of bytes, in units of 1,000."""
    units = iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while count >= 999.5 and unit != "TB":
        count, unit = count / 1_000, next(units)
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 99.95 else f"{count:.1f} {unit}"
