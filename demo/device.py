"""`python -m demo.device FILE URL VIEWER [USER ...]`: a device, as a process of its own.

A device of several users names them.

Each line of its standard input is a batch to record, or a word: `settle` waits until every batch
has its result, and `ask` until the device has the learner's progress. It answers each word with the
same word. At the end of its input it stops, and all that it knew is in its file.
"""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Final

from study_viewer import AttemptBatch, Outbox, Relay

_LONGEST_LINE: Final = 4 * 1024**2


async def main(path: str, url: str, viewer: str, *users: str) -> None:
    """Runs the device."""
    with Outbox(path) as outbox:
        async with Relay(outbox, url, viewer, users=[int(user) for user in users]) as relay:
            async for line in _lines():
                if line == "settle":
                    await relay.until(lambda: not outbox.unsettled(limit=1))
                    print(line, flush=True)
                elif line == "ask":
                    await relay.until_current()
                    print(line, flush=True)
                else:
                    batch = AttemptBatch.model_validate_json(line)
                    with closing(sqlite3.connect(path)) as connection, connection:
                        outbox.record(connection, batch)
                    relay.wake()


async def _lines() -> AsyncIterator[str]:
    reader = asyncio.StreamReader(limit=_LONGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        yield line.decode().strip()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
