"""Every pattern, on both sides of each boundary."""

import pytest
from hypothesis import given, settings

from schemas.words import Pattern
from tests.factories import history
from tests.worker.domain import naive
from tests.worker.domain.strategies import Session, sessions
from worker.domain.fold import Progress, fold
from worker.domain.patterns import pattern_of, wants_review
from worker.domain.policy import Policy

SPREAD = (0, 12, 50, 200)
"""Days far enough apart for a stability of more than three weeks."""


def _folded(letters: str, days: tuple[float, ...] | None = None) -> Progress:
    progress = fold(None, history(letters, days=days))
    assert progress is not None
    return progress


@pytest.mark.parametrize(
    ("letters", "pattern"),
    [
        ("c", Pattern.LEARNING),
        ("w", Pattern.LEARNING),
        ("u", Pattern.LEARNING),
        ("ww", Pattern.LEARNING),
        ("wwww", Pattern.LEARNING),
        ("wwwww", Pattern.STUCK),
        ("uwhuw", Pattern.STUCK),
        ("wwwc", Pattern.LEARNING),
        ("wwwwc", Pattern.LEARNING),
        ("cc", Pattern.KNOWN),
        ("cccc", Pattern.KNOWN),
        ("wcc", Pattern.LEARNING),
        ("wccc", Pattern.LEARNING),
        ("cw", Pattern.RELAPSED),
        ("ch", Pattern.RELAPSED),
        ("wcu", Pattern.RELAPSED),
        ("cwc", Pattern.RECOVERING),
        ("cwcc", Pattern.RECOVERING),
        ("cwccc", Pattern.LEARNING),
        ("uu", Pattern.HESITANT),
        ("uhc", Pattern.HESITANT),
        ("uucc", Pattern.HESITANT),
        ("uuccc", Pattern.LEARNING),
        ("uwc", Pattern.LEARNING),
        ("cucuccc", Pattern.LEARNING),
        ("cwcwcw", Pattern.RELAPSED),
        ("cwcwcwc", Pattern.RECOVERING),
        ("cwcwcwcw", Pattern.LEECH),
        ("cwcwcwcwc", Pattern.LEECH),
        ("cwcwcwcwccc", Pattern.LEECH),
        ("wwccwwwcc", Pattern.RECOVERING),
        ("wwccwwwccw", Pattern.STUCK),
        ("wwccwwwccc", Pattern.LEARNING),
        ("wwcccwwwww", Pattern.RELAPSED),
        ("wwwwwwwwcc", Pattern.STUCK),
    ],
)
def test_the_first_pattern_that_fits(letters: str, pattern: Pattern) -> None:
    progress = _folded(letters)
    assert pattern_of(progress, Policy()) is pattern
    assert naive.pattern(history(letters), progress.memory.stability) is pattern


def test_mastered_needs_the_last_three_correct_on_three_days_and_a_stability() -> None:
    mastered = _folded("cccc", SPREAD)
    assert mastered.memory.stability > 21
    assert pattern_of(mastered, Policy()) is Pattern.MASTERED

    same_day = _folded("cccc", (0, 50, 200, 200.1))
    assert same_day.memory.stability > 21
    assert pattern_of(same_day, Policy()) is Pattern.KNOWN

    only_two = _folded("cccwcc", (*SPREAD, 250, 400))
    assert pattern_of(only_two, Policy(mastered_stability_days=0.1)) is Pattern.RECOVERING


def test_mastered_begins_at_the_stability_itself() -> None:
    progress = _folded("ccc")
    exact = progress._replace(memory=progress.memory._replace(stability=21.0))
    below = progress._replace(memory=progress.memory._replace(stability=20.999))
    assert pattern_of(exact, Policy()) is Pattern.MASTERED
    assert pattern_of(below, Policy()) is Pattern.KNOWN


def test_mastered_comes_before_leech_and_leech_before_stuck() -> None:
    assert (
        pattern_of(_folded("cwcwcwcwccc"), Policy(mastered_stability_days=0.1)) is Pattern.MASTERED
    )
    assert pattern_of(_folded("cwcwcwcwww"), Policy()) is Pattern.LEECH


@pytest.mark.parametrize(
    ("letters", "policy", "pattern"),
    [
        ("cw", Policy(leech_lapses=1), Pattern.LEECH),
        ("wcw", Policy(stuck_attempts=3), Pattern.STUCK),
        ("w", Policy(stuck_attempts_never_correct=1), Pattern.STUCK),
        ("ccc", Policy(mastered_stability_days=2.0), Pattern.MASTERED),
    ],
)
def test_thresholds_are_settings(letters: str, policy: Policy, pattern: Pattern) -> None:
    assert pattern_of(_folded(letters), policy) is pattern


@given(sessions(max_sessions=14))
@settings(max_examples=200, deadline=None)
def test_every_history_has_the_pattern_that_the_contract_defines(found: list[Session]) -> None:
    attempts = [attempt for session in found for attempt in session]
    progress = fold(None, sorted(attempts))
    assert progress is not None
    expected = naive.pattern(attempts, progress.memory.stability)
    assert pattern_of(progress, Policy()) is expected


def test_a_review_is_wanted_of_what_goes_wrong() -> None:
    assert {pattern for pattern in Pattern if wants_review(pattern)} == {
        Pattern.RELAPSED,
        Pattern.STUCK,
        Pattern.LEECH,
    }
