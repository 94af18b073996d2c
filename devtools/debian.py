"""Debian's packages, unpacked into private folders.

It needs no root, and does not touch the machine's own apt: lists, cache and configuration are
private copies. Signatures are checked as always.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

from devtools.causes import failure
from devtools.errors import DevError
from devtools.network import for_apt
from devtools.places import in_home, log_file, remove
from devtools.processes import run_step
from devtools.progress import fetching
from devtools.state import locked

APT = Path("/etc/apt")
SUITES = ("bookworm", "trixie", "forky")  # in the order of their age
ONLINE = "see that apt-get update works on this machine, and run ./dev again"


def own_suite() -> str | None:
    """The machine's Debian suite, by its code name. None if it is neither Debian nor a relative."""
    try:
        release = Path("/etc/os-release").read_text()
    except OSError:
        return None
    found = re.search(r'^VERSION_CODENAME="?([a-z]+)', release, re.MULTILINE)
    return found[1] if found and shutil.which("apt-get") and shutil.which("dpkg") else None


def unpacked(
    name: str,
    what: str,
    packages: Sequence[str],
    *,
    suite: str,
    megabytes: int,
    on_disk: int,
    finish: Callable[[Path, Path], None] = lambda fresh, root: None,
) -> Path:
    """The folder with this name, with these packages unpacked. They are downloaded at the first
    call.

    "a|b" means package a, or b if the suite has no a. `finish(where it is, where it will be)` may
    change the unpacked files. Raises DevError if apt can't get them.
    """
    root = in_home("tools") / name
    with locked(root.with_suffix(".lock"), f"another ./dev is unpacking {what}: waiting"):
        if not root.exists():
            fresh, apt = root.with_suffix(".new"), root.with_suffix(".apt")
            for leftover in (fresh, apt):
                remove(leftover)
            with fetching(what, megabytes, on_disk, apt, fresh):
                _unpack(_download(suite, packages, apt), fresh)
                finish(fresh, root)
            fresh.rename(root)
            shutil.rmtree(apt, ignore_errors=True)
    return root


def is_newer(suite: str) -> bool:
    """Whether the suite's programs are newer than what the machine has to run them with."""
    own = own_suite()
    return own in SUITES and suite in SUITES and SUITES.index(suite) > SUITES.index(own)


def _download(suite: str, packages: Sequence[str], apt: Path) -> list[Path]:
    target = apt / "packages"
    for folder in ("lists/partial", "cache/archives/partial", "sources", "none", "packages"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    _write_sources(suite, apt / "sources")
    _write_configuration(apt)
    env = {**os.environ, "APT_CONFIG": str(apt / "apt.conf"), "LC_ALL": "C.UTF-8"}
    updated = run_step("apt", ("apt-get", "update"), ONLINE, env=env)
    wanted = [_first_known(package.split("|"), env) for package in packages]
    try:
        run_step("apt", ("apt-get", "download", *wanted), ONLINE, env=env, cwd=target)
    except DevError:
        # update warns of a mirror that it can't reach, and ends as if all were well
        if re.search(r"^[WE]: Failed to fetch", updated, re.MULTILINE):
            raise DevError(failure("apt", updated, ONLINE, log_file("apt"))) from None
        raise
    return sorted(target.glob("*.deb"))


def _first_known(names: Sequence[str], env: Mapping[str, str]) -> str:
    for name in names[:-1]:
        if name in run_step("apt", ("apt-cache", "pkgnames", name), ONLINE, env=env).split():
            return name
    return names[-1]


def _write_sources(suite: str, target: Path) -> None:
    """Copy the machine's entries for its Debian suite, changed to the wanted suite.

    In this way a mirror that the machine uses is also used here.
    """
    own = own_suite()
    release = re.compile(rf"(?<![\w-]){own}(-updates|-security)?(?![\w-])(/)?")
    for file in (APT / "sources.list", *sorted((APT / "sources.list.d").glob("*"))):
        if not file.is_file() or file.suffix not in (".list", ".sources"):
            continue
        between = "\n\n" if file.suffix == ".sources" else "\n"
        kept = [
            release.sub(lambda found: f"{suite}{found[1] or ''}{found[2] or ''}", entry)
            for entry in file.read_text().split(between)
            if release.search(entry) and re.search(r"\bmain\b", entry)
        ]
        if kept:
            (target / file.name).write_text(between.join(kept) + "\n")
    if not any(target.iterdir()):
        raise DevError(
            f"{APT} has no source for {own}: set INGEST_AMQP_URL to a RabbitMQ of yours, "
            "or install docker."
        )


def _write_configuration(apt: Path) -> None:
    """The machine's apt configuration (its proxies and certificates) with private folders.

    What it does not set comes from pip's configuration. Its hooks are left out, because they clear
    caches and call services of the machine.
    """
    dumped = run_step("apt", ("apt-config", "dump"), ONLINE)
    kept = [
        line
        for line in dumped.splitlines()
        if "-Invoke" not in line and not line.startswith("CommandLine")
    ]
    ours = {
        **for_apt(dumped),
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": apt / "none",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": apt / "sources",
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Cache::pkgcache": "pkgcache.bin",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
    }
    kept += [f'{name} "{value}";' for name, value in ours.items()]
    (apt / "apt.conf").write_text("\n".join(kept) + "\n")


def _unpack(packages: list[Path], root: Path) -> None:
    root.mkdir(parents=True)
    remedy = f"remove {root} and run ./dev again"
    with ThreadPoolExecutor(2) as pool:
        steps = [
            pool.submit(copy_context().run, run_step, "unpack", ("dpkg", "-x", deb, root), remedy)
            for deb in packages
        ]
    for step in steps:
        step.result()
