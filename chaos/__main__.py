"""`python -m chaos`, which `./dev chaos` runs. It exits with 0 only if the checker finds nothing
wrong.
"""

import asyncio
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from chaos import report
from chaos.arguments import parser
from chaos.nemesis import run
from devtools.errors import DevError
from devtools.places import in_home
from devtools.processes import started_at


def main() -> int:
    """Returns 0 if nothing was lost or doubled, 1 if something was, and 130 if it was
    interrupted.
    """
    arguments = parser().parse_args()
    # Hide the clients' errors about the servers that this run kills.
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    folder = _folder(seed)
    console = Console(stderr=True)
    console.print(f"seed {seed}; logs and outboxes in {folder}", soft_wrap=True)

    async def work() -> int:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        outcome = await run(
            seed,
            arguments.seconds,
            pace=arguments.pace,
            rate=arguments.rate,
            patience=arguments.patience,
            only=arguments.only,
            partitions=arguments.partitions,
            failover=arguments.failover,
            folder=folder,
            say=lambda line: console.print(line, soft_wrap=True, highlight=False),
        )
        figures = await asyncio.to_thread(report.figures, outcome, folder)
        report.show(figures, console)
        if arguments.json:
            print(report.as_json(figures))
        return 0 if figures["ok"] else 1

    try:
        return asyncio.run(work())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    except DevError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1


def _folder(seed: int) -> Path:
    """A folder for this run. It deletes those of runs that have ended."""
    for old in in_home("chaos").iterdir():
        if started_at(int(old.name.rpartition("-")[2])) is None:
            shutil.rmtree(old, ignore_errors=True)  # another run may do the same
    return in_home("chaos", f"{seed}-{os.getpid()}")


sys.exit(main())
