"""`dead discard`: letters that nobody needs are taken away, and nothing else is.

What is to go was looked at before: a letter that came since then stays.
"""

from collections.abc import Set

from worker.broker.dead_queue import open_dead_queue
from worker.operate.dead.letters import Progress, Wanted, letters
from worker.settings import Settings


async def discard(settings: Settings, keys: Set[bytes], progress: Progress) -> int:
    """Acks the letters with these keys (`Letter.key`); returns how many.

    Raises `BrokerAway`, `TopologyError`; the letters that were not reached stay.
    """
    discarded = 0
    if keys:
        async with open_dead_queue(settings) as queue:
            async for letter in letters(queue, settings, Wanted(), progress):
                if letter.key in keys:
                    await letter.delivery.ack()
                    discarded += 1
            await queue.count()  # an answer means that the acks have arrived
    return discarded
