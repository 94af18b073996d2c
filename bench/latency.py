"""The time from publish to result, which a viewer waits, at several loads and for single messages.

There is one worker with its relay and default settings. Messages are published at random moments at
a given rate, whether or not earlier ones are done (an open loop). They are timed from the moment at
which they were due, so that a slow worker can't hide its delay by slowing the publisher.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from bench import broker
from bench.contenders import Contender
from bench.courses import FRESH
from bench.errors import BenchError
from bench.figures import percentile, spread
from bench.processes import Processes
from bench.race import LOGS
from bench.stage import Stage, environment_of
from bench.workload import VIEWER, Batch
from schemas import amqp
from worker.settings import Settings

LOADS = (0.1, 0.5, 0.8)
"""The loads, as parts of the peak."""
_PATIENCE = 60.0
WARM_UP = 20
"""Batches."""
_ALONE_EVERY = 0.2
"""Seconds between single messages."""


class Sizes(NamedTuple):
    """How much is published in a round."""

    peak: int = 1_500
    seconds: float = 3.0
    """At each load."""
    alone: int = 10
    beside_usual: float = 4.0
    """Seconds at half of what the usual handler can do."""


class Results:
    """Notes when each result arrives."""

    def __init__(self) -> None:
        self.at: dict[UUID, float] = {}
        self._arrived = asyncio.Event()

    async def note(self, message: AbstractIncomingMessage) -> None:
        now = time.perf_counter()
        self.at[UUID(json.loads(message.body)["client_session_uuid"])] = now
        self._arrived.set()

    async def all_of(self, batches: Sequence[Batch]) -> None:
        """Waits until each has its result."""
        missing = {batch.uuid for batch in batches}
        while missing := missing - self.at.keys():
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), _PATIENCE)
            except TimeoutError:
                raise BenchError(f"{len(missing)} results never came") from None


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds."""

    load: float
    rate: float
    """Batches a second."""
    p50: float
    p90: float
    p99: float
    worst: float
    count: int


@dataclass(frozen=True, slots=True)
class Round:
    """Everything about waiting, once."""

    peak: float
    """Batches a second, from a full queue to the last result and follow-up."""
    loads: list[Latency]
    alone: Latency


def spreads(rounds: Sequence[Round]) -> dict[str, Any]:
    """What several rounds came to: the fields of `Round`, each figure as a spread."""
    return {
        "peak": spread([each.peak for each in rounds])._asdict(),
        "loads": [_spreads(load) for load in zip(*(each.loads for each in rounds), strict=True)],
        "alone": _spreads([each.alone for each in rounds]),
    }


def _spreads(rounds: Sequence[Latency]) -> dict[str, Any]:
    figures = ("rate", "p50", "p90", "p99", "worst")
    return {"load": rounds[0].load, "count": sum(each.count for each in rounds)} | {
        name: spread([getattr(each, name) for each in rounds])._asdict() for name in figures
    }


async def measure(
    stage: Stage, contender: Contender, batches: Sequence[Batch], sizes: Sizes
) -> Round:
    """One round. Takes as many of `batches` as it needs; raises `BenchError` when they run out."""
    source = iter(batches)

    def take(count: int) -> list[Batch]:
        taken = [batch for batch, _ in zip(source, range(count), strict=False)]
        if len(taken) < count:
            raise BenchError(f"latency needs {count - len(taken)} more batches than it was given")
        return taken

    async with running(stage, contender, take(WARM_UP)) as (
        settings,
        channel,
        results,
        processes,
    ):
        connection = await stage.connect("latency")
        try:
            peak = await peak_of(connection, settings, processes, results, take(sizes.peak))
        finally:
            await connection.close()
        loads = []
        for load in LOADS:
            due = moments(peak * load, sizes.seconds)
            loads.append(await _at(channel, results, take(len(due)), due, load, peak * load))
        due = [_ALONE_EVERY * number for number in range(sizes.alone)]
        alone = await _at(channel, results, take(len(due)), due, 0.0, 1 / _ALONE_EVERY)
    return Round(peak, loads, alone)


async def at_rate(
    stage: Stage, contender: Contender, batches: Sequence[Batch], rate: float, seconds: float
) -> Latency:
    """The waits at so many batches a second, for some seconds; `batches` are enough for that."""
    due = moments(rate, seconds)
    warm_up, timed = batches[:WARM_UP], batches[WARM_UP : WARM_UP + len(due)]
    async with running(stage, contender, warm_up) as (_, channel, results, _):
        return await _at(channel, results, timed, due, 0.0, rate)


@asynccontextmanager
async def running(
    stage: Stage, contender: Contender, warm_up: Sequence[Batch], world: str = FRESH
) -> AsyncIterator[tuple[Settings, AbstractChannel, Results, Processes]]:
    """A contender that has told the results of the `warm_up`, on a copy of the world."""
    await stage.copy("latency", world)
    async with (
        stage.vhost("latency", stage.on_database("latency")) as settings,
        broker.channel(settings) as channel,
        _results(channel) as results,
    ):
        variables = {**environment_of(settings), **contender.variables}
        with Processes(contender.commands(), variables, LOGS / "latency.log") as processes:
            await broker.publish(settings, warm_up)
            await results.all_of(warm_up)
            yield settings, channel, results, processes


@asynccontextmanager
async def _results(channel: AbstractChannel) -> AsyncIterator[Results]:
    results = Results()
    queue = await channel.declare_queue(amqp.results_queue(VIEWER), durable=True)
    await queue.bind(amqp.RESULTS_EXCHANGE, amqp.result_key(VIEWER))
    tag = await queue.consume(results.note, no_ack=True)
    try:
        yield results
    finally:
        await queue.cancel(tag)


async def peak_of(
    connection: asyncpg.Connection,
    settings: Settings,
    processes: Processes,
    results: Results,
    batches: Sequence[Batch],
) -> float:
    """Batches a second, from a full queue to the last result."""
    processes.hold()
    await broker.publish(settings, batches)
    started = time.perf_counter()
    processes.release()
    await results.all_of(batches)
    while await connection.fetchval("SELECT EXISTS (SELECT FROM outbox)"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # another process empties it
    return len(batches) / (time.perf_counter() - started)


def moments(rate: float, seconds: float) -> list[float]:
    """Random moments, `rate` a second on average."""
    source = random.Random(f"{seconds}")
    found = [source.expovariate(rate)]
    while found[-1] < seconds:
        found.append(found[-1] + source.expovariate(rate))
    return found


async def _at(
    channel: AbstractChannel,
    results: Results,
    batches: Sequence[Batch],
    due: Sequence[float],
    load: float,
    rate: float,
) -> Latency:
    told = await waits(channel, results, batches, due)
    p50, p90, p99 = (percentile(told, percent) for percent in (50, 90, 99))
    return Latency(load, rate, p50, p90, p99, told[-1], len(told))


async def waits(
    channel: AbstractChannel,
    results: Results,
    batches: Sequence[Batch],
    due: Sequence[float],
) -> list[float]:
    """How many milliseconds each batch waits for its result, sorted. `due` says when each is
    published, in seconds from now.
    """
    exchange = await channel.get_exchange(amqp.INGEST_EXCHANGE, ensure=False)
    publishing = set()
    started = time.perf_counter()
    for batch, moment in zip(batches, due, strict=True):
        await asyncio.sleep(max(0.0, started + moment - time.perf_counter()))
        task = asyncio.create_task(
            exchange.publish(broker.message(batch), amqp.attempts_key(VIEWER))
        )
        publishing.add(task)
    await asyncio.gather(*publishing)
    await results.all_of(batches)
    return sorted(
        1000 * (results.at[batch.uuid] - started - moment)
        for batch, moment in zip(batches, due, strict=True)
    )
