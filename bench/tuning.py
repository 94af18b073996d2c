"""The most important settings, compared with each other: how their defaults were chosen.

It runs only with `--full`, in interleaved rounds of one worker and of two on the long course.
"""

from collections.abc import Callable
from typing import Any, Final

from bench import race
from bench.contenders import ours
from bench.figures import spread
from bench.race import Course
from bench.stage import Stage

TRIED: Final = (
    {"lanes": 1, "group_max": 25, "prefetch": 100},
    {"lanes": 1, "group_max": 50, "prefetch": 100},
    {"lanes": 1, "group_max": 50, "prefetch": 150},
    {"lanes": 1, "group_max": 50, "prefetch": 200},
    {"lanes": 1, "group_max": 100, "prefetch": 400},
    {"lanes": 2, "group_max": 25, "prefetch": 200},
    {"lanes": 2, "group_max": 50, "prefetch": 400},
    {"lanes": 3, "group_max": 50, "prefetch": 600},
)
_WORKERS: Final = (1, 2)


async def measure(
    stage: Stage, course: Course, rounds: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Throughput, CPU and memory of each, by the number of workers."""
    tried = [(workers, settings) for settings in TRIED for workers in _WORKERS]
    laps: list[list[race.Lap]] = [[] for _ in tried]
    for number in range(1, rounds + 1):
        for (workers, settings), so_far in zip(tried, laps, strict=True):
            so_far.append(await race.run(stage, ours(workers, relay=False, **settings), course))
            say(f"tuning {number} {workers} {settings} {so_far[-1].throughput:.0f} batches/s")
    return [
        {
            "workers": workers,
            **settings,
            "batches_per_second": spread([lap.throughput for lap in so_far])._asdict(),
            "cpu_ms_per_batch": spread([lap.cpu_ms for lap in so_far])._asdict(),
            "memory_mb": max(lap.memory for lap in so_far) / 1e6,
        }
        for (workers, settings), so_far in zip(tried, laps, strict=True)
    ]
