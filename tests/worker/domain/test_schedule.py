"""The schedule is FSRS-6 as published, to the last digit that its authors print."""

import time
from datetime import UTC, datetime, timedelta
from itertools import accumulate

import pytest
from fsrs import Rating
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.words import Outcome
from tests.factories import MONDAY, RIGHT, WRONG, at, history, scored
from tests.worker.domain import naive
from tests.worker.domain.strategies import ANSWERS, MINUTES
from worker.domain.fold import fold
from worker.domain.schedule import (
    SCHEDULER_NAME,
    Memory,
    due_from,
    elapsed_days,
    rating_of,
    retrievability,
    review,
)
from worker.domain.scoring import ScoredAttempt

START = datetime(2022, 11, 29, 12, 30, tzinfo=UTC)


def _studied(letters: str, times: list[datetime]) -> list[Memory]:
    """The memory after each of the answers."""
    progress, memories = None, []
    for attempt, answered_at in zip(history(letters), times, strict=True):
        progress = fold(progress, [attempt._replace(answered_at=answered_at)])
        assert progress is not None
        memories.append(progress.memory)
    return memories


def test_published_memory_state() -> None:
    """py-fsrs and fsrs-rs: again, good x 5, after 0, 0, 1, 3, 8 and 21 days."""
    times = [START + timedelta(days=days) for days in accumulate([0, 0, 1, 3, 8, 21])]

    last = _studied("wccccc", times)[-1]

    assert last.stability == pytest.approx(53.62691, abs=1e-4)
    assert last.difficulty == pytest.approx(6.3574867, abs=1e-4)


def test_published_intervals() -> None:
    """py-fsrs: good x 6, again x 2, good x 5 give 0, 2, 11, 46, 163, 498, 0, 0, 2, 4, 7, 12, 21.

    The zeros are its learning steps of 10 minutes, which this project has not: the answers are
    given at the times that those steps ask for, and every interval in days is the published one.
    """
    published = [0, 2, 11, 46, 163, 498, 0, 0, 2, 4, 7, 12, 21]
    step = timedelta(minutes=10)
    waits = [timedelta(days=days) if days else step for days in published]
    times = [START + sum(waits[:n], timedelta()) for n in range(len(waits))]

    memories = _studied("ccccccwwccccc", times)

    intervals = [
        (memory.due_at - answered_at).days
        for memory, answered_at in zip(memories, times, strict=True)
    ]
    assert [ours for ours, days in zip(intervals, published, strict=True) if days] == [
        days for days in published if days
    ]
    assert all(days >= 1 for days in intervals), "without learning steps, a day at least"


@given(st.lists(st.tuples(MINUTES, ANSWERS), min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_every_history_is_scheduled_as_the_published_formulas_say(
    answers: list[tuple[int, tuple[int | None, bool]]],
) -> None:
    attempts = sorted(
        scored(choice, MONDAY + timedelta(minutes=minutes), unsure=unsure, position=position)
        for position, (minutes, (choice, unsure)) in enumerate(answers)
    )
    progress = fold(None, attempts)
    assert progress is not None

    stability, difficulty, due_at = naive.schedule(attempts)
    assert progress.memory.stability == pytest.approx(stability, rel=1e-9)
    assert progress.memory.difficulty == pytest.approx(difficulty, rel=1e-9)
    assert progress.memory.due_at == due_at


@pytest.mark.parametrize(
    ("attempt", "rating"),
    [
        (scored(RIGHT), Rating.Good),
        (scored(WRONG), Rating.Again),
        (scored(RIGHT, unsure=True), Rating.Hard),
        (scored(WRONG, unsure=True), Rating.Again),
        (scored(None, unsure=True), Rating.Again),
    ],
)
def test_only_a_right_selection_passes_and_unsure_makes_it_hard(
    attempt: ScoredAttempt, rating: Rating
) -> None:
    assert rating_of(attempt) is rating


def test_the_same_history_gives_the_same_schedule_to_the_last_bit() -> None:
    first, again = _twice("cwchuccwcccc", spread=9.7)
    assert first == again


def _twice(letters: str, *, spread: float) -> tuple[Memory, Memory]:
    times = [at(n * spread) for n in range(len(letters))]
    return _studied(letters, times)[-1], _studied(letters, times)[-1]


def test_a_review_never_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's Card without a card_id sleeps for a millisecond: 12 s for the real log."""

    def sleep(seconds: float) -> None:
        raise AssertionError(f"slept {seconds} s")

    monkeypatch.setattr(time, "sleep", sleep)
    for attempt in history("cwhu"):
        review(None, None, attempt)


def test_the_clock_of_the_machine_plays_no_part() -> None:
    long_ago = scored(answered_at=datetime(1970, 1, 1, tzinfo=UTC))
    memory = review(None, None, long_ago)
    assert memory.due_at == datetime(1970, 1, 3, tzinfo=UTC)


def test_the_scheduler_has_one_name_until_it_schedules_differently() -> None:
    """A new name folds every history again: it changes only with package, parameters or days."""
    assert SCHEDULER_NAME == "fsrs-6/6.3.2/e827cad83d79/rounded-days"


def test_retrievability_is_one_at_once_and_nine_tenths_after_the_stability() -> None:
    memory = Memory(stability=10.0, difficulty=5.0, due_at=at(10))
    assert retrievability(memory, at(0), at(0)) == 1
    assert retrievability(memory, at(0), at(10)) == pytest.approx(0.9)
    assert retrievability(memory, at(0), at(10, hours=11)) == pytest.approx(0.9), "whole days"
    assert retrievability(memory, at(0), at(9, hours=12)) == pytest.approx(0.9), "rounded"
    assert retrievability(memory, at(5), at(0)) == 1, "a clock behind the answer"


@pytest.mark.parametrize("letters", ["w" * 60, "c" * 60, "h" * 60, "u" * 60, "cw" * 30])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 400.0])
def test_stability_and_difficulty_stay_within_what_the_table_allows(
    letters: str, spread: float
) -> None:
    for memory in _studied(letters, [START + timedelta(days=n * spread) for n in range(60)]):
        assert 0 < memory.stability < float("inf")
        assert 1 <= memory.difficulty <= 10
        assert memory.due_at > START


def test_outcomes_alone_do_not_make_the_schedule() -> None:
    """An unsure answer with the right selection is a pass, another is not."""
    right, other = history("ch"), history("cu")
    assert right[-1].outcome is other[-1].outcome is Outcome.UNSURE
    stable, shaken = (fold(None, each) for each in (right, other))
    assert stable is not None and shaken is not None
    assert stable.memory.stability > shaken.memory.stability


@pytest.mark.parametrize(
    "earlier", [timedelta(minutes=5), timedelta(minutes=-5), timedelta(hours=11)]
)
def test_a_learner_who_studies_a_little_earlier_each_day_learns_as_well(earlier: timedelta) -> None:
    """With full periods of 24 hours, five minutes earlier each day left a stability of 2.3 days."""
    shifted = [START + n * (timedelta(days=1) - earlier) for n in range(3)]
    steady = [START + n * timedelta(days=1) for n in range(3)]

    for ours, reference in zip(_studied("ccc", shifted), _studied("ccc", steady), strict=True):
        assert (ours.stability, ours.difficulty) == (reference.stability, reference.difficulty)


def test_thirty_correct_answers_on_thirty_days_are_well_known() -> None:
    five_minutes_earlier = [START + n * timedelta(days=1, minutes=-5) for n in range(30)]
    assert _studied("c" * 30, five_minutes_earlier)[-1].stability == pytest.approx(109, abs=1)


@pytest.mark.parametrize(
    ("wait", "days"),
    [
        (timedelta(), 0),
        (timedelta(hours=12) - timedelta.resolution, 0),
        (timedelta(hours=12), 1),
        (timedelta(hours=36) - timedelta.resolution, 1),
        (timedelta(hours=36), 2),
        (timedelta(days=3650), 3650),
    ],
)
def test_elapsed_days_are_rounded(wait: timedelta, days: int) -> None:
    assert elapsed_days(START, START + wait) == days


@given(st.timedeltas(timedelta(), timedelta(days=9_999)))
def test_elapsed_days_are_those_of_the_contract(wait: timedelta) -> None:
    assert elapsed_days(START, START + wait) == (wait + timedelta(hours=12)) // timedelta(days=1)


@given(st.timedeltas(timedelta(), timedelta(days=400)))
def test_a_question_is_due_exactly_when_its_interval_has_elapsed(wait: timedelta) -> None:
    memory = review(None, None, scored(answered_at=START))
    interval = (memory.due_at - START).days
    assert (due_from(memory.due_at) <= START + wait) == (
        elapsed_days(START, START + wait) >= interval
    )
