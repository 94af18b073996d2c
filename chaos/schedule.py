"""The schedule: which fault begins when and lasts how long. The same for the same seed.

Pure; knows kinds of faults by name and nothing of what they do.
"""

import random
from collections.abc import Mapping
from typing import Final, NamedTuple

_LEAD: Final = 2.0
"""Seconds at the start in which nothing happens."""


class Planned(NamedTuple):
    """A fault to come: when (seconds from the start), what, for how long, and its own dice."""

    at: float
    kind: str
    seconds: float
    seed: int


def schedule(
    seed: int, seconds: float, kinds: Mapping[str, tuple[float, float]], pace: float
) -> list[Planned]:
    """Faults until `seconds`, one every `pace` seconds on average.

    `kinds` gives the shortest and longest time that each may last. All kinds come once, in an
    order of the seed's, before any comes again.
    """
    rng = random.Random(f"{seed}/schedule")
    plan: list[Planned] = []
    round_: list[str] = []
    at = _LEAD
    while at < seconds:
        if not round_:
            round_ = rng.sample(sorted(kinds), len(kinds))
        kind = round_.pop()
        shortest, longest = kinds[kind]
        plan.append(
            Planned(
                round(at, 3), kind, round(rng.uniform(shortest, longest), 3), rng.getrandbits(32)
            )
        )
        at += pace * rng.uniform(0.5, 1.5)
    return plan
