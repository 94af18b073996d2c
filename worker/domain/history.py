"""One (user, question)'s history while a group's sessions are added to it, one by one.

A session that is later than all that is folded goes on from the stored progress; a late one
takes its place in history, and all is folded again from what was loaded.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from schemas.words import Outcome
from worker.domain.fold import Progress, fold
from worker.domain.scoring import ScoredAttempt


class Change(NamedTuple):
    """What one session did to one question."""

    before: Progress | None
    """The fold of all that lies ahead of the session's first attempt."""
    after: Outcome
    """The session's last outcome on the question."""
    progress: Progress
    """The fold of all that is known now, later attempts included."""


class History:
    """`base` is the fold of everything before `attempts`; None when those are everything."""

    __slots__ = ("_attempts", "_base", "progress")

    def __init__(self, base: Progress | None, attempts: Sequence[ScoredAttempt] = ()) -> None:
        self._base = self.progress = base
        self._attempts: list[ScoredAttempt] = []
        if attempts:  # as a rule there are none, and this is done for every question
            self._attempts = sorted(attempts)
            self.progress = fold(base, self._attempts)

    def add(self, session: Sequence[ScoredAttempt]) -> Change:
        """Adds a session's attempts on this question (at least one, in any order).

        With a `base`, all of them must be later than it; the caller loads the whole history
        when they are not.
        """
        new = sorted(session) if len(session) > 1 else session
        assert self._base is None or new[0].answered_at > self._base.last_answered_at
        if not self._attempts or self._attempts[-1] < new[0]:
            before = self.progress
            self._attempts += new
            self.progress = fold(before, new)
        else:
            place = bisect_left(self._attempts, new[0])
            before = fold(self._base, self._attempts[:place])
            self._attempts = sorted([*self._attempts, *new])
            self.progress = fold(before, self._attempts[place:])
        assert self.progress is not None
        return Change(before, new[-1].outcome, self.progress)


def is_late(progress: Progress, attempt: ScoredAttempt) -> bool:
    """Whether an attempt is not after all of `progress`, so that the history must be loaded."""
    return attempt.answered_at <= progress.last_answered_at
