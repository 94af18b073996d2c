"""The law in the core: whatever the order, grouping and interleaving, one progress comes of it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.words import Outcome
from tests.factories import at, history, scored
from tests.worker.domain.strategies import Session, sessions
from worker.domain.fold import fold
from worker.domain.history import History, is_late


@given(sessions(), st.data())
@settings(max_examples=200, deadline=None)
def test_any_order_in_any_groups_comes_to_one_progress(
    found: list[Session], data: st.DataObject
) -> None:
    """As ingest does it: stored progress is carried on, or the whole history is loaded."""
    ordered = fold(None, sorted(attempt for session in found for attempt in session))
    arriving = data.draw(st.permutations(found))

    stored, log = None, list[Session]()
    while arriving:
        size = data.draw(st.integers(1, len(arriving)))
        group, arriving = arriving[:size], arriving[size:]
        loaded = [attempt for session in log for attempt in session]
        late = stored is None or any(
            is_late(stored, attempt) for session in group for attempt in session
        )
        kept = History(None, loaded) if late else History(stored)
        for session in group:
            changed = kept.add(data.draw(st.permutations(session)))
            log.append(session)
            assert changed.progress == fold(
                None, sorted(attempt for session in log for attempt in session)
            )
        stored = kept.progress

    assert stored == ordered


@given(sessions(), st.data())
@settings(max_examples=100, deadline=None)
def test_before_and_after_are_the_sessions_own_place_in_history(
    found: list[Session], data: st.DataObject
) -> None:
    kept, seen = History(None), list[Session]()
    for session in data.draw(st.permutations(found)):
        change = kept.add(session)
        ahead = [each for other in seen for each in other if each < min(session)]
        assert change.before == fold(None, sorted(ahead))
        assert change.after is max(session).outcome
        seen.append(session)


def test_a_late_session_takes_its_place() -> None:
    first, late, last = history("wcw")
    kept = History(None)
    kept.add([first])
    kept.add([last])

    change = kept.add([late])

    assert change.before == fold(None, [first])
    assert change.after is Outcome.CORRECT
    assert change.progress == fold(None, [first, late, last])
    assert change.progress.lapse_count == 1


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

    progress = History(None, [second, first]).progress

    assert progress is not None
    assert progress.last_answered_at == received
    assert progress.last_outcome is Outcome.CORRECT


def test_sessions_may_interleave() -> None:
    one = [scored(1, at(0), session=1), scored(2, at(2), session=1, position=1)]
    two = [scored(2, at(1), session=2), scored(1, at(3), session=2, position=1)]
    forward, backward = History(None), History(None)
    forward.add(one)
    forward.add(two)
    backward.add(two)
    change = backward.add(one)

    assert forward.progress == backward.progress == fold(None, sorted([*one, *two]))
    assert change.before is None
    assert change.after is Outcome.WRONG
    assert change.progress.last_outcome is Outcome.CORRECT
