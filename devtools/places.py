"""The paths: the checkout, and the private folder with the servers and their state.

Every path that another file of devtools writes to begins here.
"""

import hashlib
import os
import pwd
import shutil
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from devtools.errors import DevError

CHECKOUT = Path(__file__).resolve().parent.parent
LONGEST_PATH = 90  # Unix sockets and Erlang's command lines have limits; deeper is asking for them


@cache
def home() -> Path:
    """The private state folder: `.dev`, or a temporary folder if servers can't live there.

    Raises DevError if no folder is suitable.
    """
    obstacles = [obstacle(folder) for folder in candidates()]
    for folder, why_not in zip(candidates(), obstacles, strict=True):
        if why_not is None:
            return private_folder(folder)
    raise DevError(
        f"no folder for the servers' data: {'; '.join(filter(None, obstacles))}: "
        "move the checkout to a short path without spaces that you can write to."
    )


def candidates() -> list[Path]:
    """All folders that may contain the state of this checkout, the best first."""
    name = f"study-ingest-{os.getuid()}-{hashlib.sha256(bytes(CHECKOUT)).hexdigest()[:12]}"
    return [CHECKOUT / ".dev", Path("/var/tmp") / name, Path(tempfile.gettempdir()) / name]


@cache
def writable() -> bool:
    """Whether the checkout is writable. Otherwise nothing is written into it."""
    return os.access(CHECKOUT, os.W_OK)


def beside(name: str) -> Path:
    """The path with this name in the checkout, or in the state folder if the checkout is
    read-only.
    """
    return (CHECKOUT if writable() else home()) / name


def size(*folders: Path) -> int:
    """The number of bytes that these files and folders use. Files that are linked twice count
    once.
    """
    seen: dict[tuple[int, int], int] = {}
    for top in folders:
        for folder, _, names in os.walk(top):
            for path in (Path(folder), *(Path(folder, name) for name in names)):
                with suppress(OSError):  # it has just been moved away
                    found = path.lstat()
                    seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values())


def remove(path: Path) -> None:
    """Remove a folder, which need not exist. Raises DevError if that fails.

    It gets another name first, so that a process killed here leaves nothing that looks complete.
    """
    doomed = path.with_name(f"{path.name}.removed")
    try:
        with suppress(FileNotFoundError):
            shutil.rmtree(doomed)
        if os.path.lexists(path):  # a read-only file system refuses to rename even what isn't there
            with suppress(FileNotFoundError):
                path.rename(doomed)
                shutil.rmtree(doomed)
    except OSError as error:
        raise DevError(f"{path} can't be removed ({error.strerror}): remove it yourself.") from None


def obstacle(folder: Path) -> str | None:
    """Why servers can't live in this folder (which need not exist). None if they can."""
    if any(mark.isspace() for mark in str(folder)):
        return f"{folder} has a space in it, which RabbitMQ's scripts can't take"
    if len(str(folder)) > LONGEST_PATH:
        return f"{folder} is longer than {LONGEST_PATH} characters"
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return f"{existing} can't be written to"
    if os.getuid() == 0:  # PostgreSQL refuses to be root, so another user must be able to pass
        for parent in (existing, *existing.parents):
            if not parent.stat().st_mode & stat.S_IXOTH:
                return f"{parent} lets only root pass, and PostgreSQL can't run as root"
    return None


def private_folder(folder: Path) -> Path:
    """Create the folder, which others may at most pass through. Refuse one that belongs to somebody
    else.

    Raises DevError in that case, which is possible in a temporary folder.
    """
    folder.mkdir(mode=0o711, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise DevError(f"{folder} belongs to somebody else: remove it and run ./dev again.")
    return folder


def in_home(*parts: str) -> Path:
    """A folder inside the state folder, created if it is missing."""
    folder = home().joinpath(*parts)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return folder


def log_file(name: str) -> Path:
    """The file for the full output of one step."""
    return in_home("log") / f"{name}.log"


@cache
def unprivileged() -> pwd.struct_passwd | None:
    """The user as which root runs PostgreSQL. None if this is not root.

    Raises DevError if the machine has neither of the suitable users.
    """
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise DevError(
        "PostgreSQL can't run as root, and there is no user 'nobody': run ./dev as a user."
    )
