"""Histories that were folded lately.

Late batches come in series, when two devices of a user send what they recorded offline. So a worker
remembers the histories that one group needed, and the next group need not read and fold all of
them again.

Whether a remembered history is still the one in the database follows from the version of its
progress: everything that changes the history also gives the progress a new version, and no version
is drawn twice.
"""

from collections.abc import Mapping
from typing import Final

from worker.domain.history import History
from worker.domain.records import Mark, Standings, UserQuestion

_ATTEMPTS_MAX: Final = 100_000
"""25 MB at most."""
_OF_EACH: Final = 5
"""What a history takes beside its attempts, in attempts."""


class Recent:
    """Remembers histories of at most `attempts_max` attempts: those that changed last."""

    def __init__(self, attempts_max: int = _ATTEMPTS_MAX) -> None:
        self._attempts_max = attempts_max
        self._attempts = 0
        self._kept: dict[UserQuestion, tuple[Mark, History]] = {}
        """The one that changed last is the last one."""

    def among(self, standing: Standings, epoch: str) -> dict[UserQuestion, History]:
        """The histories behind that progress, as far as they are remembered. Read it under the
        users' locks.
        """
        if not self._kept:
            return {}
        return {
            (user_id, question_id): kept[1]
            for (user_id, question_id), question in standing.items()
            if user_id is not None
            and (kept := self._kept.get((user_id, question_id))) is not None
            and kept[0] == (epoch, question.version)
        }

    def keep(self, histories: Mapping[UserQuestion, History], mark: Mark) -> None:
        """Remembers histories whose progress is being written with `mark`. If this is not
        committed, no progress will ever have that version.
        """
        for each, history in histories.items():
            self._forget(each)
            self._kept[each] = (mark, history)
            self._attempts += _size(history)
        while self._attempts > self._attempts_max:
            self._forget(next(iter(self._kept)))

    def _forget(self, each: UserQuestion) -> None:
        if (kept := self._kept.pop(each, None)) is not None:
            self._attempts -= _size(kept[1])


def _size(history: History) -> int:
    return len(history.attempts) + _OF_EACH
