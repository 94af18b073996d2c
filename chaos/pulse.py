"""The pulse: the times at which the database committed batches, observed from outside.

It looks at the newest attempt many times a second, past every proxy. A database that is unreachable
has no pulse.
"""

import asyncio
import time
from bisect import bisect_left
from contextlib import suppress
from typing import Final

import asyncpg

from chaos.stage import Stage

_INTERVAL: Final = 0.05
"""Seconds between looks, which is the precision of the times."""
_NEWEST: Final = "SELECT coalesce(max(id), 0) FROM study_question_attempts"


class Pulse:
    """`beats` are the times (`time.monotonic`) at which it saw something new in the primary."""

    def __init__(self, stage: Stage) -> None:
        self.beats: list[float] = []
        self._stage = stage

    async def run(self) -> None:
        """Looks until it is cancelled."""
        newest = 0
        while True:
            try:
                connection = await asyncpg.connect(self._stage.postgres.url, timeout=2)
                try:
                    while True:
                        found = await connection.fetchval(_NEWEST, timeout=2)
                        if found != newest:
                            newest = found
                            self.beats.append(time.monotonic())
                        await asyncio.sleep(_INTERVAL)
                finally:
                    with suppress(Exception):
                        await connection.close(timeout=0.5)
            except Exception:  # noqa: BLE001  # whatever a dying server makes of an answer
                await asyncio.sleep(_INTERVAL)

    def first_after(self, moment: float) -> float | None:
        """Seconds from `moment` to the next beat. None if there was none."""
        place = bisect_left(self.beats, moment)
        return self.beats[place] - moment if place < len(self.beats) else None

    def longest_pause(self) -> float:
        """The longest time in seconds between two beats."""
        return max(
            (after - before for before, after in zip(self.beats, self.beats[1:], strict=False)),
            default=0.0,
        )
