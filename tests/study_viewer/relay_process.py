"""A viewer's relay as a process, to be killed: run as a module with FILE and URL."""

import asyncio
import sys

from study_viewer import Outbox, Relay
from tests.study_viewer.support import QUICK, VIEWER


async def main(path: str, url: str) -> None:
    with Outbox(path) as outbox:
        await Relay(outbox, url, VIEWER, QUICK).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
