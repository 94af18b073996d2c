"""The fold, written a second time from docs/contract.md: from a history of answers to progress.

It computes every figure from the whole sorted history, and never from a stored figure. That is
slow, but there is no state that could be wrong. Pure: it reads no row and no message.
"""

import itertools
from bisect import insort
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from chaos import fsrs6

CORRECT, WRONG, UNSURE = "correct", "wrong", "unsure"

_MASTERED_DAYS: Final = 21.0
_LEECH_LAPSES: Final = 4
_STUCK: Final = 10
_STUCK_NEVER_CORRECT: Final = 5


class Answer(NamedTuple):
    """One scored answer. Answers sort in the order that docs/contract.md gives under *The law*."""

    answered_at: datetime
    ordered_at: datetime
    session: UUID
    position: int
    outcome: str
    is_right: bool | None


class History:
    """All known answers of one user to one question."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        # The memory after each answer, as far as it was asked for and nothing came in before it.
        self._memories: list[fsrs6.Memory] = []

    def add(self, answer: Answer) -> None:
        """Inserts the answer at its place in the history."""
        insort(self.answers, answer)
        del self._memories[self.answers.index(answer) :]

    @property
    def memory(self) -> fsrs6.Memory:
        """FSRS's state after the last answer."""
        for place in range(len(self._memories), len(self.answers)):
            at, grade = self.answers[place].answered_at, _grade(self.answers[place])
            self._memories.append(
                fsrs6.next_(
                    self._memories[place - 1], self.answers[place - 1].answered_at, grade, at
                )
                if place
                else fsrs6.first(grade, at)
            )
        return self._memories[-1]

    @property
    def pattern(self) -> str:
        """The first pattern of docs/contract.md that applies."""
        outcomes = [answer.outcome for answer in self.answers]
        correct = outcomes.count(CORRECT)
        last_correct = outcomes[-1] == CORRECT
        last_three = self.answers[-3:]
        spaced = all(
            fsrs6.days_between(earlier.answered_at, later.answered_at) >= 1
            for earlier, later in itertools.pairwise(last_three)
        )
        if (
            len(last_three) == 3
            and spaced
            and all(answer.outcome == CORRECT for answer in last_three)
            and self.memory.stability >= _MASTERED_DAYS
        ):
            return "mastered"
        if lapses(outcomes) >= _LEECH_LAPSES:
            return "leech"
        if len(outcomes) >= _STUCK and longest_run(outcomes) < 3:
            return "stuck"
        if len(outcomes) >= _STUCK_NEVER_CORRECT and not correct:
            return "stuck"
        if not last_correct and correct:
            return "relapsed"
        if last_correct and lapses(outcomes) and run_at_end(outcomes) < 3:
            return "recovering"
        if outcomes[-4:].count(UNSURE) >= 2:
            return "hesitant"
        if len(outcomes) >= 2 and correct == len(outcomes):
            return "known"
        return "learning"

    def progress(self) -> dict[str, Any]:
        """The columns of the progress row that docs/contract.md defines."""
        outcomes = [answer.outcome for answer in self.answers]
        firsts = [answer.answered_at for answer in self.answers if answer.outcome == CORRECT]
        return {
            "attempts_count": len(outcomes),
            "correct_count": outcomes.count(CORRECT),
            "wrong_count": outcomes.count(WRONG),
            "unsure_count": outcomes.count(UNSURE),
            "correct_run": run_at_end(outcomes),
            "best_run": longest_run(outcomes),
            "lapse_count": lapses(outcomes),
            "first_correct_at": firsts[0] if firsts else None,
            "last_outcome": outcomes[-1],
            "last_answered_at": self.answers[-1].answered_at,
            "pattern": self.pattern,
            **self.memory._asdict(),
        }


def run_at_end(outcomes: Sequence[str]) -> int:
    """The number of correct answers in a row at the end."""
    run = 0
    while run < len(outcomes) and outcomes[-1 - run] == CORRECT:
        run += 1
    return run


def longest_run(outcomes: Sequence[str]) -> int:
    """The largest number of correct answers in a row in the whole history."""
    marks = "".join("+" if outcome == CORRECT else " " for outcome in outcomes)
    return max(map(len, marks.split()), default=0)


def lapses(outcomes: Sequence[str]) -> int:
    """The number of correct answers directly followed by one that is not correct."""
    return sum(
        before == CORRECT and after != CORRECT for before, after in itertools.pairwise(outcomes)
    )


def _grade(answer: Answer) -> int:
    if answer.outcome == CORRECT:
        return fsrs6.GOOD
    return fsrs6.HARD if answer.outcome == UNSURE and answer.is_right else fsrs6.AGAIN
