"""Locks that are released by any death, and ports that stay the same."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from devtools.processes import wait_until
from devtools.state import PORTS, free_ports, locked, ports, read_json, write_json

HOLD = """
import sys, time
from pathlib import Path
from devtools.state import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    argv = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
    with locked(lock):
        pass


def test_a_lock_goes_on_to_the_step_that_works_under_it(tmp_path: Path) -> None:
    """Or a second `./dev` would clear what the first one's pip still writes into."""
    lock = tmp_path / "lock"
    script = (
        "import sys; from pathlib import Path; from devtools import processes, state\n"
        "processes.log_file = lambda name: Path(sys.argv[1] + '.log')\n"
        "with state.locked(Path(sys.argv[1])):\n"
        "    step = ('/bin/sh', '-c', 'echo $$ >$0.pid; read line <$0.go', sys.argv[1])\n"
        "    processes.run_step('step', step, '')"
    )
    os.mkfifo(f"{lock}.go")
    with subprocess.Popen([sys.executable, "-c", script, str(lock)]) as killed:
        assert wait_until(lambda: Path(f"{lock}.pid").exists(), 60)
        killed.kill()
    with lock.open() as rival:
        with pytest.raises(BlockingIOError):
            fcntl.flock(rival, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Path(f"{lock}.go").write_text("\n")  # lets the step end
        fcntl.flock(rival, fcntl.LOCK_EX)


def test_a_lock_that_was_removed_while_we_waited_is_not_held_by_two(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    lock = folder / "lock"
    argv = [sys.executable, "-c", HOLD, str(lock)]
    with locked(lock):
        waiter = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert wait_until(lambda: _waits(waiter.pid), 60)
        shutil.rmtree(folder)
    assert waiter.stdout is not None
    assert waiter.stdout.readline() == "held\n"
    with lock.open() as rival, pytest.raises(BlockingIOError):
        fcntl.flock(rival, fcntl.LOCK_EX | fcntl.LOCK_NB)
    waiter.kill()
    waiter.communicate()


def _waits(pid: int) -> bool:
    """Whether the process waits for a lock of a file."""
    locks = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f" {pid} " in line for line in locks)


def test_a_lock_is_waited_for_and_says_so(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    waiter = (
        "import sys; from pathlib import Path; from devtools.state import locked\n"
        "with locked(Path(sys.argv[1]), 'somebody has it'): print('mine')"
    )
    with locked(lock):
        argv = [sys.executable, "-c", waiter, str(lock)]
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        assert child.stderr.readline() == "dev: somebody has it\n"
        assert child.poll() is None
    assert child.communicate()[0] == "mine\n"


def test_an_unreadable_state_file_counts_as_empty(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    assert read_json(state) == {}
    state.write_text('{"half": ')
    assert read_json(state) == {}
    state.write_text("[1]")
    assert read_json(state) == {}
    write_json(state, {"whole": 1})
    assert read_json(state) == {"whole": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_ports_stay_when_their_last_owner_lets_go_late(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    first = ports(file, ["one"])
    dying = socket.create_server(("127.0.0.1", first["one"]))
    letting_go = threading.Timer(0.2, dying.close)
    letting_go.start()
    assert ports(file, ["one"]) == first
    letting_go.join()


def test_ports_stay_until_somebody_else_has_one(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    first = ports(file, ["one", "two"])
    assert ports(file, ["one", "two"]) == first
    with socket.socket() as other:
        other.bind(("127.0.0.1", first["two"]))
        other.listen()
        second = ports(file, ["one", "two"])
        assert second["two"] != first["two"]
    assert ports(file, ["one", "two"]) == second
    assert read_json(file) == second


def test_free_ports_are_different_and_below_those_of_outgoing_connections() -> None:
    found = free_ports(50)
    assert len(set(found)) == 50
    assert set(found) <= set(PORTS)
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if os.access(ephemeral, os.R_OK):
        assert PORTS[-1] < int(ephemeral.read_text().split()[0])
