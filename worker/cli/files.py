"""Files that commands read and write.

Files with personal data are written completely or not at all, and only their owner can read them.
"""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, TextIO

from worker.errors import IngestError

_IN_MEMORY: Final = 16_777_216
"""Bytes of standard input."""


@contextmanager
def opened(path: Path, error: type[IngestError]) -> Iterator[tuple[IO[bytes], bool]]:
    """A file that can be read several times, and whether it is CSV. `-` is standard input, as JSON
    Lines.

    Raises `error` if it can't be read.
    """
    if str(path) == "-":
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.seek(0)
            yield copy, False
        return
    try:
        file = path.open("rb")
    except OSError as problem:
        raise error(f"{path} can't be read: {problem.strerror}.") from None
    with file:
        yield file, path.suffix.lower() == ".csv"


@contextmanager
def written(path: Path) -> Iterator[TextIO]:
    """A file that replaces `path` when the block ends without an error. Its mode is 0600.

    Only a regular file is ever replaced, and never a link, a device or a pipe, whoever runs the
    command. Raises `IngestError` if the file can't be written. Then an existing file stays.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise IngestError(f"{path} can't be written: {error.strerror}.") from None
    else:
        if not stat.S_ISREG(found.st_mode):
            raise IngestError(
                f"{path} is {_kind(found.st_mode)}, but only a regular file can be replaced",
                "choose another name, or write to standard output.",
            )
    try:
        # In the same folder, so that replacing is one step. The mode is 0600 from the start.
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise IngestError(f"{path} can't be written: {error.strerror}.") from None
    part = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise IngestError(f"{path} can't be written: {error.strerror}.") from None
    finally:
        part.unlink(missing_ok=True)


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISLNK, "a link"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISFIFO, "a pipe"),
    )
    return next((name for is_one, name in kinds if is_one(mode)), "no regular file")
