"""The law in the core: the progress does not depend on order, grouping and interleaving."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import worker.domain.history as history_module
from schemas.words import Outcome
from tests.factories import at, history, scored
from tests.worker.domain import naive
from tests.worker.domain.strategies import Session, sessions
from worker.domain.fold import Progress, fold
from worker.domain.history import History, is_late, place
from worker.domain.scoring import ScoredAttempt


@given(sessions(), st.data())
@settings(max_examples=200, deadline=None)
def test_any_order_in_any_groups_comes_to_one_progress(
    found: list[Session], data: st.DataObject
) -> None:
    """As ingest does it: stored progress is carried on, or the whole history is loaded."""
    ordered = fold(None, sorted(attempt for session in found for attempt in session))
    arriving = data.draw(st.permutations(found))

    stored, log = None, list[ScoredAttempt]()
    while arriving:
        size = data.draw(st.integers(1, len(arriving)))
        group, arriving = arriving[:size], arriving[size:]
        new = [attempt for session in group for attempt in session]
        shuffled = [data.draw(st.permutations(session)) for session in group]
        late = stored is not None and any(is_late(stored, attempt) for attempt in new)
        placed = place(None, log, shuffled) if late else place(stored, (), shuffled)
        log += new
        assert naive.differences(placed.progress, log) == []
        assert placed.progress == fold(None, sorted(log))
        for session, change in zip(group, placed.changes, strict=True):
            ahead = naive.ahead(session, log)
            assert change.before == fold(None, ahead)
            assert change.before is None or naive.differences(change.before, ahead) == []
            assert change.after is naive.in_order(session)[-1].outcome
        stored = placed.progress

    assert stored == ordered


@given(sessions(), st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_remembered_gives_the_same_as_the_whole_history(
    found: list[Session], data: st.DataObject
) -> None:
    known, log = History(None, ()), list[ScoredAttempt]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_module, "_LATEST_MIN", data.draw(st.integers(1, 3)))
        patch.setattr(history_module, "_LATEST_MAX", data.draw(st.integers(3, 6)))
        for session in data.draw(st.permutations(found)):
            if not all(map(known.reaches, session)):
                known = History(None, log)
            placed, whole = place(*known, [session]), place(None, log, [session])
            assert placed[:2] == whole[:2]
            given, known = known, known.with_all([session])
            assert placed.history is None if not given.attempts else placed.history == known
            log = sorted([*log, *session])
            beyond = len(log) - len(known.attempts)
            assert known == History(fold(None, log[:beyond]), log[beyond:])
            assert len(known.attempts) <= 6


@given(sessions(max_sessions=6, max_size=2))
@settings(max_examples=50, deadline=None)
def test_a_group_is_folded_once(found: list[Session]) -> None:
    """However its sessions lie, and whatever lies before them."""
    stored, sessions_ = found[0], found[1:] or found
    folded = list[ScoredAttempt]()

    def counted(progress: Progress | None, attempts: Sequence[ScoredAttempt]) -> Progress | None:
        folded.extend(attempts)
        return fold(progress, attempts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_module, "fold", counted)
        place(None, stored if found[1:] else (), sessions_)

    assert folded == sorted(attempt for session in found for attempt in session)


def test_a_late_session_takes_its_place() -> None:
    first, late, last = history("wcw")

    placed = place(None, [first, last], [[late]])

    assert placed.changes == [(fold(None, [first]), Outcome.CORRECT)]
    assert placed.progress == fold(None, [first, late, last])
    assert placed.progress.lapse_count == 1


def test_sessions_of_a_group_are_judged_by_each_other_whichever_came_first() -> None:
    first, second, third = history("wcw")

    forward, backward = (
        place(None, (), [[first], [second], [third]]),
        place(None, (), [[third], [second], [first]]),
    )

    assert forward.progress == backward.progress
    assert forward.changes == [*reversed(backward.changes)]
    assert [change.before for change in forward.changes] == [
        None,
        fold(None, [first]),
        fold(None, [first, second]),
    ]


def test_equal_times_are_late_so_that_the_tie_is_broken_by_the_whole_order() -> None:
    stored = fold(None, [scored(answered_at=at(1))])
    assert stored is not None
    assert is_late(stored, scored(answered_at=at(0)))
    assert is_late(stored, scored(answered_at=at(1)))
    assert not is_late(stored, scored(answered_at=at(1, minutes=0.001)))


def test_answers_clamped_to_one_receipt_keep_the_order_in_which_they_were_sent() -> None:
    received = at(0)
    second = scored(1, at(2), received_at=received, session=1)
    first = scored(2, at(1), received_at=received, session=2)

    progress = place(None, (), [[second], [first]]).progress

    assert progress.last_answered_at == received
    assert progress.last_outcome is Outcome.CORRECT


def test_sessions_may_interleave() -> None:
    one = [scored(1, at(0), session=1), scored(2, at(2), session=1, position=1)]
    two = [scored(2, at(1), session=2), scored(1, at(3), session=2, position=1)]

    forward, backward = place(None, (), [one, two]), place(None, two, [one])

    assert forward.progress == backward.progress == fold(None, sorted([*one, *two]))
    [change] = backward.changes
    assert change == forward.changes[0] == (None, Outcome.WRONG)
    assert forward.changes[1].before == fold(None, one[:1])
    assert backward.progress.last_outcome is Outcome.CORRECT
