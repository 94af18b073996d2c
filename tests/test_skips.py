"""A run with `-p tests.skips` fails on a skip that docs/testing.md does not list."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SKIP = "import pytest\n{}\ndef test_x(): pytest.skip({!r})\n"


@pytest.mark.parametrize(
    ("reason", "code"),
    [("curl is not installed", 0), ("no PostgreSQL with TLS at /x", 0), ("it is Monday", 1)],
)
@pytest.mark.parametrize("before", ["", "pytest.skip('a whole module', allow_module_level=True)"])
def test_a_reason_that_is_not_listed_fails_the_run(
    tmp_path: Path, reason: str, code: int, before: str
) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(SKIP.format(before, reason))
    words = ("-p", "tests.skips", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(tmp_path), str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == (1 if before else code), done.stdout
    assert ("lacks: " in done.stdout) is bool(done.returncode)
