"""The summary of a session that its viewer gets: six counts."""

from collections.abc import Iterable
from typing import NamedTuple

from schemas.words import CORRECT, UNSURE, WRONG, Outcome
from worker.domain.history import Change


class Summary(NamedTuple):
    """The numbers of attempts by outcome, and of questions by how the session changed them."""

    correct: int
    wrong: int
    unsure: int
    newly_correct: int
    recovered: int
    relapsed: int


def summarize(outcomes: Iterable[Outcome], changes: Iterable[Change]) -> Summary:
    """Counts the `outcomes` of the session's attempts, and its `changes`, one for each question."""
    told = list(outcomes)
    newly_correct = recovered = relapsed = 0
    for before, after in changes:
        known_before = before is not None and before.last_outcome is CORRECT
        ever_before = before is not None and before.correct_count > 0
        if after is CORRECT:
            newly_correct += not ever_before
            recovered += ever_before and not known_before
        else:
            relapsed += known_before
    return Summary(
        told.count(CORRECT),
        told.count(WRONG),
        told.count(UNSURE),
        newly_correct,
        recovered,
        relapsed,
    )
