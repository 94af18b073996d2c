"""The schedule depends only on the seed."""

from chaos.faults import FAULTS
from chaos.schedule import schedule

_KINDS = {fault.kind: fault.seconds for fault in FAULTS}


def test_the_same_seed_gives_the_same_schedule() -> None:
    assert schedule(7, 600, _KINDS, 2.0) == schedule(7, 600, _KINDS, 2.0)
    assert schedule(7, 600, _KINDS, 2.0) != schedule(8, 600, _KINDS, 2.0)


def test_every_kind_comes_before_any_comes_again() -> None:
    plan = schedule(7, 10_000, _KINDS, 2.0)
    first = [planned.kind for planned in plan[: len(_KINDS)]]
    assert sorted(first) == sorted(_KINDS)


def test_faults_begin_in_order_within_the_run_and_last_as_long_as_they_may() -> None:
    plan = schedule(7, 300, _KINDS, 2.0)
    times = [planned.at for planned in plan]
    assert times == sorted(times)
    assert times[0] > 0 and times[-1] < 300
    for planned in plan:
        shortest, longest = _KINDS[planned.kind]
        assert shortest <= planned.seconds <= longest


def test_there_are_at_least_twelve_kinds() -> None:
    assert len(_KINDS) == len(FAULTS) >= 12
