"""What all private servers have in common: a folder, a process in it, and how it is stopped and
paused.
"""

import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

from devtools import instances
from devtools.processes import freeze, gone, kill_tree, our_process, send, thaw


class Running(ABC):
    """Something that is started and closed. As a context, it runs inside and is closed
    afterwards.
    """

    @abstractmethod
    def start(self) -> Self:
        """Start, or wait for something that is starting. Return when clients can connect.

        Raises DevError if that takes too long.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop it, and remove its data if it is disposable."""

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


class Server(Running):
    """One server.

    `folder` keeps its data; None means a disposable one.
    """

    name: ClassVar[str]
    stopped_by: ClassVar[signal.Signals]

    def __init__(self, folder: Path | None) -> None:
        self.disposable = folder is None
        self.folder = folder or instances.new_folder(self.name)

    @property
    def pid(self) -> int | None:
        """The main process's id. None if it does not run."""
        return our_process(self.folder / "server.pid", self.folder)

    def alive(self) -> bool:
        """Whether its process runs, ready or not."""
        return self.pid is not None

    @abstractmethod
    def ready(self) -> bool:
        """Whether it runs and clients can connect."""

    def stop(self, seconds: float = 30) -> None:
        """Stop it cleanly, or with kill -9 after that many seconds."""
        if pid := self.pid:
            thaw(pid)
            send(pid, self.stopped_by)
            if not gone(pid, seconds):
                kill_tree(pid)
        self._tidy()

    def kill(self) -> None:
        """Kill the whole server with kill -9, all of its processes at once, like a power cut."""
        if pid := self.pid:
            kill_tree(pid)

    def pause(self) -> None:
        """Send SIGSTOP to the whole server: connections stay open, and nothing answers."""
        if pid := self.pid:
            freeze(pid)

    def resume(self) -> None:
        """Send SIGCONT after `pause`."""
        if pid := self.pid:
            thaw(pid)

    def restart(self) -> Self:
        """Stop cleanly and start again, on the same ports."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """Stop it. A disposable one is killed, and its data removed."""
        if self.disposable:
            self.kill()
            self._tidy()
            instances.remove(self.folder)
        else:
            self.stop()

    @abstractmethod
    def _tidy(self) -> None:
        """Remove what outlives the main process."""
