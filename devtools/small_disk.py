"""A file system that can be filled, for a server of our own to run out of space on."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devtools.errors import DevError
from devtools.places import unprivileged

ONLY_ROOT = "only root can make a file system that fills"


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A folder of that size, which PostgreSQL may write to; it is gone afterwards.

    Raises DevError where we may not make one.
    """
    user = unprivileged()
    if user is None:
        raise DevError(f"{ONLY_ROOT}: run ./dev as root.")
    folder = Path(tempfile.mkdtemp(prefix="study-ingest-small-", dir="/var/tmp"))
    options = f"size={megabytes}m,uid={user.pw_uid},mode=700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            raise DevError(f"{ONLY_ROOT}: this root may not.")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
    finally:
        folder.rmdir()
