"""One run of one contender, from a full queue to the last ack.

Its processes are started and warmed up, and then stopped while the queue is filled. So neither
starting nor publishing is part of the figures.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

import asyncpg

from bench import broker, rows
from bench.contenders import Contender, publish_as
from bench.errors import BenchError
from bench.processes import Processes
from bench.rows import Digests
from bench.stage import Stage, environment_of
from bench.workload import Batch
from worker.settings import Settings

LOGS: Final = Path(".dev/bench/logs")
_LOOK: Final = 0.005, 0.25
"""Seconds between looks at what is committed, at least and at most: counting is work on the cores
that the contenders run on, so there are many only towards the end."""
_SHARE: Final = 0.6
"""Of the time that is left by the pace so far, how much passes before the next look."""
_STARTED_WITHIN: Final = 300.0
"""Seconds in which all processes of a contender consume, on a machine that does other work too."""
_PATIENCE: Final = 60.0
"""Seconds without a commit after which a contender counts as stuck."""


@dataclass(frozen=True, slots=True)
class Course:
    """What is to be ingested, on what, and the rows that must come of it."""

    name: str
    template: str
    warm_up: Sequence[Batch]
    timed: Sequence[Batch]
    expected: Digests
    """Of the tables after both."""
    published: Sequence[Batch] | None = None
    """What is published in the end, where it is more than `timed`: the rest must be rejected."""


@dataclass(frozen=True, slots=True)
class Lap:
    """What one run came to."""

    seconds: float
    batches: int
    cpu: float
    """Seconds of all the contender's processes."""
    memory: int
    """Resident bytes of them together, at the end."""
    received: Mapping[UUID, float]
    """When the transaction of each batch began, in seconds from the release."""

    @property
    def throughput(self) -> float:
        """Batches a second."""
        return self.batches / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of CPU a batch."""
        return self.cpu * 1000 / self.batches


Beside = Callable[[Mapping[str, str]], AbstractAsyncContextManager[None]]
"""What runs beside a contender, given the environment of its processes."""


async def run(
    stage: Stage, contender: Contender, course: Course, beside: Beside | None = None
) -> Lap:
    """`beside` is entered just before the contender begins. Raises `BenchError` when the rows are
    not the right ones, or it gets stuck.
    """
    await stage.copy("race", course.template)
    wanted = stage.on_database("race").model_copy(update={"partitions": contender.partitions})
    async with stage.vhost("race", wanted) as settings:
        variables = {**environment_of(settings), **contender.variables}
        connection = await stage.connect("race")
        try:
            before = await _committed(connection)
            with Processes(
                contender.commands(), variables, LOGS / f"{contender.name}.log"
            ) as processes:

                async def publish(batches: Sequence[Batch]) -> None:
                    if contender.publisher is None:
                        await broker.publish(settings, batches)
                    else:
                        await asyncio.to_thread(publish_as, contender.publisher, batches, variables)

                await _consumed_by_all(settings, contender, processes, connection)
                await publish(course.warm_up)
                warm = before + len(course.warm_up)
                await _reach(connection, warm, processes)
                await asyncio.sleep(0.2)  # for the last acks
                processes.hold()
                await publish(course.timed if course.published is None else course.published)
                async with nullcontext() if beside is None else beside(variables):
                    await connection.execute(_RENEW)
                    used = processes.usage()
                    released = time.time()
                    started = time.perf_counter()
                    processes.release()
                    await _reach(connection, warm + len(course.timed), processes)
                    seconds = time.perf_counter() - started
                await asyncio.sleep(0.1)  # what follows the last commit is work too
                usage = processes.usage()
            left = sum([await broker.waiting(settings, queue) for queue in contender.queues])
            if left:
                raise BenchError(f"{contender.name} left {left} messages unacknowledged")
            await rows.check(connection, course.expected, f"{contender.name} on {course.name}")
            received = await _received(connection, released)
        finally:
            await connection.close()
    return Lap(seconds, len(course.timed), usage.cpu - used.cpu, usage.memory, received)


_RENEW: Final = "UPDATE ingest_leases SET until = clock_timestamp() + interval '5 s'"
"""Otherwise processes that were held for longer would share the partitions out again."""
_SHARES: Final = (
    "SELECT count(*) FROM ingest_leases WHERE queue <> $1 AND until > now()"
    " GROUP BY worker ORDER BY 1"
)


async def _consumed_by_all(
    settings: Settings, contender: Contender, processes: Processes, connection: asyncpg.Connection
) -> None:
    """Waits until each process would get its share: one that starts later is not warm in time."""
    began = time.monotonic()
    low, more = divmod(contender.partitions, contender.consumers or 1)
    even = [low] * (contender.consumers - more) + [low + 1] * more

    async def is_ready() -> bool:
        if await broker.consumers(settings, contender.queue) < contender.consumers:
            return False
        if contender.partitions == 1:
            return True
        return [row[0] for row in await connection.fetch(_SHARES, contender.queue)] == even

    while not await is_ready():
        processes.check()
        if time.monotonic() - began > _STARTED_WITHIN:
            raise BenchError(
                f"{contender.name} does not consume with all of its {contender.consumers} processes"
            )
        await asyncio.sleep(_LOOK[1])


async def _received(connection: asyncpg.Connection, since: float) -> dict[UUID, float]:
    # One machine, so one clock.
    found = await connection.fetch("SELECT client_session_uuid, received_at FROM ingest_inbox")
    return {row[0]: row[1].timestamp() - since for row in found}


async def _committed(connection: asyncpg.Connection) -> int:
    count: int = await connection.fetchval("SELECT count(*) FROM ingest_inbox")
    return count


async def _reach(connection: asyncpg.Connection, count: int, processes: Processes) -> None:
    """Waits until `count` batches are committed."""
    shortest, longest = _LOOK
    first, began = await _committed(connection), time.monotonic()
    last, since = first, began
    while last < count:
        looked = time.monotonic()
        pace = (last - first) / (looked - began) if last > first else 0.0
        left = (count - last) / pace if pace else 0.0
        await asyncio.sleep(min(max(shortest, _SHARE * left), longest))
        processes.check()
        if (now := await _committed(connection)) != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > _PATIENCE:
            raise BenchError(f"stuck at {now} of {count} batches")
