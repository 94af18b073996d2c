"""Only our own processes are found and signalled, and a failed step is reported in one sentence."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools import processes
from devtools.errors import BrokenOff, DevError

SLEEP = ("/bin/sh", "-c", "sleep 60 & sleep 60 & wait")


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "log_file", lambda name: tmp_path / f"{name}.log")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """A process with two children, started as servers are."""
    file = tmp_path / "server.pid"
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    processes.leave_running(SLEEP, file, tmp_path / "log", env=env)
    pid = processes.our_process(file, tmp_path)
    assert pid is not None
    assert processes.wait_until(lambda: len(processes.tree(pid)) == 3, 60)
    yield pid
    if processes.our_process(file, tmp_path) == pid:
        processes.kill_tree(pid)


def test_a_process_of_another_folder_is_not_ours(tmp_path: Path, server: int) -> None:
    assert processes.our_process(tmp_path / "server.pid", tmp_path) == server
    assert processes.our_process(tmp_path / "server.pid", tmp_path / "elsewhere") is None
    beginning = tmp_path.with_name(tmp_path.name[:-1])
    assert processes.our_process(tmp_path / "server.pid", beginning) is None


def test_an_id_that_was_given_out_again_is_not_ours(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / "stale.pid").write_text(f"{stranger.pid}\n")
        assert processes.our_process(tmp_path / "stale.pid", tmp_path) is None
        stranger.kill()


@pytest.mark.parametrize("content", ["", "no number", "0", "-1", "999999999", None])
def test_a_pid_file_without_a_living_process_is_ignored(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "x.pid").write_text(content)
    assert processes.our_process(tmp_path / "x.pid", tmp_path) is None


def test_kill_takes_the_children_along(server: int) -> None:
    family = processes.tree(server)
    processes.kill_tree(server)
    assert [pid for pid in family if processes.started_at(pid)] == []


def test_a_frozen_process_tree_continues_after_it_is_thawed(server: int) -> None:
    def states() -> set[str]:
        family = processes.tree(server)
        return {
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in family
        }

    assert sorted(processes.freeze(server)) == sorted(processes.tree(server))
    assert processes.wait_until(lambda: states() == {"T"}, 60)
    processes.thaw(server)
    assert processes.wait_until(lambda: "T" not in states(), 60)


def test_a_server_outlives_the_one_who_started_it_and_is_nobodys_child(server: int) -> None:
    assert server not in processes.tree(os.getpid())


def test_a_failed_step_says_what_it_said_what_to_do_and_where_the_log_is(tmp_path: Path) -> None:
    script = "echo fine; echo 'E: no such package'; echo bye; exit 3"
    with pytest.raises(DevError) as raised:
        processes.run_step("apt", ("/bin/sh", "-c", script), "look at the mirror")
    log = tmp_path / "apt.log"
    assert str(raised.value) == (
        f"apt failed (E: no such package): look at the mirror (log: {log})."
    )
    assert "fine\nE: no such package\nbye\n[3, " in log.read_text()


def test_a_full_disk_is_said_to_be_full() -> None:
    script = "echo 'write: No space left on device' >&2; exit 1"
    with pytest.raises(DevError, match=r"^the disk is full: free 1 GB"):
        processes.run_step("pip", ("/bin/sh", "-c", script), "never mind")


def test_a_missing_program_is_named() -> None:
    with pytest.raises(DevError, match=r"^/no/such isn't there: install it"):
        processes.run_step("x", ("/no/such",), "install it")


def test_of_jobs_side_by_side_the_first_failure_is_the_one_that_is_told() -> None:
    broken_off = threading.Event()

    def waits() -> None:
        try:
            processes.wait_until(lambda: False, 600)
        except BrokenOff:
            broken_off.set()
            raise

    def fails() -> None:
        time.sleep(0.05)
        raise DevError("the reason")

    with pytest.raises(DevError, match="the reason"):
        processes.at_once([waits, fails])
    assert broken_off.is_set()
    assert processes.wait_until(lambda: True, 1)  # later waits aren't broken off


def test_a_step_beside_a_failure_is_ended() -> None:
    def fails() -> None:
        time.sleep(0.2)
        raise DevError("the reason")

    start = time.monotonic()
    with pytest.raises(DevError, match="the reason"):
        processes.at_once([lambda: processes.run_step("x", ("sleep", "600"), "wait"), fails])
    assert time.monotonic() - start < 60
