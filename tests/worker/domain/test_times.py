"""When an answer counts as given: as sent, unless that can't be true."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.words import TimeWas
from tests.factories import MONDAY
from worker.domain.times import effective_times

EARLIEST = datetime(2015, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
RECEIVED = MONDAY + timedelta(days=7)
T1, T2, T3 = (MONDAY + number * MINUTE for number in range(3))


def times(*sent: datetime | str | None) -> list[datetime]:
    """The effective times of a session; a text is one that can't be read."""
    at, _ = _judged(*sent)
    return at


def _judged(*sent: datetime | str | None) -> tuple[list[datetime], list[TimeWas | None]]:
    read = [each if isinstance(each, datetime) else None for each in sent]
    texts = [each.isoformat() if isinstance(each, datetime) else each for each in sent]
    at, was = effective_times(read, texts, RECEIVED, EARLIEST)
    return [*at], [*was]


def test_times_that_can_be_true_stay() -> None:
    assert _judged(T2, T1, EARLIEST, RECEIVED) == ([T2, T1, EARLIEST, RECEIVED], [None] * 4)


@pytest.mark.parametrize(
    ("sent", "was"),
    [
        (None, TimeWas.MISSING),
        ("yesterday", TimeWas.UNREADABLE),
        (EARLIEST - timedelta.resolution, TimeWas.TOO_EARLY),
        (datetime(1, 1, 1, tzinfo=UTC), TimeWas.TOO_EARLY),
        (RECEIVED + timedelta.resolution, TimeWas.IN_THE_FUTURE),
        (datetime(9999, 12, 31, tzinfo=UTC), TimeWas.IN_THE_FUTURE),
    ],
)
def test_one_that_cannot_becomes_its_neighbors_and_it_says_why(
    sent: datetime | str | None, was: TimeWas
) -> None:
    assert _judged(sent, T2) == ([T2, T2], [was, None])
    assert _judged(T1, sent, T3) == ([T1, T1, T3], [None, was, None])
    assert _judged(T1, sent) == ([T1, T1], [None, was])
    assert _judged(sent) == ([RECEIVED], [was])


def test_the_neighbor_is_the_nearest_before_else_the_nearest_after() -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert times(epoch, None, T2, epoch, "?", T3, None) == [T2, T2, T2, T2, T2, T3, T3]
    assert times(epoch, None, "?") == [RECEIVED] * 3


wild = st.datetimes(timezones=st.just(UTC)) | st.none()
credible = st.timedeltas(timedelta(), RECEIVED - EARLIEST).map(lambda since: EARLIEST + since)


@given(st.lists(wild | credible, min_size=1, max_size=8))
@settings(deadline=None)
def test_every_time_can_be_true_and_is_one_that_was_sent_or_the_receipt(
    sent: list[datetime | None],
) -> None:
    at, was = _judged(*sent)
    as_sent = {each for each in sent if each is not None}
    for before, now, why in zip(sent, at, was, strict=True):
        assert EARLIEST <= now <= RECEIVED
        assert now in as_sent | {RECEIVED}
        assert (now == before) == (why is None) or (why is None) is (before == now)
        assert (why is None) == (before is not None and EARLIEST <= before <= RECEIVED)


@given(st.lists(wild | credible, min_size=1, max_size=8))
@settings(deadline=None)
def test_to_judge_the_judged_changes_nothing(sent: list[datetime | None]) -> None:
    at, _ = _judged(*sent)
    assert _judged(*at) == (at, [None] * len(at))
