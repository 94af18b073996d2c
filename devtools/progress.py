"""What `./dev` tells people while it works: what it fetches, how large that is, and how far it is.

Lines go to stderr. In a terminal one more line below them is kept up to date; elsewhere it is
printed again from time to time, so that a log is never silent for long.
"""

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devtools.places import size

_LIVE = 0.5  # s between two looks, in a terminal
_PLAIN = 10.0  # s between two lines, elsewhere
_CLEAR = "\r\x1b[K"

_lock = threading.Lock()
_running: dict[str, tuple[int, tuple[Path, ...]]] = {}
"""By what is fetched: how many bytes it takes on the disk, and where they come to be."""
_idle = threading.Event()


def say(line: str) -> None:
    """One line for the person at the terminal or the reader of the log."""
    with _lock:
        _write(f"dev: {line}\n")


@contextmanager
def fetching(what: str, megabytes: int, on_disk: int, *folders: Path) -> Iterator[None]:
    """Tell what is fetched while the block runs, and how far it is.

    It is about `megabytes` to fetch and takes `on_disk` megabytes in the end, which come to be
    in the folders: those are what progress is told from.
    """
    start = time.monotonic()
    say(f"fetching {what} (up to {megabytes} MB)")
    with _lock:
        alone = not _running
        _running[what] = (on_disk * 1_000_000, folders)
        if alone:
            _idle.clear()
            threading.Thread(target=_tell, args=(start,), daemon=True).start()
    try:
        yield
    finally:
        with _lock:
            del _running[what]
            if not _running:
                _idle.set()
                _write("")  # clears the live line, so that an error begins a line of its own
    say(f"fetched {what} ({time.monotonic() - start:.0f} s)")


def _tell(start: float) -> None:
    live = sys.stderr.isatty()
    while not _idle.wait(_LIVE if live else _PLAIN):
        with _lock:
            fetches = dict(_running)
        parts = [f"{what}: {_percent(*fetch)} %" for what, fetch in fetches.items()]
        line = f"dev: after {time.monotonic() - start:.0f} s: {', '.join(parts)}"
        with _lock:
            if not _idle.is_set():
                _write(_one_row(line) if live else f"{line}\n")


def _percent(expected: int, folders: tuple[Path, ...]) -> int:
    return min(99, 100 * size(*folders) // expected)  # what is expected is about right, no more


def _one_row(line: str) -> str:
    """As much of the line as fits: of one that takes two rows, only the second could be cleared."""
    columns = shutil.get_terminal_size().columns - 1
    return line if len(line) <= columns else f"{line[: columns - 3]}..."


def _write(text: str) -> None:
    sys.stderr.write(f"{_CLEAR}{text}" if sys.stderr.isatty() else text)
    sys.stderr.flush()
