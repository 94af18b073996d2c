"""A contender's processes: started, stopped while the queue is filled, measured, ended.

Each contender is one process group, so that processes that it starts count and end with it. It
reads Linux's /proc.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

from bench.errors import BenchError
from devtools.processes import die_with_parent

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_STOP_SECONDS: Final = 40.0


class Usage(NamedTuple):
    """What all processes of a contender have used so far, and hold now."""

    cpu: float
    """Seconds, user and system."""
    memory: int
    """Resident bytes."""


class Processes:
    """`with Processes(...) as group:` runs commands side by side, each a group of processes."""

    def __init__(
        self, commands: Sequence[Sequence[str]], environment: Mapping[str, str], log: Path
    ) -> None:
        self._commands = commands
        self._environment = environment
        self._log = log
        self._leaders: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            for command in self._commands:
                self._leaders.append(
                    subprocess.Popen(
                        command,
                        env={**os.environ, **self._environment},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        process_group=0,
                        # A run that is killed must leave none of them on the servers.
                        preexec_fn=die_with_parent,
                    )
                )
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        for leader in self._leaders:
            leader.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for leader in self._leaders:
            with suppress(subprocess.TimeoutExpired):
                leader.wait(max(0.0, deadline - time.monotonic()))
            self._signal(leader, signal.SIGKILL)
            leader.wait()

    def check(self) -> None:
        """Raises `BenchError` when one has ended."""
        for leader in self._leaders:
            if leader.poll() is not None:
                last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
                raise BenchError(f"{leader.args!r} ended early: {''.join(last)} (log: {self._log})")

    def are_over(self) -> bool:
        """Whether every one has ended."""
        return all(leader.poll() is not None for leader in self._leaders)

    def failed(self) -> bool:
        """Whether one has ended with another code than 0."""
        return any(leader.poll() for leader in self._leaders)

    def hold(self) -> None:
        """Stops all of them where they are."""
        for leader in self._leaders:
            self._signal(leader, signal.SIGSTOP)

    def release(self) -> None:
        """Lets them go on."""
        for leader in self._leaders:
            self._signal(leader, signal.SIGCONT)

    def usage(self) -> Usage:
        """Of all that live."""
        groups = {leader.pid for leader in self._leaders}
        cpu, memory = 0.0, 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # The name, in brackets, may hold anything.
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) in groups:
                    cpu += (int(fields[11]) + int(fields[12])) * _TICK
                    memory += int(fields[21]) * _PAGE
        return Usage(cpu, memory)

    def _signal(self, leader: subprocess.Popen[bytes], number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, number)
