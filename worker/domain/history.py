"""The history of one (user, question), to which a group's sessions are added one by one.

A session that is later than everything folded so far continues from the stored progress. A late
session is inserted at its place, and the whole history is folded again.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from schemas.words import Outcome
from worker.domain.fold import Progress, fold
from worker.domain.scoring import ScoredAttempt


class Change(NamedTuple):
    """The effect of one session on one question."""

    before: Progress | None
    """The fold of everything before the session's first attempt."""
    after: Outcome
    """The session's last outcome on the question."""
    progress: Progress
    """The fold of everything that is known now, including later attempts."""


class History:
    """`base` is the fold of everything before `attempts`. It is None if those are the whole
    history.
    """

    __slots__ = ("_attempts", "_base", "progress")

    def __init__(self, base: Progress | None, attempts: Sequence[ScoredAttempt] = ()) -> None:
        self._base = self.progress = base
        self._attempts: list[ScoredAttempt] = []
        if attempts:  # usually there are none, and this runs for every question
            self._attempts = sorted(attempts)
            self.progress = fold(base, self._attempts)

    def add(self, session: Sequence[ScoredAttempt]) -> Change:
        """Adds a session's attempts on this question: at least one, in any order.

        If there is a `base`, all of them must be later than it. Otherwise the caller loads the
        whole history first.
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
    """Whether an attempt is not later than all of `progress`, so that the history must be
    loaded.
    """
    return attempt.answered_at <= progress.last_answered_at
