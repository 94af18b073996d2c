"""Cursors: how far a viewer is in one user's progress.

What changed is in the order of (version, question). A cursor is the last of it that a viewer has,
in an epoch. Viewers keep it as a text and do not look into it.
"""

import re
from typing import Final, NamedTuple, Self

from schemas.words import StartsOver
from worker.domain.records import Mark

_TEXT: Final = re.compile(
    r"([0-9a-f]{12})\.(-?[0-9]{1,19})\.([0-9]{1,16})(?:\.(-?[0-9]{1,19}))?", re.ASCII
)
_LAST: Final = 2**63 - 1
"""The last question of a version."""
BEFORE_ALL: Final = (-1, _LAST)
"""A position before everything."""


class Cursor(NamedTuple):
    """A position. Without `question_id` nothing of its version is missing."""

    epoch: str
    user_id: int
    version: int
    question_id: int | None = None

    @classmethod
    def read(cls, text: str) -> Self | None:
        """The cursor that the text is. None if it is none."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        epoch, user_id, version, question_id = match.groups()
        rest = None if question_id is None else int(question_id)
        return cls(epoch, int(user_id), int(version), rest)

    def __str__(self) -> str:
        whole = f"{self.epoch}.{self.user_id}.{self.version}"
        return whole if self.question_id is None else f"{whole}.{self.question_id}"

    @property
    def position(self) -> tuple[int, int]:
        """(version, question): what comes after it is missing."""
        return self.version, _LAST if self.question_id is None else self.question_id

    @property
    def complete(self) -> int:
        """The version up to which nothing is missing."""
        return self.version if self.question_id is None else max(0, self.version - 1)


def start(
    text: str | None, user_id: int, newest: Mark, erased: int
) -> tuple[tuple[int, int], StartsOver | None]:
    """The position from which a viewer with this cursor needs what has changed, and why that is
    everything, if it is.

    `newest` is the last version that was ever drawn, and `erased` that of the user's last erasure.
    """
    cursor = None if text is None else Cursor.read(text)
    if text is None:
        why = StartsOver.FIRST
    elif cursor is None or cursor.user_id != user_id:
        why = StartsOver.UNKNOWN_CURSOR
    elif cursor.epoch != newest.epoch:
        why = StartsOver.ANOTHER_EPOCH
    elif cursor.version > newest.version:
        why = StartsOver.AHEAD
    elif cursor.version < erased:
        why = StartsOver.ERASED
    else:
        return cursor.position, None
    return BEFORE_ALL, why
