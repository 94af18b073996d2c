"""Every partition gets one worker, whatever the workers saw of each other before."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from worker.domain.shares import shares

WORKERS = [f"w{number}" for number in range(9)]
PARTITIONS = [f"study.attempts.{number}" for number in range(1, 25)]

some_workers = st.sets(st.sampled_from(WORKERS), min_size=1)
some_partitions = st.sets(st.sampled_from(PARTITIONS))
some_leases = st.sets(st.tuples(st.sampled_from(PARTITIONS), st.sampled_from(WORKERS)))

Leases = set[tuple[str, str]]


def _leases(by_worker: dict[str, frozenset[str]]) -> Leases:
    return {(each, worker) for worker, share in by_worker.items() for each in share}


def _round(leases: Leases, workers: Iterable[str], partitions: set[str]) -> Leases:
    """Each worker looks at what is there at its turn, and acts on its own share."""
    workers = list(workers)
    for worker in workers:
        share = shares(workers, partitions, leases)[worker]
        others = {lease for lease in leases if lease[1] != worker}
        leases = others | {(partition, worker) for partition in share}
    return leases


@given(some_workers, some_partitions, some_leases)
def test_no_two_shares_have_a_partition_in_common(
    workers: set[str], partitions: set[str], leases: Leases
) -> None:
    found = shares(workers, partitions, leases)
    assert found.keys() == workers
    taken = [partition for share in found.values() for partition in share]
    assert len(taken) == len(set(taken))
    assert set(taken) <= partitions


@given(some_workers, some_partitions, some_leases)
def test_a_worker_takes_only_what_nobody_consumes(
    workers: set[str], partitions: set[str], leases: Leases
) -> None:
    held = {partition for partition, worker in leases if worker in workers}
    for worker, share in shares(workers, partitions, leases).items():
        assert all((each, worker) in leases or each not in held for each in share)


@given(some_workers, some_partitions, some_leases)
def test_a_worker_gives_up_only_what_is_more_than_its_share(
    workers: set[str], partitions: set[str], leases: Leases
) -> None:
    fair = -(-len(partitions) // len(workers))
    for worker, share in shares(workers, partitions, leases).items():
        kept = {
            each
            for each, holder in leases
            if holder == worker
            and each in partitions
            and all(other >= worker for at, other in leases if at == each and other in workers)
        }
        assert len(share) <= fair
        assert kept <= share or len(share) in (fair, len(partitions) // len(workers))


@given(some_partitions, some_leases, st.permutations(WORKERS), st.integers(1, len(WORKERS)))
def test_after_three_rounds_each_partition_has_one_worker_and_the_shares_are_even(
    partitions: set[str], leases: Leases, order: list[str], count: int
) -> None:
    workers = order[:count]
    leases = {lease for lease in leases if lease[1] in workers}
    for _ in range(3):
        leases = _round(leases, workers, partitions)
    assert sorted(partition for partition, _ in leases) == sorted(partitions)
    numbers = [sum(worker == each for _, worker in leases) for each in workers]
    assert max(numbers) - min(numbers) <= 1
    assert _round(leases, workers, partitions) == leases


@given(some_partitions, some_workers)
def test_workers_that_see_the_same_take_everything_at_once(
    partitions: set[str], workers: set[str]
) -> None:
    """Nobody has anything, as after a restart of all: one look is enough."""
    found = shares(workers, partitions, set())
    assert set().union(*found.values()) == partitions
    assert shares(workers, partitions, _leases(found)) == found


def test_the_partitions_of_a_dead_worker_go_to_the_others_and_nothing_else_moves() -> None:
    partitions = PARTITIONS[:6]
    leases = _leases({"a": frozenset(partitions[:2]), "b": frozenset(partitions[2:4])})
    found = shares(["a", "b"], partitions, leases)
    assert found["a"] >= set(partitions[:2])
    assert found["b"] >= set(partitions[2:4])
    assert found["a"] | found["b"] == set(partitions)
