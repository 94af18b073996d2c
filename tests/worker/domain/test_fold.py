"""Folding one attempt at a time gives the progress that docs/contract.md defines."""

from hypothesis import given, settings

from schemas.words import Outcome
from tests.factories import at, history
from tests.worker.domain import naive
from tests.worker.domain.strategies import Session, sessions
from worker.domain.fold import Progress, fold


def _folded(letters: str, days: list[float] | None = None) -> Progress:
    progress = fold(None, history(letters, days=days))
    assert progress is not None
    return progress


@given(sessions())
@settings(max_examples=200, deadline=None)
def test_the_fold_equals_the_definition_in_the_contract(found: list[Session]) -> None:
    attempts = [attempt for session in found for attempt in session]
    progress = fold(None, sorted(attempts))
    assert progress is not None
    assert naive.differences(progress, attempts) == []


def test_an_empty_history_has_no_progress() -> None:
    assert fold(None, []) is None


def test_a_first_answer_sets_every_field() -> None:
    progress = _folded("u")
    assert progress[:10] == (1, 0, 0, 1, 0, 0, 0, 1, 0, None)
    assert progress.last_outcome is Outcome.UNSURE
    assert progress.last_answered_at == at(0)


def test_a_lapse_is_a_correct_answer_directly_followed_by_one_that_is_not() -> None:
    assert _folded("cw").lapse_count == 1
    assert _folded("cu").lapse_count == 1
    assert _folded("ch").lapse_count == 1, "unsure is not correct, though it passes"
    assert _folded("cww").lapse_count == 1
    assert _folded("wcwcuc").lapse_count == 2
    assert _folded("wuw").lapse_count == 0


def test_the_run_is_of_correct_answers_at_the_end() -> None:
    assert (_folded("ccwcc").correct_run, _folded("ccwcc").best_run) == (2, 2)
    assert (_folded("cccw").correct_run, _folded("cccw").best_run) == (0, 3)
    assert (_folded("cch").correct_run, _folded("cch").best_run) == (0, 2)


def test_the_spaced_run_starts_again_with_a_second_answer_on_the_same_day() -> None:
    assert _folded("ccc").spaced_run == 3
    assert _folded("ccc", [0, 0.1, 1]).spaced_run == 2
    assert _folded("ccc", [0, 1, 1.1]).spaced_run == 1
    assert _folded("cwc").spaced_run == 1
    assert _folded("wccc", [0, 0.1, 1, 2]).spaced_run == 3


def test_the_first_correct_answer_is_remembered() -> None:
    assert _folded("wwcwc").first_correct_at == at(2)
    assert _folded("wuh").first_correct_at is None


def test_unsure_among_the_last_four_is_kept_newest_first() -> None:
    assert _folded("uccu").recent_unsure == 0b1001
    assert _folded("ucccc").recent_unsure == 0
    assert _folded("uuuuuuu").recent_unsure == 0b1111


@given(sessions())
@settings(max_examples=50, deadline=None)
def test_continuing_a_fold_equals_folding_everything_again(found: list[Session]) -> None:
    attempts = sorted(attempt for session in found for attempt in session)
    whole = fold(None, attempts)
    for cut in range(len(attempts) + 1):
        assert fold(fold(None, attempts[:cut]), attempts[cut:]) == whole
