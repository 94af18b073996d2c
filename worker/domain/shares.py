"""Which worker consumes which partition, as a pure function of who consumes what now.

Every worker computes the shares of all, and acts on its own. So nobody coordinates: as long as they
see the same leases, they compute the same shares, and no two workers take the same partition.
"""

from collections.abc import Collection


def shares(
    workers: Collection[str], partitions: Collection[str], leases: Collection[tuple[str, str]]
) -> dict[str, frozenset[str]]:
    """The partitions that each of the `workers` should consume now.

    `leases` has a (partition, worker) for each partition that a worker consumes. A worker keeps
    what it has, up to its fair share: then no two shares differ by more than one. What it has too
    much becomes free only after it has stopped to consume it, and then others take it. Of several
    workers that consume one partition, the first by name keeps it.
    """
    has: dict[str, list[str]] = {worker: [] for worker in sorted(workers)}
    free = []
    for partition in sorted(partitions):
        holders = [worker for leased, worker in leases if leased == partition and worker in has]
        if holders:
            has[min(holders)].append(partition)
        else:
            free.append(partition)

    # Those that have the most may have one more than the others, so that the fewest move.
    low, with_one_more = divmod(len(partitions), len(has))
    by_number = sorted(has, key=lambda worker: -len(has[worker]))
    most = {worker: low + (place < with_one_more) for place, worker in enumerate(by_number)}

    keeps = {worker: partitions[: most[worker]] for worker, partitions in has.items()}
    for partition in free:
        open_to = [worker for worker in keeps if len(keeps[worker]) < most[worker]]
        if not open_to:
            break  # cannot happen before a worker that has too much has given it up
        keeps[min(open_to, key=lambda worker: len(keeps[worker]))].append(partition)
    return {worker: frozenset(partitions) for worker, partitions in keeps.items()}
