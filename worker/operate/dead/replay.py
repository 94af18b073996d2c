"""`dead replay`: letters go back to the workers, each as the message it once was.

A copy with the viewer's identity is confirmed by the broker in the workers' queue before its
letter is acked. A command that is killed half-way leaves some letters twice, and the second one
is a duplicate; it leaves none lost.
"""

import asyncio
from typing import Final

from worker.broker import copies
from worker.broker.dead_queue import open_dead_queue
from worker.broker.publisher import Publisher
from worker.operate.dead.letters import Letter, Progress, Wanted, letters
from worker.settings import Settings

_AT_ONCE: Final = 100
"""Copies published before their confirms are awaited."""


async def replay(
    settings: Settings, wanted: Wanted, progress: Progress, limit: int | None = None
) -> int:
    """Replays what is `wanted`, oldest first, at most `limit`; returns how many.

    Raises `BrokerAway`, `TopologyError`, or `Unconfirmed` when the broker takes no copy: what had
    been replayed until then is, and the rest is where it was.
    """
    replayed = 0
    async with (
        Publisher(settings, "replay") as publisher,
        open_dead_queue(settings) as queue,
    ):
        waiting: list[Letter] = []
        if limit != 0:
            async for letter in letters(queue, settings, wanted, progress):
                waiting.append(letter)
                if len(waiting) == _AT_ONCE:
                    await _replay(publisher, waiting)
                    replayed += len(waiting)
                    waiting = []
                if replayed + len(waiting) == limit:
                    break
        await _replay(publisher, waiting)
        replayed += len(waiting)
        await queue.count()  # an answer means that the acks have arrived
    return replayed


async def _replay(publisher: Publisher, some: list[Letter]) -> None:
    fates = await asyncio.gather(
        *(copies.replay(publisher, each.delivery, each.envelope) for each in some),
        return_exceptions=True,
    )
    failure: BaseException | None = None
    for letter, fate in zip(some, fates, strict=True):
        if fate is None:
            await letter.delivery.ack()
        else:
            failure = failure or fate
    if failure is not None:
        raise failure
