"""What dead letters cost: ingest while a tenth is rejected, and the operator's commands on many.

*rejected*: the throughput of good batches with rejected ones among them, against that of the same
good ones alone. *dead*: the seconds that each `study-ingest dead` command takes, from its start to
its end, with a table that is full of letters. A replay also waits for the worker.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, Final, NamedTuple
from uuid import uuid4

from bench import courses, race, reference, rows
from bench.contenders import OURS, ours
from bench.errors import BenchError
from bench.processes import Processes
from bench.race import LOGS, Course
from bench.stage import Stage, environment_of
from bench.workload import Batch, Shape, batches
from worker.settings import Settings

_VIEWERS: Final = 200
_WARM_UP: Final = 250


class Sizes(NamedTuple):
    """How much of each."""

    shape: Shape = Shape()
    good: int = 2_000
    letters: Sequence[int] = (100_000, 1_000_000)
    replayed: int = 1_000
    rounds: int = 5
    """In turns, so that a machine whose speed drifts does not matter."""


class Letters:
    """Measures these workloads, one after another."""

    def __init__(self, stage: Stage, sizes: Sizes, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._sizes = sizes
        self._say = say
        self.workloads: Mapping[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "rejected": self.rejected,
            "dead": self.dead,
        }

    async def rejected(self) -> dict[str, Any]:
        """The throughput of good batches among a tenth of rejected ones, against good alone."""
        alone = await self.course()
        mixed = replace(alone, published=among(alone.timed))
        ratios = []
        for _ in range(self._sizes.rounds):
            laps = [await race.run(self._stage, ours(1), each) for each in (alone, mixed)]
            pace, among_others = (lap.throughput for lap in laps)
            self._say(f"rejected: {among_others:.0f} batches/s beside {pace:.0f} alone")
            ratios.append(among_others / pace)
        return {"good_among_rejected": median(ratios)}

    async def course(self) -> Course:
        """Good batches; the outbox also has the results of others, so it is not compared."""
        sizes = self._sizes
        everything = batches(sizes.shape, _WARM_UP + sizes.good, seed="letters", day=30)
        await self._stage.copy("reference", courses.FRESH)
        await reference.ingest(self._stage, "reference", everything)
        connection = await self._stage.connect("reference")
        try:
            expected = await rows.digests(connection)
        finally:
            await connection.close()
        del expected["outbox"]
        warm_up, timed = everything[:_WARM_UP], everything[_WARM_UP:]
        return Course("letters", courses.FRESH, warm_up, timed, expected)

    async def dead(self) -> dict[str, Any]:
        """The seconds of each command, by the number of letters."""
        found = {}
        for letters in self._sizes.letters:
            await self._stage.copy("letters", courses.FRESH)
            connection = await self._stage.connect("letters")
            try:
                await connection.execute(_FILL, letters, _VIEWERS, timeout=None)
                await self._stage.settle("letters")
                some = str(await connection.fetchval("SELECT max(id) / 2 FROM ingest_dead_letters"))
            finally:
                await connection.close()
            async with self._stage.vhost("letters", self._stage.on_database("letters")) as settings:
                found[str(letters)] = await self._commands(settings, some)
        return {"dead": found}

    async def _commands(self, settings: Settings, some: str) -> dict[str, float]:
        viewer = ("--viewer", "viewer-7")
        replay = ("replay", "--limit", str(self._sizes.replayed), "--yes")
        seconds = {}
        worker = ours(1, relay=True)
        variables = {**environment_of(settings), **worker.variables}
        with Processes(worker.commands(), variables, LOGS / "letters.log") as processes:
            for name, words in {
                "list": ("list",),
                "list one viewer's": ("list", *viewer),
                "list single ones": ("list", "--letters"),
                "show": ("show", "--id", some),
                "rehearse 50": ("replay", "--dry-run", "--limit", "50"),
                "export one viewer's": ("export", *viewer),
                "discard one viewer's": ("discard", *viewer, "--yes"),
                f"replay {self._sizes.replayed}": replay,
                f"replay {self._sizes.replayed} and wait": (*replay, "--wait"),
            }.items():
                seconds[name] = await _time(variables, words)
                self._say(f"dead: {name} {seconds[name]:.2f} s")
            processes.check()
        return seconds


def among(good: Sequence[Batch]) -> list[Batch]:
    """The batches, and after each nine of them one that nobody published a question of."""
    found: list[Batch] = []
    for number, batch in enumerate(good):
        if number % 9 == 4:
            uuid = uuid4()
            body = batch.body.replace(str(batch.uuid).encode(), str(uuid).encode())
            found.append(Batch(uuid, body.replace(b'"q-', b'"x-')))
        found.append(batch)
    return found


async def _time(variables: Mapping[str, str], words: Sequence[str]) -> float:
    started = time.perf_counter()
    with Processes([(OURS, "dead", *words)], variables, LOGS / "dead.log") as command:
        while not command.are_over():  # noqa: ASYNC110  # it runs beside this one
            await asyncio.sleep(0.005)
        if command.failed():
            said = (LOGS / "dead.log").read_text(errors="replace")[-500:]
            raise BenchError(f"`dead {' '.join(words)}` failed: {said}")
    return time.perf_counter() - started


_FILL: Final = """
INSERT INTO ingest_dead_letters (key, died_at, reason, detail, viewer, routing_key,
    client_session_uuid, properties, body, body_bytes)
SELECT sha256(convert_to(n::text, 'UTF8')), now() - n * interval '1 second',
    (ARRAY['nothing_resolved', 'malformed', 'uuid_reused', 'principal_not_granted'])[1 + n % 4],
    'Detail number ' || n % 10, 'viewer-' || n % $2,
    convert_to('attempts.v1.viewer-' || n % $2, 'UTF8'), uuid, '\\x00000000', body, length(body)
FROM generate_series(1, $1) AS n,
    LATERAL (SELECT CAST(md5('letter ' || n) AS uuid) AS uuid) AS named,
    LATERAL (SELECT convert_to('{"client_session_uuid":"' || uuid || '","attempts":['
        || string_agg('{"question_pub_id":"x-' || md5((20 * n + place)::text)
        || '","selected_choice":1,"answered_at":"2026-01-01T00:00:00Z"}', ',') || ']}', 'UTF8')
        AS body FROM generate_series(1, 20) AS place) AS written
"""
