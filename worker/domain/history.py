"""The history of one (user, question), to which all sessions of a group are added at once.

Sessions that are later than everything folded so far continue from the stored progress. If a
session is late, the history is folded again from before it: once, however many sessions there are.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Final, NamedTuple

from schemas.words import Outcome
from worker.domain.fold import Progress, fold
from worker.domain.scoring import ScoredAttempt

_LATEST_MIN: Final = 32
_LATEST_MAX: Final = 64
"""The number of attempts that are kept beside the base of a long history: as many as this, and then
the latest of them. A session is seldom late by more.
"""


class History(NamedTuple):
    """All attempts on one question, the early ones folded."""

    base: Progress | None
    """The fold of everything before `attempts`. None if they are the whole history."""
    attempts: Sequence[ScoredAttempt]

    def reaches(self, attempt: ScoredAttempt) -> bool:
        """Whether the attempt can be added: it must be later than everything in `base`."""
        return self.base is None or not is_late(self.base, attempt)

    def with_all(self, sessions: Iterable[Sequence[ScoredAttempt]]) -> "History":
        """The history with the attempts of `sessions`, all of which it reaches."""
        attempts = sorted(chain(self.attempts, *sessions))
        early = _early(attempts)
        return History(fold(self.base, attempts[:early]), attempts[early:])


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
    history: History | None = None
    """`base` and `stored` with the new sessions. None where that would be `base` and one session.
    """


def place(
    base: Progress | None,
    stored: Sequence[ScoredAttempt],
    sessions: Sequence[Sequence[ScoredAttempt]],
) -> Placed:
    """Adds the attempts of `sessions`: at least one session, none of them empty, in any order.

    `base` is the fold of everything before `stored`. It is None if `stored` is the whole history.
    If there is a `base`, all new attempts must be later than it. Otherwise the caller needs an
    earlier one.
    """
    if len(sessions) == 1 and not stored:  # this is the usual case, and it runs for every question
        [new] = sessions
        if len(new) > 1:
            new = sorted(new)
        progress = fold(base, new)
        assert progress is not None
        return Placed(progress, [Change(base, new[-1].outcome)])
    attempts = sorted(chain(stored, *sessions))
    early = _early(attempts)
    # One pass, with a stop before each session and one before what is kept of the history.
    stops = [bisect_left(attempts, min(session)) for session in sessions] + [early]
    befores: list[Progress | None] = [None] * len(stops)
    progress, done = base, 0
    for number in sorted(range(len(stops)), key=stops.__getitem__):
        befores[number] = progress = fold(progress, attempts[done : stops[number]])
        done = stops[number]
    progress = fold(progress, attempts[done:])
    assert progress is not None
    history = History(befores.pop(), attempts[early:])
    lasts = [max(session).outcome for session in sessions]
    return Placed(progress, [*map(Change, befores, lasts)], history)


def _early(attempts: Sequence[ScoredAttempt]) -> int:
    """The number of attempts that are folded into the base of a history."""
    return len(attempts) - _LATEST_MIN if len(attempts) > _LATEST_MAX else 0


def is_late(progress: Progress, attempt: ScoredAttempt) -> bool:
    """Whether an attempt is not later than all of `progress`, so that the history must be
    loaded.
    """
    return attempt.answered_at <= progress.last_answered_at
