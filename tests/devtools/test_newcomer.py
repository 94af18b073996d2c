"""What a newcomer does in a fresh copy of the checkout, real environments and servers included."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devtools.places import remove
from devtools.processes import wait_until
from tests.newcomer import (
    PATIENCE,
    Newcomer,
    ended,
    needs_servers_of_its_own,
    newcomer,
    use_our_tools,
)

pytestmark = needs_servers_of_its_own

DEMO = ("demo", "--batches", "20")
WORKS = ("run", "--", "python", "-c", "import aio_pika, asyncpg, pytest, worker; print('works')")


@pytest.fixture(scope="module")
def somebody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    """One for all these tests, since each environment takes a while to make."""
    with newcomer(tmp_path_factory.mktemp("newcomer")) as made:
        yield made


def test_killed_while_it_installs_and_started_again_at_once_it_works(somebody: Newcomer) -> None:
    remove(somebody.checkout / ".venv")
    stamp = somebody.checkout / ".venv" / ".study-ingest"
    first = somebody.start(sys.executable, "dev", *WORKS)
    assert wait_until(stamp.exists, PATIENCE)
    first.kill()  # ./dev alone: what it has started goes on, as with a closed terminal
    assert somebody.dev(*WORKS).endswith("works\n")
    first.communicate()


def test_killed_while_servers_start_and_started_again_at_once_it_works(somebody: Newcomer) -> None:
    def started() -> list[Path]:
        return list(somebody.home.glob("pair/*/server.pid"))

    for file in started():
        file.unlink()  # of servers that have stopped
    first = somebody.start(sys.executable, "dev", "up")
    assert wait_until(lambda: bool(started()), PATIENCE)
    first.kill()
    assert somebody.dev(*WORKS).endswith("works\n")
    first.communicate()
    assert somebody.processes() == []


def test_of_two_demos_at_once_the_second_waits(somebody: Newcomer) -> None:
    said = [ended(each) for each in [somebody.start(sys.executable, "dev", *DEMO) for _ in "12"]]
    assert all("verify" in each and "ok" in each for each in said)
    assert sum("another ./dev demo runs here: waiting" in each for each in said) == 1
    assert somebody.processes() == []


READ_ONLY = 'mount --bind . . && mount -o remount,bind,ro . && cd "$PWD" && exec "$@"'


@contextmanager
def read_only(somebody: Newcomer) -> Iterator[None]:
    """Nothing can be written into the checkout, not even by root."""
    if os.getuid() == 0:
        # Mounts of their own, which end with the last process that sees them.
        somebody.before = ("unshare", "--mount", "sh", "-c", READ_ONLY, "sh")
        with somebody.start("true") as tried:
            tried.wait()
        if tried.returncode:
            somebody.before = ()
            pytest.skip("this root may not mount")
        yield
        somebody.before = ()
        return
    folders = [path for path in (somebody.checkout, *somebody.checkout.rglob("*")) if path.is_dir()]
    for each in folders:
        each.chmod(0o555)
    try:
        yield
    finally:
        for each in folders:
            each.chmod(0o755)


def test_a_read_only_checkout_works_and_reset_removes_what_lies_outside(tmp_path: Path) -> None:
    with newcomer(tmp_path) as somebody:
        before = sorted(path.name for path in somebody.checkout.iterdir())
        with read_only(somebody):
            use_our_tools(somebody)
            assert not somebody.home.is_relative_to(somebody.checkout)
            assert somebody.dev(*WORKS).endswith("works\n")
            assert (somebody.home / ".venv").is_dir()
            assert "MB freed" in somebody.dev("reset")
            assert not somebody.home.exists()
        assert sorted(path.name for path in somebody.checkout.iterdir()) == before
