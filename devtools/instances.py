"""Disposable folders for private servers, which are removed when their owner has ended.

Every process that runs for such a folder has the folder in its command line, and its id in a
`*.pid` file there.
"""

import itertools
import os
import shutil
from pathlib import Path

from devtools.places import in_home
from devtools.processes import kill_tree, our_process, started_at
from devtools.state import read_json, write_json

_count = itertools.count(1)


def me() -> dict[str, int]:
    """An identity of this process that a later process with the same id does not have."""
    return {"pid": os.getpid(), "started": started_at(os.getpid()) or 0}


def lives(who: object) -> bool:
    """Whether the process with this identity still exists."""
    if not isinstance(who, dict) or not isinstance(who.get("pid"), int):
        return False
    return started_at(who["pid"]) == who.get("started")


def new_folder(name: str) -> Path:
    """A folder for one private server. Remove it with `remove`. `sweep` does so if this process
    can't.
    """
    folder = in_home("instances", f"{name}-{os.getpid()}-{next(_count)}")
    write_json(folder / "owner.json", me())
    return folder


def owners() -> set[int]:
    """The living processes that own private servers."""
    found = map(read_json, in_home("instances").glob("*/owner.json"))
    return {int(owner["pid"]) for owner in found if lives(owner)}


def remove(folder: Path) -> None:
    """Kill everything that still runs for the folder, and delete the folder."""
    for pid_file in folder.rglob("*.pid"):
        if pid := our_process(pid_file, folder):
            kill_tree(pid)
    shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove the folders whose owners have ended without doing so."""
    for owner in in_home("instances").glob("*/owner.json"):
        if not lives(read_json(owner)):
            remove(owner.parent)
