"""The effective times of answers: the times as sent, without those that can't be true. Pure.

A device with a wrong clock or calendar must not break a schedule. An answer whose time can't be
true gets the time of a neighbor in its session, which differs by minutes at most.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from schemas.words import TimeWas


class EffectiveTimes(NamedTuple):
    """The times of a session, in the order of its attempts."""

    at: Sequence[datetime]
    was: Sequence[TimeWas | None]
    """Why the time as sent was replaced. None if it was not."""


def effective_times(
    sent: Sequence[datetime | None],
    texts: Sequence[str | None],
    received_at: datetime,
    earliest: datetime,
) -> EffectiveTimes:
    """The effective times of one session, whose attempts are in the order of the answers.

    A time as sent is credible from `earliest` to `received_at`. Any other time is replaced by the
    nearest credible one before it, or else by the nearest after it, or else by `received_at`.
    `texts` are the times as they were sent, to distinguish a missing time from one that is not
    readable.
    """
    if None not in sent and earliest <= min(sent) and max(sent) <= received_at:  # type: ignore[type-var, operator]  # none is None
        return EffectiveTimes(sent, (None,) * len(sent))  # type: ignore[arg-type]  # none is None
    was = [_why(at, text, received_at, earliest) for at, text in zip(sent, texts, strict=True)]
    credible = [at if why is None else None for at, why in zip(sent, was, strict=True)]
    nearest = next((at for at in credible if at is not None), received_at)
    effective = []
    for at in credible:
        nearest = at or nearest
        effective.append(nearest)
    return EffectiveTimes(effective, was)


def was_before(
    at: datetime | None,
    erased_at: datetime,
    received_at: datetime,
    earliest: datetime,
    memory: timedelta,
) -> bool:
    """Whether an answer with the time `at` as sent was given before its user was erased.

    A time that is not credible says nothing. It counts as before for as long as `memory`.
    """
    if at is not None and earliest <= at <= received_at:
        return at < erased_at
    return received_at < erased_at + memory


def _why(
    at: datetime | None, text: str | None, received_at: datetime, earliest: datetime
) -> TimeWas | None:
    if at is None:
        return TimeWas.MISSING if text is None else TimeWas.UNREADABLE
    if at > received_at:
        return TimeWas.IN_THE_FUTURE
    return TimeWas.TOO_EARLY if at < earliest else None
