"""How the cost grows with the batch, the tables, the history and the backlog. Only with `--full`.

The ingest step is timed in this process if only its cost is needed. Memory, rebuild and relay are
measured with the real commands.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final, NamedTuple

from bench import broker, reference
from bench.contenders import OURS, ours
from bench.errors import BenchError
from bench.processes import Processes
from bench.race import LOGS
from bench.stage import Stage, environment_of
from bench.workload import Batch, Shape, batches, same_question
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.store.engine import make_engine

GROUP: Final = 50
_LATE_HISTORY: Final = 1_000
_LATE_ROUNDS: Final = 30
_RUNS_IN_A_POINT: Final = 5
_SAMPLE_EVERY: Final = 0.25
_PATIENCE: Final = 600.0


class Sizes(NamedTuple):
    """How far the curves go."""

    shape: Shape = Shape()
    attempts_in_a_batch: Sequence[int] = (1, 5, 20, 100, 300, 1_000)
    attempts_in_a_point: int = 20_000
    """Ingested for each point of that curve."""
    rows_in_the_table: Sequence[int] = (10_000, 100_000, 1_000_000, 5_000_000)
    batches_in_a_point: int = 400
    rebuilt: int = 1_000_000
    """Attempts in the log that is rebuilt; one of `rows_in_the_table`."""
    relayed: int = 20_000
    backlog: int = 1_000_000
    watched: float = 45.0
    """Seconds for which a worker is watched at its backlog."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes resident, of all processes of a command."""

    first: float
    """When it had got going."""
    last: float
    most: float


class Growth:
    """Measures the curves, one after another."""

    def __init__(self, stage: Stage, sizes: Sizes, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._sizes = sizes
        self._say = say

    async def measure(self) -> dict[str, Any]:
        """All of them; the worlds of `courses` are there."""
        curves: dict[str, Any] = {}
        for name, curve in (
            ("by_batch", self.by_batch),
            ("late", self.late),
            ("relay", self.relay),
            ("by_rows", self.by_rows),
            ("backlog", self.backlog),
        ):
            self._say(name)
            curves[name] = await curve()
        return curves

    async def by_batch(self) -> list[dict[str, float]]:
        """Milliseconds an attempt, as batches grow from 1 to 1,000 attempts."""
        found = []
        for attempts in self._sizes.attempts_in_a_batch:
            await self._stage.copy("growth", "fresh")
            shape = self._sizes.shape._replace(attempts=attempts)
            count = max(4, min(1_000, self._sizes.attempts_in_a_point // attempts))
            group = max(1, min(GROUP, count // 4))
            seconds, cpu = await self._ingest(batches(shape, count, seed="size", day=30), group)
            found.append(
                {
                    "attempts": attempts,
                    "us_per_attempt": seconds * 1e6 / (count * attempts),
                    "cpu_us_per_attempt": cpu * 1e6 / (count * attempts),
                }
            )
        return found

    async def by_rows(self) -> dict[str, Any]:
        """Milliseconds a batch, as the table of attempts grows; and a rebuild on the way."""
        await self._stage.copy("growth", "fresh")
        found, rebuilt = [], {}
        for number, rows in enumerate(self._sizes.rows_in_the_table):
            await self._fill(rows)
            count = self._sizes.batches_in_a_point
            runs = []
            for run in range(_RUNS_IN_A_POINT):
                day = 31 + number * _RUNS_IN_A_POINT + run
                later = batches(self._sizes.shape, count, seed=f"rows {rows} {run}", day=day)
                runs.append(await self._ingest(later, GROUP))
            seconds, cpu = (median(each) for each in zip(*runs, strict=True))
            found.append(
                {
                    "rows": rows,
                    "ms_per_batch": seconds * 1e3 / count,
                    "cpu_ms_per_batch": cpu * 1e3 / count,
                }
            )
            if rows == self._sizes.rebuilt:
                rebuilt = await self._rebuild()
        return {"points": found, "rebuild": rebuilt}

    async def late(self) -> dict[str, float]:
        """Milliseconds that a batch costs more when its question has 1,000 later attempts."""
        await self._stage.copy("growth", "fresh")
        history = same_question(1, _LATE_HISTORY, day=40)
        engine = make_engine(self._stage.on_database("growth"), connections=1, name="bench")
        ingest = Ingest(engine, Policy())
        late: list[float] = []
        prompt: list[float] = []
        try:
            await ingest([reference.incoming(history)])
            for number in range(_LATE_ROUNDS):
                for waits, day in ((late, 10), (prompt, 50 + number)):
                    batch = same_question(1, 1, day=day, seed=f"{number}")
                    started = time.perf_counter()
                    await ingest([reference.incoming(batch)])
                    waits.append(1e3 * (time.perf_counter() - started))
        finally:
            await engine.dispose()
        return {
            "late_ms": median(late),
            "prompt_ms": median(prompt),
            "more_ms": median(late) - median(prompt),
        }

    async def relay(self) -> dict[str, float]:
        """Messages a second that one `study-ingest relay` confirms and forgets."""
        await self._stage.copy("growth", "fresh")
        connection = await self._stage.connect("growth")
        try:
            await connection.execute(
                "INSERT INTO outbox (message_id, exchange, routing_key, type, headers, body)"
                " SELECT gen_random_uuid(), 'study.followups', 'explanation.requested',"
                " 'study.explanation_requested.v1', '{}',"
                " json_build_object('user_id', n, 'question_id', n, 'topic_id', 1,"
                " 'quiz_session_id', gen_random_uuid(), 'outcome', 'wrong')"
                f" FROM generate_series(1, {self._sizes.relayed}) AS n"
            )
            async with self._stage.vhost("growth", self._stage.on_database("growth")) as settings:
                command = [(OURS, "relay")]
                with Processes(command, environment_of(settings), LOGS / "relay.log") as processes:

                    async def left() -> int:
                        processes.check()
                        count: int = await connection.fetchval("SELECT count(*) FROM outbox")
                        return count

                    while (first := await left()) == self._sizes.relayed:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    started, used = time.perf_counter(), processes.usage()
                    while await left():  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    seconds = time.perf_counter() - started
                    cpu = processes.usage().cpu - used.cpu
        finally:
            await connection.close()
        return {"messages_per_second": first / seconds, "cpu_us_per_message": cpu * 1e6 / first}

    async def backlog(self) -> dict[str, Any]:
        """What a worker holds while a million messages wait."""
        shape = self._sizes.shape._replace(attempts=1, topics_per_batch=1)
        await self._stage.copy("growth", "fresh")
        async with self._stage.vhost("growth", self._stage.on_database("growth")) as settings:
            left = self._sizes.backlog
            part = 50_000
            while left > 0:
                some = batches(shape, min(part, left), seed=f"backlog {left}", day=30)
                await broker.publish(settings, some)
                left -= part
            contender = ours(1)
            variables = {**environment_of(settings), **contender.variables}
            connection = await self._stage.connect("growth")
            try:
                with Processes(contender.commands(), variables, LOGS / "backlog.log") as processes:
                    while not await connection.fetchval("SELECT count(*) FROM ingest_inbox"):
                        processes.check()
                        await asyncio.sleep(_SAMPLE_EVERY)
                    memory = await _watch(processes, self._sizes.watched)
                    done = await connection.fetchval("SELECT count(*) FROM ingest_inbox")
            finally:
                await connection.close()
            waiting = await broker.waiting(settings, contender.queue)
        return {"memory_mb": asdict(memory), "ingested": done, "still_waiting": waiting}

    async def _ingest(self, everything: Sequence[Batch], group: int) -> tuple[float, float]:
        """Seconds, and seconds of this process's CPU, of all but the first group."""
        engine = make_engine(self._stage.on_database("growth"), connections=1, name="bench")
        ingest = Ingest(engine, Policy())
        groups = [everything[at : at + group] for at in range(0, len(everything), group)]
        try:
            await ingest(reference.incoming_all(groups[0]))
            started, cpu = time.perf_counter(), time.process_time()
            for each in groups[1:]:
                await ingest(reference.incoming_all(each))
            share = len(everything) / (len(everything) - len(groups[0]))
            return (
                (time.perf_counter() - started) * share,
                (time.process_time() - cpu) * share,
            )
        finally:
            await engine.dispose()

    async def _fill(self, rows: int) -> None:
        """Adds old sessions of one attempt on each of 20 questions until the table has `rows`.

        Without progress and messages at every size: what a batch costs depends on those too.
        """
        connection = await self._stage.connect("growth")
        per_user = self._sizes.shape.questions_per_user
        try:
            have = await connection.fetchval("SELECT count(*) FROM study_question_attempts")
            missing = (rows - have) // 20
            if missing > 0:
                await connection.execute(FILL, missing, per_user, self._sizes.shape.users)
            await connection.execute("TRUNCATE study_question_progress, outbox")
        finally:
            await connection.close()
        await self._stage.settle("growth")

    async def _rebuild(self) -> dict[str, Any]:
        connection = await self._stage.connect("growth")
        try:
            attempts = await connection.fetchval("SELECT count(*) FROM study_question_attempts")
        finally:
            await connection.close()
        settings = self._stage.on_database("growth")
        command = [(OURS, "rebuild", "--json")]
        log = LOGS / "rebuild.log"
        started = time.perf_counter()
        with Processes(command, environment_of(settings), log) as processes:
            memory = await _watch(processes, _PATIENCE, until_over=True)
            seconds = time.perf_counter() - started
        changed = json.loads(log.read_text().splitlines()[-1])["changed"]
        return {
            "attempts": attempts,
            "changed": changed,
            "attempts_per_second": attempts / seconds,
            "memory_mb": asdict(memory),
        }


async def _watch(processes: Processes, seconds: float, *, until_over: bool = False) -> Memory:
    """Samples memory for so long; the first fifth is for getting going."""
    samples = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (until_over and processes.are_over()):
        samples.append(processes.usage().memory / 1e6)
        await asyncio.sleep(_SAMPLE_EVERY)
    held = [sample for sample in samples if sample]
    if len(held) < 2:
        raise BenchError("the command was over before it could be watched")
    return Memory(held[len(held) // 5], held[-1], max(held))


FILL: Final = """
WITH made AS (
    INSERT INTO study_quiz_sessions (id, user_id, study_topic_id, question_ids,
        subject_distribution, status, cursor, source, client_session_uuid, correct_count,
        wrong_count, unsure_count, finished_at, finalized_at)
    SELECT gen_random_uuid(), question.user_id, question.study_topic_id, '[]', '{}', 'finalized',
        20, 'viewer', gen_random_uuid(), 20, 0, 0, '2020-01-01', '2020-01-01'
    FROM (SELECT (n % $3) * $2 + 1 AS first FROM generate_series(1, $1) AS n) AS chosen
    JOIN study_questions AS question ON question.id = chosen.first
    RETURNING id, user_id, study_topic_id)
INSERT INTO study_question_attempts (user_id, study_question_id, study_topic_id, quiz_session_id,
    position, selected_choice, correct_choice, is_correct, outcome, answered_at, answered_at_sent)
SELECT made.user_id, question.id, made.study_topic_id, made.id, position, question.correct_choice,
    question.correct_choice, true, 'correct', at, at
FROM made
CROSS JOIN generate_series(0, 19) AS position
CROSS JOIN LATERAL (SELECT
    timestamptz '2020-01-01' + random() * interval '1000 days' AS at,
    -- With the position in it, so that each has a question of its own.
    (made.user_id - 1) * $2 + 1 + floor(random() * $2 + 0 * position)::int AS question_id) AS drawn
JOIN study_questions AS question ON question.id = drawn.question_id
"""
"""So many sessions, questions of each user, users."""
