"""The settings that matter, tried one beside another: how their defaults were chosen.

Only with `--full`. Interleaved rounds of one worker on the long course.
"""

from collections.abc import Callable
from typing import Any, Final

from bench import race
from bench.contenders import ours
from bench.figures import spread
from bench.race import Course
from bench.stage import Stage

TRIED: Final = (
    {"lanes": 1, "group_max": 50, "prefetch": 200},
    {"lanes": 2, "group_max": 10, "prefetch": 40},
    {"lanes": 2, "group_max": 25, "prefetch": 100},
    {"lanes": 2, "group_max": 50, "prefetch": 100},
    {"lanes": 2, "group_max": 50, "prefetch": 200},
    {"lanes": 2, "group_max": 50, "prefetch": 400},
    {"lanes": 2, "group_max": 100, "prefetch": 400},
    {"lanes": 3, "group_max": 50, "prefetch": 300},
)


async def measure(
    stage: Stage, course: Course, rounds: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Throughput, CPU and memory of each."""
    laps: list[list[race.Lap]] = [[] for _ in TRIED]
    for number in range(1, rounds + 1):
        for settings, so_far in zip(TRIED, laps, strict=True):
            so_far.append(await race.run(stage, ours(1, relay=False, **settings), course))
            say(f"tuning {number} {settings} {so_far[-1].throughput:.0f} batches/s")
    return [
        {
            **settings,
            "batches_per_second": spread([lap.throughput for lap in so_far])._asdict(),
            "cpu_ms_per_batch": spread([lap.cpu_ms for lap in so_far])._asdict(),
            "memory_mb": max(lap.memory for lap in so_far) / 1e6,
        }
        for settings, so_far in zip(TRIED, laps, strict=True)
    ]
