"""Files with personal data, which are written completely or not at all, and which only their owner
can read.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from worker.errors import IngestError


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
