"""The environment of the peers and of the plots, which need other versions than ours.

It is made from requirements.lock beside this file, and made again when that changes.
"""

import hashlib
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

from devtools import environment
from devtools.places import in_home

_LOCK: Final = Path(__file__).with_name("requirements.lock")


def folder() -> Path:
    """The folder of the environment, whether or not it exists."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(version.encode() + _LOCK.read_bytes()).hexdigest()[:8]
    return in_home("bench") / f"peers-{digest}"


def is_there() -> bool:
    """Whether it has been made."""
    return (folder() / "made").exists()


@cache
def ensure() -> Path:
    """Its folder of programs. The first call takes about ten seconds."""
    here = folder()
    if not is_there():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", here], check=True)
        environment.install_locked(here / "bin/python", _LOCK)
        (here / "made").touch()
    return here / "bin"
