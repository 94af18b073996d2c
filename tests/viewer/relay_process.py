"""A viewer's relay as a process, to be killed: `python -m tests.viewer.relay_process FILE URL`."""

import asyncio
import sys

from tests.viewer.support import QUICK, VIEWER
from viewer import Outbox, Relay


async def main(path: str, url: str) -> None:
    with Outbox(path) as outbox:
        await Relay(outbox, url, VIEWER, QUICK).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
