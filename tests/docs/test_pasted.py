"""The steps of README and docs/viewers.md work as they stand, pasted in order into a shell.

Each page is walked in a copy of the checkout with an environment and servers of its own, by a
script that knows nothing but the page. At the end nothing of it runs any more.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from devtools import places, servers
from devtools.processes import kill_tree

NOT_COPIED = (".git", ".dev", ".venv", ".*_cache", ".hypothesis", "__pycache__")
PATIENCE = 300

pytestmark = pytest.mark.skipif(
    any(service.embedded_obstacle() for service in servers.SERVICES.values()),
    reason="./dev can't run servers of its own here",
)


@dataclass
class Newcomer:
    """Somebody with a fresh copy of the checkout and a shell."""

    checkout: Path
    home: Path

    def environment(self) -> dict[str, str]:
        """Ours, without what `./dev test` has put into it, and with what is fetched already."""
        ours = {name: text for name, text in os.environ.items() if not _is_of_dev(name)}
        path = [str(Path(sys.executable).resolve().parent), *os.environ["PATH"].split(":")]
        outside = [part for part in path if not part.startswith(str(places.CHECKOUT))]
        ours["PATH"] = ":".join(outside)
        ours["UV_CACHE_DIR"] = os.environ.get("UV_CACHE_DIR") or str(places.in_home("cache"))
        return ours

    def run(self, *words: str, given: str = "") -> str:
        done = subprocess.run(
            words,
            input=given,
            cwd=self.checkout,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def paste(self, page: str) -> str:
        """All that the page's shell blocks print."""
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        program = "\n".join(text for language, text in blocks if language == "python")
        (self.checkout / "phone.py").write_text(program)
        return self.run(
            "bash", given="\n".join(text for language, text in blocks if language == "sh")
        )

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


def _is_of_dev(name: str) -> bool:
    return name.startswith(("INGEST_", "PYTEST_")) or name == "VIRTUAL_ENV"


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    checkout = tmp_path / "study-ingest"
    shutil.copytree(places.CHECKOUT, checkout, ignore=shutil.ignore_patterns(*NOT_COPIED))
    made = Newcomer(checkout, checkout)
    ask = "from devtools.places import in_home; print(in_home('tools'))"
    tools = Path(made.run(sys.executable, "-c", ask).strip())
    made.home = tools.parent
    for tool in places.in_home("tools").iterdir():  # or each test would fetch 100 MB
        if tool.is_dir() and tool.suffix not in (".new", ".apt"):
            (tools / tool.name).symlink_to(tool)
    try:
        yield made
    finally:
        for process in made.processes():
            kill_tree(process)
        made.run(sys.executable, "dev", "reset")


@pytest.mark.parametrize(
    ("page", "ends"),
    [
        ("README.md", [r'"status":"ingested"']),
        ("docs/viewers.md", [r"^ingested None$", r"^ingested$"]),
    ],
)
def test_a_page_pasted_in_order_ends_with_ingested_and_everything_stopped(
    newcomer: Newcomer, page: str, ends: list[str]
) -> None:
    said = newcomer.paste((places.CHECKOUT / page).read_text())
    for end in ends:
        assert re.search(end, said, re.MULTILINE), said
    assert newcomer.processes() == [], said
    assert (newcomer.home / "pair").is_dir()
