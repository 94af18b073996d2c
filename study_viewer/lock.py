"""Holds that one outbox has one relay, over processes and crashes."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from study_viewer.errors import RelayRunning


@contextmanager
def only_relay(outbox: Path) -> Iterator[None]:
    """Holds the relay's lock of the outbox at that path; raises `RelayRunning` if it is taken.

    The lock is SQLite's own, on an empty file beside the outbox: it works on every system that
    SQLite works on, does not touch the viewer's transactions, and the system lets go of it when
    the process dies, however it dies.
    """
    beside = outbox.with_name(outbox.name + "-relay")
    with closing(sqlite3.connect(beside, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise RelayRunning(outbox) from None
        yield
