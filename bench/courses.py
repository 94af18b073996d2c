"""The courses: two states of the database, each with a long and a short list of batches.

*fresh* has no progress yet. In *half* every user has answered half of their questions before. The
short list is for contenders that would need a minute for the long one. Both lists begin with
batches for warming up, and each has its own reference.
"""

from collections.abc import Sequence
from typing import NamedTuple

from bench import floor, reference, rows
from bench.race import Course
from bench.stage import Stage
from bench.workload import Shape, batches, earlier

FRESH, HALF = "fresh", "half"


class Sizes(NamedTuple):
    """How much is ingested; all are multiples of the floor's group."""

    shape: Shape = Shape()
    states: Sequence[str] = (FRESH, HALF)
    warm_up: int = 50
    long_warm_up: int = 250
    """Of the long course: more than one worker's prefetch, which would take them all."""
    long: int = 2_000
    """No more: half of the questions would be answered by the end, and *fresh* would not be."""
    short: int = 250


async def worlds(stage: Stage, sizes: Sizes) -> None:
    """Makes the states that are asked for; there is always the fresh one."""
    await stage.world(FRESH, sizes.shape)
    if HALF not in sizes.states:
        return
    await stage.copy(HALF, FRESH)
    await reference.ingest(stage, HALF, earlier(sizes.shape, share=0.5))
    connection = await stage.connect(HALF)
    try:
        await connection.execute("TRUNCATE outbox")  # long relayed
    finally:
        await connection.close()
    await stage.settle(HALF)


async def course(stage: Stage, state: str, sizes: Sizes, *, short: bool) -> Course:
    """Ingests the batches once, to know the right rows; the long list is the floor's too."""
    warm_up = sizes.warm_up if short else sizes.long_warm_up
    count = sizes.short if short else sizes.long
    everything = batches(sizes.shape, warm_up + count, seed="race", day=30)
    await stage.copy("reference", state)
    await reference.ingest(stage, "reference", everything)
    connection = await stage.connect("reference")
    try:
        expected = await rows.digests(connection)
    finally:
        await connection.close()
    if not short:
        await floor.prepare(stage, "reference", state, f"floor_{state}", everything)
    return Course(state, state, everything[:warm_up], everything[warm_up:], expected)
