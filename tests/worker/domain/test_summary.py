"""The six counts of a session that its viewer gets."""

import pytest
from hypothesis import given, settings

from schemas.words import Outcome
from tests.factories import history
from tests.worker.domain.strategies import Session, sessions
from worker.domain.history import Change, place
from worker.domain.summary import Summary, summarize


def _change(before: str, session: str) -> Change:
    letters = history(before + session)
    uuid = letters[-1].client_session_uuid
    new = [
        each._replace(client_session_uuid=uuid, position=position)
        for position, each in enumerate(letters[len(before) :])
    ]
    [change] = place(None, letters[: len(before)], [new]).changes
    return change


@pytest.mark.parametrize(
    ("before", "session", "newly_correct", "recovered", "relapsed"),
    [
        ("", "c", 1, 0, 0),
        ("", "w", 0, 0, 0),
        ("", "u", 0, 0, 0),
        ("", "wc", 1, 0, 0),
        ("", "cw", 0, 0, 0),
        ("w", "c", 1, 0, 0),
        ("h", "c", 1, 0, 0),
        ("c", "c", 0, 0, 0),
        ("c", "w", 0, 0, 1),
        ("c", "u", 0, 0, 1),
        ("c", "wc", 0, 0, 0),
        ("c", "cw", 0, 0, 1),
        ("cw", "c", 0, 1, 0),
        ("cw", "w", 0, 0, 0),
        ("cw", "cw", 0, 0, 0),
        ("cu", "wwc", 0, 1, 0),
    ],
)
def test_a_summary_compares_the_state_before_and_after_the_session(
    before: str, session: str, newly_correct: int, recovered: int, relapsed: int
) -> None:
    summary = summarize([], [_change(before, session)])
    assert summary == Summary(0, 0, 0, newly_correct, recovered, relapsed)


def test_attempts_are_counted_by_outcome_and_questions_by_change() -> None:
    outcomes = [Outcome.CORRECT, Outcome.CORRECT, Outcome.WRONG, Outcome.UNSURE]
    changes = [_change("", "c"), _change("cw", "c"), _change("c", "w"), _change("c", "u")]
    assert summarize(outcomes, changes) == Summary(2, 1, 1, 1, 1, 2)


@given(sessions(interleaving=False))
@settings(max_examples=200, deadline=None)
def test_newly_correct_and_recovered_minus_relapsed_is_the_change_of_known_questions(
    found: list[Session],
) -> None:
    """Holds while sessions do not interleave, also when they arrive late."""
    arriving = found[::2] + found[1::2]
    for session, change in zip(arriving, place(None, (), arriving).changes, strict=True):
        summary = summarize([each.outcome for each in session], [change])
        known_before = change.before is not None and change.before.last_outcome is Outcome.CORRECT
        known_after = change.after is Outcome.CORRECT
        assert known_after - known_before == (
            summary.newly_correct + summary.recovered - summary.relapsed
        )
        assert sum(summary[:3]) == len(session)
