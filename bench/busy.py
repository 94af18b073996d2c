"""What one busy user, or more workers, cost everybody: each figure is a ratio within one run.

*late*: one user's batches, each hundred in the order odd, then even, against the same in order.
*hot_user*: that user's backlog among other users', with several workers against one. The same where
each user has a viewer, and the queue has partitions.
*even*: an even load with several workers. *flood*: how long another user waits while a thousand
attempts on one question, again and again, arrive newest first. *rescore*: a question that was
answered ten times as often. *shared_bank*: questions that all users share against each user's own,
and a late answer to a bank with many learners against one with few.
"""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, Final, NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from bench import broker, courses, race, reference, rows
from bench.contenders import ours
from bench.errors import BenchError
from bench.figures import percentile
from bench.processes import Processes
from bench.race import LOGS, Course, Lap
from bench.stage import Stage, environment_of
from bench.workload import (
    VIEWER,
    Batch,
    Shape,
    batches,
    correct_choice,
    same_question,
    sessions_of,
)
from worker.domain.dispositions import Ingested
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.operate.rescore import rescore
from worker.store.audit import By
from worker.store.engine import make_engine

_GROUP: Final = 50
_HUNDRED: Final = 100
_HOT: Final = 1
"""The busy user."""
_WORLD: Final = "busy"
_BANK: Final = "bank"
_FILLED_AT_ONCE: Final = 1_000
"""The attempts in each batch of the history."""
_PATIENCE: Final = 300.0


class Sizes(NamedTuple):
    """How much of each."""

    shape: Shape = Shape()
    histories: Sequence[int] = (40, 400)
    """Attempts on each question that the busy user has made before."""
    hot: int = 500
    others: int = 400
    workers: Sequence[int] = (1, 4, 8)
    even: int = 2_000
    flood: int = 160
    flood_attempts: int = 1_000
    rescored: Sequence[int] = (62, 620)
    bank: int = 1_000
    learners: Sequence[int] = (10, 1_000)
    partitions: int = 16
    rounds: int = 3
    """In turns, so that a machine whose speed drifts does not matter."""


class Busy:
    """Measures these workloads, one after another."""

    def __init__(self, stage: Stage, sizes: Sizes, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._sizes = sizes
        self._say = say
        self.workloads: Mapping[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "late": self.late,
            "hot_user": self.hot_user,
            "even": self.even,
            "flood": self.flood,
            "rescore": self.rescore,
            "shared_bank": self.shared_bank,
        }

    async def late(self) -> dict[str, Any]:
        """The throughput of late batches against that of batches in order, ingested in here."""
        found = {}
        for attempts in self._sizes.histories:
            await self._world(attempts)
            in_order = self._backlog()
            late = _odd_then_even(in_order)
            ratios = []
            for _ in range(self._sizes.rounds):
                seconds = []
                for order in (in_order, late):
                    await self._stage.copy("late", _WORLD)
                    seconds.append(await self._ingest("late", order))
                ratios.append(seconds[0] / seconds[1])
            name = (
                "late_vs_in_order"
                if attempts == self._sizes.histories[0]
                else (f"late_vs_in_order_{attempts}")
            )
            found[name] = median(ratios)
            self._say(f"{name} " + ", ".join(f"{each:.2f}" for each in ratios))
        return found

    async def hot_user(self) -> dict[str, Any]:
        """Throughput and the others' p99 with four workers against one; deferrals with the most."""
        await self._world(self._sizes.histories[0])
        hot = self._backlog()
        others = [
            batch
            for number in range(self._sizes.others)
            for batch in sessions_of(
                2 + number % (self._sizes.shape.users - 1),
                self._sizes.shape,
                1,
                seed=f"others {number}",
                day=30,
            )
        ]
        users = [_HOT] * len(hot) + [
            2 + number % (self._sizes.shape.users - 1) for number in range(len(others))
        ]
        viewers = dict(zip((batch.uuid for batch in [*hot, *others]), users, strict=True))
        mixed = _shuffled_together(hot, others)
        warm_up = batches(self._sizes.shape, 250, seed="warm", day=29)
        course = await self._course("hot_user", _WORLD, warm_up, mixed)
        laps = {}
        for workers in self._sizes.workers:
            lap = laps[workers] = await race.run(self._stage, ours(workers), course)
            self._say(
                f"hot_user, {workers} workers: {lap.throughput:.0f} batches/s, others' p99"
                f" {_p99(lap, others):.2f} s, {_deferred(workers)} deferred or split"
            )
        one, four, *_ = self._sizes.workers
        deferred = max(_deferred(workers) for workers in self._sizes.workers)
        by_user = [replace(each, viewer=f"user-{viewers[each.uuid]}") for each in mixed]
        # Any viewers will do, so that each worker gets something.
        warm_up = [replace(each, viewer=f"user-{number}") for number, each in enumerate(warm_up, 1)]
        course = await self._course("hot_user", _WORLD, warm_up, by_user)
        apart = {}
        for workers in (one, four):
            contender = ours(workers, partitions=self._sizes.partitions)
            lap = apart[workers] = await race.run(self._stage, contender, course)
            self._say(
                f"hot_user, {workers} workers, {self._sizes.partitions} partitions:"
                f" {lap.throughput:.0f} batches/s, others' p99 {_p99(lap, others):.2f} s"
            )
        return {
            "hot_user": {
                "throughput": laps[four].throughput / laps[one].throughput,
                "others_p99": _p99(laps[four], others) / _p99(laps[one], others),
                "deferred": deferred,
                "partitioned_throughput": apart[four].throughput / apart[one].throughput,
                "partitioned_others_p99": _p99(apart[four], others) / _p99(apart[one], others),
            }
        }

    async def even(self) -> dict[str, Any]:
        """The throughput of four workers against one, and of eight against two."""
        everything = batches(self._sizes.shape, 250 + self._sizes.even, seed="race", day=30)
        course = await self._course("even", courses.FRESH, everything[:250], everything[250:])
        one, four, eight = self._sizes.workers
        pace = {}
        for workers in (one, 2, four, eight):
            pace[workers] = (await race.run(self._stage, ours(workers), course)).throughput
            self._say(f"even, {workers} workers: {pace[workers]:.0f} batches/s")
        return {
            "even": {"four_vs_one": pace[four] / pace[one]},
            "eight_vs_two": pace[eight] / pace[2],
        }

    async def flood(self) -> dict[str, Any]:
        """The longest wait of another user during a flood, in the waits of batches alone."""
        sizes = self._sizes
        flood = [
            same_question(1, sizes.flood_attempts, day=day, seed="flood")
            for day in range(sizes.flood, 0, -1)
        ]
        calm = iter(sessions_of(2, sizes.shape, 2_000, seed="calm", day=200))
        await self._stage.copy("flood", courses.FRESH)
        async with self._stage.vhost("flood", self._stage.on_database("flood")) as settings:
            connection = await self._stage.connect("flood")
            contender = ours(1)
            variables = {**environment_of(settings), **contender.variables}

            async def committed(batch: Batch) -> bool:
                sql = "SELECT EXISTS (SELECT FROM ingest_inbox WHERE client_session_uuid = $1)"
                return bool(await connection.fetchval(sql, batch.uuid))

            async def wait_of(batch: Batch) -> float:
                started = time.perf_counter()
                await broker.publish(settings, [batch])
                while not await committed(batch):
                    if time.perf_counter() - started > _PATIENCE:
                        raise BenchError(f"batch {batch.uuid} was not ingested in the flood")
                    await asyncio.sleep(0.002)
                return time.perf_counter() - started

            try:
                with Processes(contender.commands(), variables, LOGS / "flood.log"):
                    alone = [await wait_of(next(calm)) for _ in range(12)]
                    await broker.publish(settings, flood)
                    waits = [await wait_of(next(calm))]
                    while not await committed(flood[-1]):
                        waits.append(await wait_of(next(calm)))
            finally:
                await connection.close()
        self._say(f"flood: {max(waits):.2f} s at most, alone {median(alone) * 1000:.1f} ms")
        return {"flood": {"wait": max(waits) / median(alone[2:])}}

    async def rescore(self) -> dict[str, Any]:
        """The time of a rescore of a question with many attempts, against one with few."""
        seconds = []
        for attempts in self._sizes.rescored:
            await self._stage.copy("rescore", courses.FRESH)
            log = [same_question(1, 1, day=day, seed="rescored") for day in range(attempts)]
            await reference.ingest(self._stage, "rescore", log)
            engine = self._engine("rescore")
            try:
                other = correct_choice(1) % 4 + 1
                await rescore(engine, 1, other, Policy(), By("bench", "warm"))
                started = time.perf_counter()
                await rescore(engine, 1, correct_choice(1), Policy(), By("bench", "timed"))
                seconds.append(time.perf_counter() - started)
            finally:
                await engine.dispose()
            self._say(f"rescore of {attempts}: {seconds[-1]:.3f} s")
        few, many = self._sizes.rescored
        return {f"rescore_{many}_vs_{few}": seconds[1] / seconds[0]}

    async def shared_bank(self) -> dict[str, Any]:
        """The throughput on a shared bank against that on owned questions, and the time of late
        answers with many learners against few.
        """
        shape, count = self._sizes.shape, self._sizes.bank
        owned, shared = (
            [
                (user, session)
                for number in range(count)
                for user in [1 + number * 7 % shape.users]
                for session in sessions_of(user, of, 1, seed=f"bank {number}", day=30)
            ]
            for of in (shape, shape._replace(is_shared=True))
        )
        await self._bank(max(shape.users, *self._sizes.learners))
        ratios = []
        for _ in range(self._sizes.rounds):
            seconds = []
            for world, sessions in ((courses.FRESH, owned), (_BANK, shared)):
                await self._stage.copy("bank_race", world)
                seconds.append(await self._ingest_of_users("bank_race", sessions))
            ratios.append(seconds[0] / seconds[1])
        self._say("shared_bank " + ", ".join(f"{each:.2f}" for each in ratios))
        late = []
        for learners in self._sizes.learners:
            late.append(await self._late_on_bank(learners))
            self._say(f"shared_bank, late with {learners} learners: {late[-1]:.3f} s")
        return {
            "shared_bank": median(ratios),
            "shared_bank_late": late[1] / late[0],
        }

    async def _late_on_bank(self, learners: int) -> float:
        """The time of one learner's late batches, where all have answered the whole bank."""
        shape = self._sizes.shape._replace(is_shared=True)
        whole = shape._replace(
            attempts=shape.questions_per_user, topics_per_batch=shape.topics_per_user
        )
        history = [
            (user, session)
            for user in range(1, learners + 1)
            for session in sessions_of(user, whole, 1, seed=f"learner {user}", day=60)
        ]
        late = [
            (1, session) for session in sessions_of(1, shape, self._sizes.hot, seed="late", day=10)
        ]
        await self._stage.copy("bank_late", _BANK)
        await self._ingest_of_users("bank_late", history)
        await self._stage.settle("bank_late")
        seconds = []
        for _ in range(self._sizes.rounds):
            await self._stage.copy("bank_again", "bank_late")
            seconds.append(await self._ingest_of_users("bank_again", late))
        return median(seconds)

    async def _bank(self, learners: int) -> None:
        """The fresh world without owners, where the viewer may write for so many learners."""
        await self._stage.copy(_BANK, courses.FRESH)
        connection = await self._stage.connect(_BANK)
        try:
            await connection.execute("UPDATE study_questions SET user_id = NULL")
            await connection.execute(
                "INSERT INTO viewer_grants (viewer, user_id) SELECT $1, generate_series(1, $2)",
                VIEWER,
                learners,
            )
        finally:
            await connection.close()
        await self._stage.settle(_BANK)

    async def _ingest_of_users(self, name: str, sessions: Sequence[tuple[int, Batch]]) -> float:
        """The time it takes to ingest the sessions, each with a header that names its user."""
        ready = [reference.incoming(batch, user) for user, batch in sessions]
        engine = self._engine(name)
        ingest = Ingest(engine, Policy())
        try:
            started = time.perf_counter()
            for at in range(0, len(ready), _GROUP):
                for done in await ingest(ready[at : at + _GROUP]):
                    if not isinstance(done, Ingested):
                        raise BenchError(f"a session of {name} was not ingested: {done}")
            return time.perf_counter() - started
        finally:
            await engine.dispose()

    async def _world(self, attempts: int) -> None:
        """The fresh world, where the busy user has a history."""
        own = self._sizes.shape.questions_per_user
        shape = self._sizes.shape._replace(
            attempts=_FILLED_AT_ONCE, topics_per_batch=self._sizes.shape.topics_per_user
        )
        count = max(1, own * attempts // _FILLED_AT_ONCE)
        await self._stage.copy(_WORLD, courses.FRESH)
        history = sessions_of(_HOT, shape, count, seed="history", day=0)
        await reference.ingest(self._stage, _WORLD, history)
        await self._stage.settle(_WORLD)

    def _backlog(self) -> list[Batch]:
        return sessions_of(_HOT, self._sizes.shape, self._sizes.hot, seed="hot", day=30)

    async def _course(
        self, name: str, world: str, warm_up: Sequence[Batch], timed: Sequence[Batch]
    ) -> Course:
        await self._stage.copy("reference", world)
        await reference.ingest(self._stage, "reference", [*warm_up, *timed])
        connection = await self._stage.connect("reference")
        try:
            expected = await rows.digests(connection)
        finally:
            await connection.close()
        return Course(name, world, warm_up, timed, expected)

    async def _ingest(self, name: str, everything: Sequence[Batch]) -> float:
        engine = self._engine(name)
        ingest = Ingest(engine, Policy())
        groups = [everything[at : at + _GROUP] for at in range(0, len(everything), _GROUP)]
        try:
            ready = [reference.incoming_all(group) for group in groups]
            started = time.perf_counter()
            for group in ready:
                await ingest(group)
            return time.perf_counter() - started
        finally:
            await engine.dispose()

    def _engine(self, name: str) -> AsyncEngine:
        return make_engine(self._stage.on_database(name), connections=1, name="bench")


def _odd_then_even(in_order: Sequence[Batch]) -> list[Batch]:
    return [
        batch
        for start in range(0, len(in_order), _HUNDRED)
        for offset in (1, 0)
        for batch in in_order[start + offset : start + _HUNDRED : 2]
    ]


def _shuffled_together(one: Sequence[Batch], other: Sequence[Batch]) -> list[Batch]:
    """Each in its own order, in random turns."""
    source = random.Random("together")
    turns = [True] * len(one) + [False] * len(other)
    source.shuffle(turns)
    first, second = iter(one), iter(other)
    return [next(first) if turn else next(second) for turn in turns]


def _p99(lap: Lap, batches: Sequence[Batch]) -> float:
    return percentile(sorted(lap.received[batch.uuid] for batch in batches), 99)


def _deferred(workers: int) -> int:
    """The deliveries that were deferred, and the groups that were split, by the worker's log."""
    count = 0
    for line in (LOGS / f"{ours(workers).name}.log").read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        count += entry.get("event") == "group.split" or entry.get("disposition") == "deferred"
    return count
