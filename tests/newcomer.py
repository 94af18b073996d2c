"""Somebody with a fresh copy of the checkout, with an environment and servers of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from devtools import places, servers
from devtools.processes import kill_tree

NOT_COPIED = (".git", ".dev", ".venv", ".*_cache", ".hypothesis", "__pycache__")
PATIENCE = 900

needs_servers_of_its_own = pytest.mark.skipif(
    any(service.embedded_obstacle() for service in servers.SERVICES.values()),
    reason="./dev can't run servers of its own here",
)


@dataclass
class Newcomer:
    """The copy, and the shell of somebody who has it."""

    checkout: Path
    home: Path
    """The folder of `./dev` with all state."""
    before: tuple[str, ...] = ()
    """Words that go before each command."""

    def environment(self) -> dict[str, str]:
        """Ours, without what `./dev test` has put into it, and with what is fetched already."""
        ours = {name: text for name, text in os.environ.items() if not _is_of_dev(name)}
        path = [str(Path(sys.executable).resolve().parent), *os.environ["PATH"].split(":")]
        outside = [part for part in path if not part.startswith(str(places.CHECKOUT))]
        ours["PATH"] = ":".join(outside)
        ours["UV_CACHE_DIR"] = os.environ.get("UV_CACHE_DIR") or str(places.in_home("cache"))
        return ours

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command in the copy, which goes on."""
        return subprocess.Popen(
            [*self.before, *words],
            cwd=self.checkout,
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, given: str = "") -> str:
        """What the command prints. It must succeed."""
        return ended(self.start(*words), given)

    def dev(self, *words: str) -> str:
        """What `./dev` with these words prints. It must succeed."""
        return self.run(sys.executable, "dev", *words)

    def processes(self) -> list[int]:
        """What still runs in the copy or for its servers."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:
                continue
            if bytes(self.checkout) in told or bytes(self.home) in told:
                found.append(int(process.name))
        return found


def ended(command: subprocess.Popen[str], given: str = "") -> str:
    """What the command has printed at its end. It must succeed."""
    with command:
        said, _ = command.communicate(given, timeout=PATIENCE)
    assert command.returncode == 0, said
    return said


@contextmanager
def newcomer(folder: Path) -> Iterator[Newcomer]:
    """A newcomer in this folder. At the end, everything of theirs is stopped and gone."""
    checkout = folder / "study-ingest"
    shutil.copytree(places.CHECKOUT, checkout, ignore=shutil.ignore_patterns(*NOT_COPIED))
    made = Newcomer(checkout, checkout)
    use_our_tools(made)
    try:
        yield made
    finally:
        for process in made.processes():
            kill_tree(process)
        made.dev("reset")


def use_our_tools(newcomer: Newcomer) -> None:
    """Gives them the servers that we have unpacked, or each test would fetch 100 MB."""
    ask = "from devtools.places import in_home; print(in_home('tools'))"
    tools = Path(newcomer.run(sys.executable, "-c", ask).strip())
    newcomer.home = tools.parent
    for tool in places.in_home("tools").iterdir():
        theirs = tools / tool.name
        if tool.is_dir() and tool.suffix not in (".new", ".apt") and not theirs.exists():
            theirs.symlink_to(tool)


def _is_of_dev(name: str) -> bool:
    return name.startswith(("INGEST_", "PYTEST_")) or name == "VIRTUAL_ENV"
