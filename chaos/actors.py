"""The processes of a run: started, killed, stopped, and restarted as a supervisor would do.

Each writes a log file of its own, and ends with this process, whatever happens to it.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from devtools.processes import die_with_parent

_RESTART_DELAY: Final = 0.5
"""Seconds before a process that ended is restarted, like compose's `restart: always`."""
_STOP_SECONDS: Final = 40.0
"""Seconds after SIGTERM, more than the worker's own drain timeout."""


class Actor:
    """One process that is kept running as long as it is wanted.

    `exits` counts how it ended: "killed" by this run, "asked" (SIGTERM, exit 0), or "exit N" by
    itself.
    """

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.exits: Counter[str] = Counter()
        self._argv, self._env, self._log = argv, env, log
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._expected: str | None = None
        self._begun = asyncio.Event()

    @property
    def is_wanted(self) -> bool:
        """Whether it should be running."""
        return self._keeper is not None

    @property
    def pid(self) -> int | None:
        """Its process id. None if it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Starts it, and restarts it whenever it ends."""
        if self._keeper is None:
            self._begun.clear()
            self._keeper = asyncio.create_task(self._keep(), name=self.name)
            await self._begun.wait()

    async def stop(self) -> None:
        """Sends SIGTERM, and kill -9 if it does not end in time. It is not restarted."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        self._expected = "asked"
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(keeper), _STOP_SECONDS)
        except TimeoutError:
            self.exits["did not stop"] += 1
            self._signal(signal.SIGKILL)
            await keeper

    async def abort(self) -> None:
        """Sends kill -9. It is not restarted."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            self._expected = "killed"
            self._signal(signal.SIGKILL)
            await keeper

    def kill(self) -> None:
        """Sends kill -9. It is restarted."""
        self._expected = "killed"
        self._signal(signal.SIGKILL)

    def drain(self) -> None:
        """Sends SIGTERM. It drains, and is restarted."""
        self._expected = "asked"
        self._signal(signal.SIGTERM)

    def pause(self) -> None:
        """Sends SIGSTOP. Connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Sends SIGCONT."""
        self._signal(signal.SIGCONT)

    def tell(self, line: str) -> None:
        """Writes a line to its standard input. The line is lost if the process does not run."""
        process = self._process
        if process is not None and process.stdin is not None and process.returncode is None:
            process.stdin.write(f"{line}\n".encode())

    async def _keep(self) -> None:
        while True:
            self._expected = None
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._argv,
                    env=self._env,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # this process decides what happens on Ctrl-C
                    preexec_fn=die_with_parent,
                )
            self._begun.set()
            self._note(await self._process.wait())
            if self._keeper is not asyncio.current_task():
                return
            await asyncio.sleep(_RESTART_DELAY)
            if self._keeper is not asyncio.current_task():
                return

    def _note(self, code: int) -> None:
        if self._expected == "killed" and code == -signal.SIGKILL:
            self.exits["killed"] += 1
        elif self._expected == "asked" and code == 0:
            self.exits["asked"] += 1
        else:
            asked = f" when {self._expected}" if self._expected else ""
            self.exits[f"exit {code}{asked}"] += 1
            with self._log.open("a") as log:
                log.write(f"chaos: ended with {code}{asked} at {time.time():.3f}\n")

    def _signal(self, number: signal.Signals) -> None:
        if (pid := self.pid) is not None:
            os.kill(pid, number)
