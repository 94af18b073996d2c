"""The whole benchmark: what is measured, in which order, and what the JSON object contains.

The contenders take turns. Each round runs every contender once on each state, and measures the
latency.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from rich.console import Console

from bench import courses, floor, latency, race, round_trips, tuning
from bench.busy import Busy
from bench.busy import Sizes as BusySizes
from bench.capacity import Capacity
from bench.capacity import Sizes as CapacitySizes
from bench.consoles import Consoles
from bench.consoles import Sizes as ConsolesSizes
from bench.contenders import PEERS, Contender, ours, set_based, usual, usual_publishing
from bench.devices import Devices
from bench.devices import Sizes as DevicesSizes
from bench.figures import ratios, spread
from bench.growth import Growth
from bench.growth import Sizes as GrowthSizes
from bench.letters import Letters
from bench.letters import Sizes as LettersSizes
from bench.race import Course, Lap
from bench.stage import PREFIX, Stage
from bench.workload import Shape, batches
from worker.settings import Settings

Laps = dict[str, dict[str, list[Lap]]]
"""By state and contender, a lap for each round."""

_ONE, _TWO, _USUAL, _SET_BASED, _FLOOR = "ours_1", "ours_2", "usual", "set_based", "floor"
_LONG: Final = ("dead", "asking", "two_viewers", "old_names", "capacity", "consoles")
"""The workloads that take minutes, only with `--full`."""
_WAITING: Final = 15_000
"""Batches to take from, for a round's wait."""


class Beside(NamedTuple):
    """The waits at half of what the usual handler can do, once."""

    usual: latency.Latency
    ours: latency.Latency


class Sizes(NamedTuple):
    """How much of everything."""

    course: courses.Sizes = courses.Sizes()
    wait: latency.Sizes = latency.Sizes()
    growth: GrowthSizes = GrowthSizes()
    busy: BusySizes = BusySizes()
    letters: LettersSizes = LettersSizes()
    devices: DevicesSizes = DevicesSizes()
    capacity: CapacitySizes = CapacitySizes()
    consoles: ConsolesSizes = ConsolesSizes()

    @classmethod
    def tiny(cls) -> "Sizes":
        """Just enough to see that it works."""
        shape = Shape(users=10, questions=2_000)
        return cls(
            courses.Sizes(shape, (courses.FRESH,), warm_up=50, long_warm_up=50, long=50, short=50),
            latency.Sizes(peak=40, seconds=0.5, alone=2, beside_usual=1.0),
            GrowthSizes(shape, (1, 20), 200, (1_000, 2_000), 100, 2_000, 2_000, 500, 2.0),
            BusySizes(shape, (2, 5), 60, 40, (1, 2, 3), 60, 3, 10, (3, 6), 20, (2, 4), rounds=1),
            LettersSizes(shape, 60, (300,), 20, rounds=1),
            DevicesSizes(shape, Shape(users=4, questions=400), 60, 40, 0.5, 20, 1, 3, 60, 2_000),
            CapacitySizes(shape, 100),
            ConsolesSizes(courses.Sizes(shape, (courses.FRESH,), 50, 50, 50, 50), 2, 1),
        )

    def with_batches(self, count: int) -> "Sizes":
        """The same with so many batches in the long course, in whole groups."""
        group = floor.GROUP
        long, short = (max(1, n // group) * group for n in (count, count // 8))
        return self._replace(
            course=self.course._replace(long=long, short=short),
            wait=self.wait._replace(peak=long),
        )


class Meet:
    """Measures everything once."""

    def __init__(
        self, settings: Settings, sizes: Sizes, console: Console, prefix: str = PREFIX
    ) -> None:
        self._stage = Stage(settings, prefix)
        self._sizes = sizes
        self._console = console
        self.workloads = {
            **Busy(self._stage, sizes.busy, self._say).workloads,
            **Letters(self._stage, sizes.letters, self._say).workloads,
            **Devices(self._stage, sizes.devices, self._say).workloads,
            **Capacity(self._stage, sizes.capacity, self._say).workloads,
            **Consoles(self._stage, sizes.consoles, self._say).workloads,
        }

    async def run(
        self, *, rounds: int, with_peers: bool, with_growth: bool, only: str | None = None
    ) -> dict[str, Any]:
        """Measures everything, or the workload `only`.

        Raises `BenchError` when a contender leaves other rows, or gets stuck.
        """
        await self._stage.drop()
        try:
            self._say("making the worlds")
            shape = self._sizes.course.shape
            await courses.worlds(self._stage, self._sizes.course)
            if only is not None:
                return await self.workloads[only]()
            laps, waits, beside = await self._race(rounds, PEERS if with_peers else ())
            self._say("round trips")
            enough = batches(shape, 2 * sum(round_trips.GROUPS), seed="trips", day=30)
            trips = await round_trips.measure(self._stage, self._sizes.course.states[-1], enough)
            measured = _headlines(laps, trips, latency.spreads(waits), beside)
            for name, workload in self.workloads.items():
                if with_growth or name not in _LONG:
                    measured |= await workload()
            if with_growth:
                course = await self._course(courses.FRESH, short=False)
                measured["tuning"] = await tuning.measure(self._stage, course, rounds, self._say)
                measured["growth"] = await Growth(
                    self._stage, self._sizes.growth, self._say
                ).measure()
            return measured
        finally:
            await self._stage.drop()

    async def _race(
        self, rounds: int, peers: Sequence[Contender]
    ) -> tuple[Laps, list[latency.Round], list[Beside]]:
        long = {
            state: await self._course(state, short=False) for state in self._sizes.course.states
        }
        short = {
            state: await self._course(state, short=True) for state in self._sizes.course.states
        }
        waiting = batches(self._sizes.course.shape, _WAITING, seed="latency", day=30)
        laps: Laps = {state: {} for state in self._sizes.course.states}
        waits: list[latency.Round] = []
        beside: list[Beside] = []

        def note(state: str, name: str, number: int, lap: Lap) -> None:
            laps[state].setdefault(name, []).append(lap)
            self._say(
                f"round {number} {state:5} {name:10} {lap.throughput:8.1f} batches/s"
                f" {lap.cpu_ms:7.2f} ms CPU a batch"
            )

        for number in range(1, rounds + 1):
            for state in self._sizes.course.states:
                for contender, course in (
                    (ours(1), long[state]),
                    (usual(), short[state]),
                    (ours(2), long[state]),
                    (set_based(), long[state]),
                    *((peer, short[state]) for peer in peers if state == courses.FRESH),
                ):
                    lap = await race.run(self._stage, contender, course)
                    note(state, contender.name, number, lap)
                lap = await floor.run(self._stage, f"floor_{state}", long[state])
                note(state, _FLOOR, number, lap)
            waits.append(
                await latency.measure(self._stage, ours(1, relay=True), waiting, self._sizes.wait)
            )
            self._say(
                f"round {number} wait  p50 "
                + ", ".join(f"{each.p50:.1f} ms at {each.rate:.0f}/s" for each in waits[-1].loads)
            )
            half = laps[courses.FRESH][_USUAL][-1].throughput / 2
            of_both = [
                await latency.at_rate(
                    self._stage, each, waiting, half, self._sizes.wait.beside_usual
                )
                for each in (usual_publishing(), ours(1, relay=True))
            ]
            beside.append(Beside(*of_both))
            self._say(
                f"round {number} wait at {half:.0f}/s  "
                + ", ".join(f"p50 {each.p50:.1f} p99 {each.p99:.1f} ms" for each in of_both)
                + "  (usual, ours)"
            )
        return laps, waits, beside

    async def _course(self, state: str, *, short: bool) -> Course:
        return await courses.course(self._stage, state, self._sizes.course, short=short)

    def _say(self, what: str) -> None:
        self._console.print(f"bench: {what}", highlight=False)


def _headlines(
    laps: Laps,
    trips: Mapping[int, int],
    waits: Mapping[str, Any],
    beside: Sequence[Beside],
) -> dict[str, Any]:
    """The figures that matter first; of two states the one that flatters us less."""
    states = {state: _of_state(by_name) for state, by_name in laps.items()}
    half_load = next(each for each in waits["loads"] if each["load"] == 0.5)
    return {
        "throughput_vs_usual": min(s["throughput_vs_usual"]["median"] for s in states.values()),
        "worker_cpu_vs_usual": max(s["worker_cpu_vs_usual"]["median"] for s in states.values()),
        "throughput_vs_set_based": min(
            s["throughput_vs_set_based"]["median"] for s in states.values()
        ),
        "throughput_vs_floor": min(s["throughput_vs_floor"]["median"] for s in states.values()),
        "round_trips_per_group": max(trips.values()),
        "latency_ms": {
            "p50": half_load["p50"]["median"],
            "p99": half_load["p99"]["median"],
            "alone_p50": waits["alone"]["p50"]["median"],
            "alone_worst": waits["alone"]["worst"]["most"],
        },
        "latency_vs_usual": {
            "p50": ratios([e.ours.p50 for e in beside], [e.usual.p50 for e in beside]).median,
            "p99": ratios([e.ours.p99 for e in beside], [e.usual.p99 for e in beside]).median,
        },
        "peers": {
            name: spread([lap.throughput for lap in by_round]).median
            for name, by_round in laps[courses.FRESH].items()
            if name not in (_ONE, _TWO, _USUAL, _SET_BASED, _FLOOR)
        },
        "raw": {
            "states": states,
            "round_trips_by_group": {str(size): count for size, count in trips.items()},
            "latency": waits,
            "beside_usual": [
                {"usual": asdict(each.usual), "ours": asdict(each.ours)} for each in beside
            ],
        },
    }


def _of_state(by_name: Mapping[str, Sequence[Lap]]) -> dict[str, Any]:
    throughput = {name: [lap.throughput for lap in laps] for name, laps in by_name.items()}
    cpu = {name: [lap.cpu_ms for lap in laps] for name, laps in by_name.items()}
    return {
        "throughput_vs_usual": ratios(throughput[_TWO], throughput[_USUAL])._asdict(),
        "worker_cpu_vs_usual": ratios(cpu[_ONE], cpu[_USUAL])._asdict(),
        "throughput_vs_set_based": ratios(throughput[_TWO], throughput[_SET_BASED])._asdict(),
        "throughput_vs_floor": ratios(throughput[_TWO], throughput[_FLOOR])._asdict(),
        "one_worker_vs_floor": ratios(throughput[_ONE], throughput[_FLOOR])._asdict(),
        "contenders": {
            name: {
                "batches_per_second": spread(throughput[name])._asdict(),
                "cpu_ms_per_batch": spread(cpu[name])._asdict(),
                "memory_mb": max(lap.memory for lap in laps) / 1e6,
                "batches": laps[0].batches,
                "seconds": [lap.seconds for lap in laps],
            }
            for name, laps in by_name.items()
        },
    }
