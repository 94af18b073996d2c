"""State that outlives one call of ./dev: locks, small JSON files, ports.

A lock is the kernel's (flock). It ends with the processes that hold it, however they end, so none
can be left behind.
"""

import fcntl
import json
import os
import random
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from devtools.errors import DevError
from devtools.progress import say

PORTS = range(20_000, 32_000)  # below what the kernel hands to outgoing connections
LETTING_GO = 2.0  # s; a server that was killed may hold its ports for a moment after it is gone


_held: ContextVar[tuple[int, ...]] = ContextVar("held", default=())


def held() -> tuple[int, ...]:
    """The locks under which we work, for the processes that we start under them.

    A child may outlive us. Until it has ended too, nobody else may touch what it works on.
    """
    return _held.get()


@contextmanager
def locked(path: Path, held_by_other: str = "") -> Iterator[None]:
    """Hold the lock of this name, waiting for it; says `held_by_other` when it has to wait."""
    lock = _open(path, held_by_other)
    before = _held.set((*_held.get(), lock))
    try:
        yield
    finally:
        _held.reset(before)
        os.close(lock)


def _open(path: Path, held_by_other: str) -> int:
    """The descriptor of the file at this path, locked."""
    while True:
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if held_by_other:
                say(held_by_other)
            fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        os.close(lock)  # `./dev reset` has removed it: the others lock another one now


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file. Empty if there is no file, or if it is not readable."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            return content
    return {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace the file in one step, so that no reader and no crash sees half of it."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(content, indent=2) + "\n")
    fresh.replace(path)


def ports(path: Path, names: Sequence[str]) -> dict[str, int]:
    """A port on the loopback for each name: those stored in the file, unless another process uses
    them.

    Raises DevError if no port is free.
    """
    stored = read_json(path)
    known = [stored[name] for name in names if isinstance(stored.get(name), int)]
    if len(known) < len(names) or not _soon_free(known):
        known = free_ports(len(names))
        write_json(path, dict(zip(names, known, strict=True)))
    return dict(zip(names, known, strict=True))


def free_ports(count: int) -> list[int]:
    """This many different ports on which nobody listens at 127.0.0.1.

    Raises DevError if no port is free.
    """
    with ExitStack() as held:
        found: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            if len(found) == count:
                break
            with suppress(OSError):
                held.enter_context(_listener(port))
                found.append(port)
        if len(found) < count:
            raise DevError(
                f"no free port from {PORTS[0]} to {PORTS[-1]}: end some of what listens."
            )
        return found


def all_free(wanted: Sequence[int]) -> bool:
    """Whether nobody listens on any of these ports at 127.0.0.1."""
    for port in wanted:
        try:
            _listener(port).close()
        except OSError:
            return False
    return True


def _soon_free(wanted: Sequence[int]) -> bool:
    """Whether all these ports are free, or become so while their last owner lets go of them."""
    end = time.monotonic() + LETTING_GO
    while not all_free(wanted):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _listener(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        # as servers do, or a connection that has just ended would count as a taken port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        raise
    return listener
