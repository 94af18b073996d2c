"""The history of one (user, question), to which all sessions of a group are added at once.

Sessions that are later than everything folded so far continue from the stored progress. If a
session is late, the whole history is folded again: once, however many sessions there are.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from schemas.words import Outcome
from worker.domain.fold import Progress, fold
from worker.domain.scoring import ScoredAttempt


class Change(NamedTuple):
    """The effect of one session on one question."""

    before: Progress | None
    """The fold of everything before the session's first attempt, including other sessions of its
    group.
    """
    after: Outcome
    """The session's last outcome on the question."""


class Placed(NamedTuple):
    """A history after its new sessions were added."""

    progress: Progress
    """The fold of everything that is known now."""
    changes: Sequence[Change]
    """One for each new session, in the order of the argument."""


def place(
    base: Progress | None,
    stored: Sequence[ScoredAttempt],
    sessions: Sequence[Sequence[ScoredAttempt]],
) -> Placed:
    """Adds the attempts of `sessions`: at least one session, none of them empty, in any order.

    `base` is the fold of everything before `stored`. It is None if `stored` is the whole history.
    If there is a `base`, all new attempts must be later than it. Otherwise the caller loads the
    whole history first.
    """
    if len(sessions) == 1 and not stored:  # this is the usual case, and it runs for every question
        [new] = sessions
        if len(new) > 1:
            new = sorted(new)
        progress = fold(base, new)
        assert progress is not None
        return Placed(progress, [Change(base, new[-1].outcome)])
    attempts = sorted(chain(stored, *sessions))
    firsts = [min(session) for session in sessions]
    befores: list[Progress | None] = [None] * len(sessions)
    progress, done = base, 0
    for number in sorted(range(len(sessions)), key=firsts.__getitem__):
        first = bisect_left(attempts, firsts[number], done)
        befores[number] = progress = fold(progress, attempts[done:first])
        done = first
    progress = fold(progress, attempts[done:])
    assert progress is not None
    lasts = [max(session).outcome for session in sessions]
    return Placed(progress, [*map(Change, befores, lasts)])


def is_late(progress: Progress, attempt: ScoredAttempt) -> bool:
    """Whether an attempt is not later than all of `progress`, so that the history must be
    loaded.
    """
    return attempt.answered_at <= progress.last_answered_at
