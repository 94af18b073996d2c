"""`study-ingest` in processes of its own that can be killed, forked from one that has imported it.

What runs is the command line's own `main`, with an environment, a log and a process id of its
own; only the second that importing takes is spent once.
"""

import asyncio
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from devtools.processes import die_with_parent
from worker.cli import main

_ENDS_WITHIN: Final = 40.0

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([__name__])


class Process:
    """One `study-ingest` command."""

    def __init__(self, command: str, env: Mapping[str, str], log: Path) -> None:
        self.log = log
        log.touch()
        self._process = _forks.Process(target=_run, args=(command, dict(env), log), daemon=True)
        self._process.start()

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    async def kill(self) -> None:
        """kill -9, and waits until it is gone."""
        assert self.is_alive, f"it ended by itself: {self.log.read_text()[-3000:]}"
        self._process.kill()
        assert await self.ended() == -signal.SIGKILL

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    async def ended(self) -> int | None:
        """Waits for its end; the exit code, or minus the signal."""
        await asyncio.to_thread(self._process.join, _ENDS_WITHIN)
        return self._process.exitcode

    async def stop(self) -> None:
        """SIGTERM; it has to end well."""
        self.terminate()
        assert await self.ended() == 0, self.log.read_text()[-3000:]

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log lines of this event so far."""
        said = [json.loads(line) for line in self.log.read_text().splitlines() if line[:1] == "{"]
        return [line for line in said if line["event"] == event]

    def close(self) -> None:
        """Ends it, whatever it does."""
        if self.is_alive:
            self._process.kill()
        self._process.join()
        self._process.close()


def _run(command: str, env: dict[str, str], log: Path) -> None:
    die_with_parent()
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["study-ingest", *command.split()]
    main()
