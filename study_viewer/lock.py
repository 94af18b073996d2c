"""Makes sure that an outbox has only one relay, across processes and crashes."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from study_viewer.errors import RelayRunning


@contextmanager
def only_relay(outbox: Path) -> Iterator[None]:
    """Holds the relay's lock of the outbox at this path. Raises `RelayRunning` if it is taken.

    It is a lock of SQLite on an empty file beside the outbox. It works wherever SQLite works, does
    not affect the viewer's transactions, and the operating system releases it whenever the process
    ends.
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
