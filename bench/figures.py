"""Turns raw numbers into figures: medians, spreads, ratios, percentiles. Pure."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple


class Spread(NamedTuple):
    """The median and the range of several rounds."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 2
        return f"{self.median:,.{digits}f} ({self.least:,.{digits}f} to {self.most:,.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    return Spread(median(values), min(values), max(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The ratios, round by round, so that a machine whose speed changes does not matter."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of a sorted sequence: the smallest value that `percent` of all do not
    exceed.
    """
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
