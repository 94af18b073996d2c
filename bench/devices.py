"""What it costs that devices agree: each figure is a ratio within one run.

*asking*: how long a device waits for everything, how long until another device's commit is here,
and what a flood of requests does to the results of batches, all at half load or beside it.
*two_viewers*: the throughput where each learner has another device that is nudged. *old_names*: the
throughput beside a rebuild of everything, which is stored under the name of an older scheduler.
"""

import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple
from uuid import uuid4

import aio_pika
import asyncpg
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from bench import courses, growth, latency, race, reference
from bench.contenders import OURS, ours
from bench.errors import BenchError
from bench.figures import percentile
from bench.processes import Processes
from bench.race import LOGS, Course
from bench.stage import Stage, environment_of
from bench.workload import VIEWER, Batch, Shape, batches, earlier, sessions_of
from schemas import amqp
from study_viewer import AttemptBatch, Outbox, Relay, RelaySettings
from worker.settings import Settings

_LAPS: Final = 7
_WORLD: Final = "devices"
_LEARNER, _OWNER = 1, 2
"""The user with many questions, and the one whose devices follow each other."""
_DEVICE, _FLOODER, _PHONE, _TABLET = "device", "flooder", "phone", "tablet"
_UNREAD: Final = "ignored.v1.flooder"
"""A routing key that leads to no queue."""
_ASKED_EVERY: Final = 0.5
_SESSION_EVERY: Final = 0.25
_SINGLE_EVERY: Final = 0.2
"""Seconds."""
_OLD_NAME: Final = "fsrs 0"
_SETTLES: Final = 1.5
"""Seconds until a flood has begun, and until what it left behind is answered or gone."""
_PATIENCE: Final = 60.0


class Sizes(NamedTuple):
    """How much of each."""

    shape: Shape = Shape()
    large: Shape = Shape(users=80, questions=100_000)
    """With more questions for each user."""
    known: int = 1_205
    """Questions that a device asks for."""
    peak: int = 1_500
    seconds: float = 8.0
    """At half load."""
    flood: int = 1_000
    """Requests a second."""
    rounds: int = 3
    sessions: int = 40
    """On one device, which the other one follows."""
    raced: int = 2_000
    attempts: int = 1_000_000
    """In the log that is rebuilt."""


class Devices:
    """Measures these workloads, one after another."""

    def __init__(self, stage: Stage, sizes: Sizes, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._sizes = sizes
        self._say = say
        self.workloads: Mapping[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "asking": self.asking,
            "two_viewers": self.two_viewers,
            "old_names": self.old_names,
        }

    async def asking(self) -> dict[str, Any]:
        """The waits of devices and of batches, with and without a flood of requests."""
        sizes = self._sizes
        await self._large_world()
        source = self._others()

        def take(count: int) -> list[Batch]:
            return [next(source) for _ in range(count)]

        contender = ours(1, relay=True)
        warm_up = take(latency.WARM_UP)
        found: dict[str, list[float]] = {name: [] for name in ("everything", "flood", "calm")}
        async with latency.running(self._stage, contender, warm_up, _WORLD) as (
            settings,
            channel,
            results,
            processes,
        ):
            await _queues(channel, _DEVICE, _FLOODER, _PHONE, _TABLET)
            fresh = await self._fresh(settings)
            connection = await self._stage.connect("latency")
            try:
                # The publisher of a flood needs the same cores, whether or not anybody reads it.
                async with self._flood(settings, _UNREAD):
                    peak = await latency.peak_of(
                        connection, settings, processes, results, take(sizes.peak)
                    )
            finally:
                await connection.close()
            due = latency.moments(peak / 2, sizes.seconds)

            async def waits() -> list[float]:
                before, began = processes.usage().cpu, time.monotonic()
                found = await latency.waits(channel, results, take(len(due)), due)
                used = (processes.usage().cpu - before) / (time.monotonic() - began)
                self._say(f"asking: the worker was busy for {used:.0%} of the time")
                return found

            single = [_SINGLE_EVERY * number for number in range(sizes.sessions)]
            async with _asking(channel) as asked:
                own = await latency.waits(channel, results, take(len(single)), single)
            alone = percentile(sorted(asked), 95) / percentile(own, 95)
            self._say(
                f"asking alone: everything p95 {percentile(sorted(asked), 95):.1f} ms, a result"
                f" {percentile(own, 95):.1f} ms"
            )
            for _ in range(sizes.rounds):
                async with _asking(channel) as asked:
                    own = await waits()
                everything = sorted(asked)
                async with self._flood(settings, _UNREAD):
                    unread = await waits()
                async with self._flood(settings, amqp.progress_request_key(_FLOODER)):
                    flooded = await waits()
                found["everything"].append(percentile(everything, 95) / percentile(own, 95))
                found["flood"].append(percentile(flooded, 99) / percentile(unread, 99))
                found["calm"].append(percentile(flooded, 99) / percentile(own, 99))
                self._say(
                    f"asking at {peak / 2:.0f} batches/s: everything p50"
                    f" {percentile(everything, 50):.1f} p95 {percentile(everything, 95):.1f} ms"
                    f" of {len(everything)}, a result p50 {percentile(own, 50):.1f} p95"
                    f" {percentile(own, 95):.1f} p99 {percentile(own, 99):.1f} ms, p99 beside a"
                    f" flood {percentile(flooded, 99):.1f} ms, and one that nobody reads"
                    f" {percentile(unread, 99):.1f} ms"
                )
        return {
            "asking": {
                "everything_vs_result": median(found["everything"]),
                "everything_vs_result_alone": alone,
                "fresh_vs_result": fresh,
                "flood_p99": median(found["flood"]),
                "flood_p99_vs_calm": median(found["calm"]),
            }
        }

    async def two_viewers(self) -> dict[str, Any]:
        """The throughput with a second device for each learner, which asks, against one that
        does not.
        """
        sizes = self._sizes
        everything = batches(sizes.shape, 250 + sizes.raced, seed="race", day=30)
        course = await self._course("silent", everything, _GRANT, 250)
        await self._stage.copy("nudged", "silent")
        connection = await self._stage.connect("nudged")
        try:
            await connection.execute("UPDATE viewer_grants SET asked_at = now()")
        finally:
            await connection.close()
        paces, cpus = [], []
        for number in range(_LAPS if sizes.rounds > 1 else 1):
            order = ("silent", "nudged") if number % 2 else ("nudged", "silent")
            laps = {
                name: await race.run(
                    self._stage, ours(1), replace(course, template=name), _with_queue
                )
                for name in order
            }
            nudged, silent = laps["nudged"], laps["silent"]
            paces.append(nudged.throughput / silent.throughput)
            cpus.append(nudged.cpu_ms / silent.cpu_ms)
            self._say(
                f"two_viewers: {nudged.throughput:.0f} batches/s ({nudged.cpu_ms:.3f} ms CPU),"
                f" without nudges {silent.throughput:.0f} ({silent.cpu_ms:.3f})"
            )
        return {"two_viewers": median(paces), "two_viewers_cpu": median(cpus)}

    async def old_names(self) -> dict[str, Any]:
        """The throughput beside a rebuild of a log whose progress has the name of an older
        scheduler, against that without the rebuild, and with the name of today.
        """
        sizes = self._sizes
        everything = batches(sizes.shape, 250 + sizes.raced // 2, seed="race", day=30)
        course = await self._course("new_names", everything, None, 250)
        await self._old_world("new_names", "old_names")
        old = replace(course, template="old_names")
        found, names = [], []
        for _ in range(sizes.rounds):
            today = await race.run(self._stage, ours(1), course)
            alone = await race.run(self._stage, ours(1), old)
            beside = await race.run(self._stage, ours(1), old, self._rebuilding)
            found.append(beside.throughput / alone.throughput)
            names.append(beside.throughput / today.throughput)
            self._say(
                f"old_names: {beside.throughput:.0f} batches/s beside the rebuild, alone"
                f" {alone.throughput:.0f}, and {today.throughput:.0f} with the name of today"
            )
        return {"old_names": median(found), "old_names_vs_today": median(names)}

    async def _large_world(self) -> None:
        """The learner has answered as many questions as a device will ask for."""
        shape, known = self._sizes.large, self._sizes.known
        await self._stage.world(_WORLD, shape)
        own = shape.questions_per_user
        history = earlier(shape._replace(users=_LEARNER, questions=own), known / own)
        await reference.ingest(self._stage, _WORLD, history)
        connection = await self._stage.connect(_WORLD)
        try:
            await connection.executemany(
                "INSERT INTO viewer_grants (viewer, user_id) VALUES ($1, $2)",
                [(_DEVICE, _LEARNER), (_FLOODER, _LEARNER), (_PHONE, _OWNER), (_TABLET, _OWNER)],
            )
        finally:
            await connection.close()
        await self._stage.settle(_WORLD)

    def _others(self) -> Iterator[Batch]:
        """Batches of all users but those two."""
        shape = self._sizes.large
        number = 0
        while True:
            user = 3 + number % (shape.users - 2)
            yield from sessions_of(user, shape, 1, seed=f"others {number}", day=30)
            number += 1

    async def _fresh(self, settings: Settings) -> float:
        """The time until another device has a session, against that until its result is here."""
        url = settings.amqp_url.get_secret_value()
        sessions = sessions_of(
            _OWNER, self._sizes.large, self._sizes.sessions, seed="phone", day=30
        )
        fresh, settled = [], []
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            phone, tablet = (
                stack.enter_context(Outbox(Path(folder) / name)) for name in (_PHONE, _TABLET)
            )
            mine = RelaySettings(declare_results_queue=True)
            async with (
                Relay(phone, url, _PHONE, mine, users=[_OWNER]) as here,
                Relay(tablet, url, _TABLET, mine, users=[_OWNER]) as there,
            ):
                await asyncio.gather(here.until_current(), there.until_current())
                for session in sessions:
                    before = tablet.progress.cursor(_OWNER)
                    started = _record(phone, session)
                    here.wake()

                    async def result(session: Batch = session) -> float:
                        await here.until_settled(session.uuid)
                        return time.perf_counter()

                    async def state(before: str | None = before) -> float:
                        await there.until(lambda: tablet.progress.cursor(_OWNER) != before)
                        return time.perf_counter()

                    async with asyncio.timeout(_PATIENCE):
                        at = await asyncio.gather(result(), state())
                    settled.append(1000 * (at[0] - started))
                    fresh.append(1000 * (at[1] - started))
                    await asyncio.sleep(_SESSION_EVERY)
        self._say(
            f"asking: from commit to the other device p50 {median(fresh):.1f} ms, to the result"
            f" {median(settled):.1f} ms"
        )
        return median(fresh) / median(settled)

    @asynccontextmanager
    async def _flood(self, settings: Settings, key: str) -> AsyncIterator[None]:
        """A flood that has begun. Afterwards nothing of it is left."""
        body = json.dumps({"user_id": str(_LEARNER), "cursor": None})
        url = settings.amqp_url.get_secret_value()
        command = [_python(), "-m", "bench.flood", url, key, str(self._sizes.flood), body]
        with Processes([command], {}, LOGS / "flood_of_requests.log") as flood:
            await asyncio.sleep(_SETTLES)
            yield
            flood.check()
        await asyncio.sleep(_SETTLES)

    async def _course(
        self, name: str, everything: Sequence[Batch], prepare: str | None, warm_up: int
    ) -> Course:
        """A race on a world of its own. Its progress is not compared."""
        await self._stage.copy(name, courses.FRESH)
        connection = await self._stage.connect(name)
        try:
            if prepare is not None:
                await connection.execute(prepare)
        finally:
            await connection.close()
        await self._stage.settle(name)
        return Course(name, name, everything[:warm_up], everything[warm_up:], {})

    async def _old_world(self, name: str, old: str) -> None:
        """A log with its progress, and a copy where that has an older name."""
        connection = await self._stage.connect(name)
        shape = self._sizes.shape
        try:
            await connection.execute(
                growth.FILL,
                self._sizes.attempts // 20,
                shape.questions_per_user,
                shape.users,
                timeout=None,
            )
        finally:
            await connection.close()
        await self._stage.settle(name)
        variables = environment_of(self._stage.on_database(name))
        with Processes([(OURS, "rebuild", "--json")], variables, LOGS / "old_names.log") as filling:
            while not filling.are_over():  # noqa: ASYNC110  # it runs beside this one
                await asyncio.sleep(0.1)
            if filling.failed():
                raise BenchError("the rebuild that makes the progress failed: see old_names.log")
        await self._stage.settle(name)
        await self._stage.copy(old, name)
        connection = await self._stage.connect(old)
        try:
            await connection.execute(
                "UPDATE study_question_progress SET scheduler = $1", _OLD_NAME, timeout=None
            )
        finally:
            await connection.close()
        await self._stage.settle(old)

    @asynccontextmanager
    async def _rebuilding(self, variables: Mapping[str, str]) -> AsyncIterator[None]:
        """A rebuild that has begun, and is not over at the end."""
        connection = await asyncpg.connect(variables["INGEST_DATABASE_URL"])
        command = [(OURS, "rebuild", "--json")]
        try:
            with Processes(command, variables, LOGS / "rebuilding.log") as rebuild:
                while not await connection.fetchval(_BEGUN, _OLD_NAME):
                    rebuild.check()
                    await asyncio.sleep(0.05)
                yield
                left = await connection.fetchval(_LEFT, _OLD_NAME)
                self._say(f"old_names: {left} rows were left to rebuild")
        finally:
            await connection.close()


_GRANT: Final = (
    "INSERT INTO viewer_grants (viewer, user_id)"
    f" SELECT viewer, user_id FROM (VALUES ('{VIEWER}'), ('{_TABLET}')) AS device (viewer),"
    " (SELECT DISTINCT user_id FROM study_questions) AS learner"
)
_BEGUN: Final = "SELECT EXISTS (SELECT FROM study_question_progress WHERE scheduler <> $1)"
_LEFT: Final = "SELECT count(*) FROM study_question_progress WHERE scheduler = $1"


async def _queues(channel: AbstractChannel, *viewers: str) -> None:
    """The queues of progress, and of results, as `viewer add` makes them."""
    for viewer in viewers:
        for name, key in (
            (amqp.progress_queue(viewer), amqp.progress_key(viewer)),
            (amqp.results_queue(viewer), amqp.result_key(viewer)),
        ):
            queue = await channel.declare_queue(name, durable=True)
            await queue.bind(amqp.RESULTS_EXCHANGE, key)


@asynccontextmanager
async def _with_queue(variables: Mapping[str, str]) -> AsyncIterator[None]:
    """The queue of the second device, which is away."""
    async with await aio_pika.connect(variables["INGEST_AMQP_URL"]) as connection:
        await _queues(await connection.channel(), _TABLET)
        yield


@asynccontextmanager
async def _asking(channel: AbstractChannel) -> AsyncIterator[list[float]]:
    """A device that asks for everything, again and again. The list gets the milliseconds from each
    request to its last page.
    """
    asked: dict[str, float] = {}
    waits: list[float] = []

    async def take(message: AbstractIncomingMessage) -> None:
        sent_at = asked.get(message.correlation_id or "")  # none of an earlier round
        if sent_at is not None and b'"next":"nothing"' in message.body:
            waits.append(1000 * (time.perf_counter() - sent_at))

    async def ask() -> None:
        exchange = await channel.get_exchange(amqp.INGEST_EXCHANGE, ensure=False)
        body = json.dumps({"user_id": str(_LEARNER), "cursor": None}).encode()
        while True:
            name = str(uuid4())
            message = Message(
                body,
                content_type=amqp.CONTENT_TYPE,
                delivery_mode=DeliveryMode.NOT_PERSISTENT,
                message_id=name,
                type=amqp.PROGRESS_REQUEST_TYPE,
            )
            asked[name] = time.perf_counter()
            await exchange.publish(message, amqp.progress_request_key(_DEVICE))
            await asyncio.sleep(_ASKED_EVERY)

    queue = await channel.get_queue(amqp.progress_queue(_DEVICE))
    tag = await queue.consume(take, no_ack=True)
    asking = asyncio.create_task(ask())
    try:
        yield waits
        async with asyncio.timeout(_PATIENCE):
            while not waits:  # noqa: ASYNC110  # one answer at least
                await asyncio.sleep(0.01)
    finally:
        asking.cancel()
        await asyncio.wait([asking])
        await queue.cancel(tag)


def _record(outbox: Outbox, session: Batch) -> float:
    """Records the session in a transaction as a viewer would. Returns when that was committed."""
    batch = AttemptBatch.model_validate_json(session.body)
    with closing(sqlite3.connect(outbox.path)) as connection, connection:
        outbox.record(connection, batch)
    return time.perf_counter()


def _python() -> str:
    return str(Path(OURS).with_name("python"))
