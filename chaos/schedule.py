"""The schedule: which fault begins when, and how long it lasts. It is the same for the same seed.

Pure. It knows the kinds of faults by name only.
"""

import random
from collections.abc import Mapping
from typing import Final, NamedTuple

_LEAD: Final = 2.0
"""Seconds at the start without faults."""


class Planned(NamedTuple):
    """A future fault: when (seconds from the start), what, how long, and its own random numbers."""

    at: float
    kind: str
    seconds: float
    seed: int


def schedule(
    seed: int, seconds: float, kinds: Mapping[str, tuple[float, float]], pace: float
) -> list[Planned]:
    """Faults until `seconds`, one every `pace` seconds on average.

    `kinds` gives the shortest and longest duration of each kind. All kinds occur once, in an order
    that the seed decides, before any occurs again.
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
