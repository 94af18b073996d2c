"""Locks that no death leaves behind, and ports that stay."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

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


def test_what_can_not_be_read_counts_as_nothing(tmp_path: Path) -> None:
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
