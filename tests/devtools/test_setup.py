"""Folders, the environment, apt's sources and the command line: each failure is reported."""

import importlib.util
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from devtools import (
    commands,
    debian,
    environment,
    erlang,
    matrix,
    places,
    postgres,
    processes,
)
from devtools.errors import DevError

DEV = str(places.CHECKOUT / "dev")


def test_folders_that_servers_can_not_live_in() -> None:
    assert "has a space" in str(places.obstacle(Path("/tmp/a b")))
    assert "longer than" in str(places.obstacle(Path("/tmp") / ("x" * 100)))


def test_a_folder_that_root_alone_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr("os.getuid", lambda: 0)
    assert "lets only root pass" in str(places.obstacle(tmp_path / "x"))


def test_a_folder_that_somebody_else_made(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "trap").symlink_to(tmp_path / "real")
    with pytest.raises(DevError, match="belongs to somebody else: remove it"):
        places.private_folder(tmp_path / "trap")
    assert places.private_folder(tmp_path / "fresh").is_dir()


def test_a_python_without_any_pip_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: None)
    monkeypatch.setattr(debian, "own_suite", lambda: None)
    with pytest.raises(DevError, match="has neither pip nor ensurepip: install pip"):
        environment._pip()


def test_the_environment_is_made_again_when_what_it_is_made_from_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "CHECKOUT", tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    seen = set()
    for lock in ("one", "two"):
        (tmp_path / "requirements.lock").write_text(lock)
        seen.add(environment.digest())
    monkeypatch.setattr("sys.version_info", type("Newer", (), {"major": 3, "minor": 99}))
    seen.add(environment.digest())
    assert len(seen) == 3


SOURCES = """\
Types: deb
URIs: mirror
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: mirror
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: elsewhere
Suites: bookworm-pgdg
Components: main
"""

LIST = """\
deb [signed-by=/k] mirror/debian bookworm main
deb mirror/debian-security bookworm-security main contrib
deb elsewhere bookworm-pgdg main
deb elsewhere bookworm stable
"""


def test_sources_of_another_suite_are_derived_from_the_machines_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(LIST)
    (tmp_path / "sources.list.d/debian.sources").write_text(SOURCES)
    (tmp_path / "sources.list.d/old.sources.disabled").write_text(SOURCES)
    target = tmp_path / "target"
    target.mkdir()
    monkeypatch.setattr(debian, "APT", tmp_path)
    monkeypatch.setattr(debian, "own_suite", lambda: "bookworm")
    debian._write_sources("trixie", target)
    assert (target / "sources.list").read_text() == (
        "deb [signed-by=/k] mirror/debian trixie main\n"
        "deb mirror/debian-security trixie-security main contrib\n"
    )
    written = (target / "debian.sources").read_text()
    assert "Suites: trixie trixie-updates\n" in written
    assert "Suites: trixie-security\n" in written
    assert "pgdg" not in written
    assert len(list(target.iterdir())) == 2


def test_a_machine_without_sources_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "APT", tmp_path)
    monkeypatch.setattr(debian, "own_suite", lambda: "bookworm")
    with pytest.raises(DevError, match="has no source for bookworm: set INGEST_AMQP_URL"):
        debian._write_sources("bookworm", tmp_path)


def test_a_suite_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEV_RABBITMQ_SUITE", "sarge")
    with pytest.raises(DevError, match=r"^DEV_RABBITMQ_SUITE is 'sarge': give bookworm or trixie"):
        erlang.default_suite()


def test_a_suite_without_a_postgresql_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEV_POSTGRES_SUITE", "forky")
    with pytest.raises(DevError, match=r"^DEV_POSTGRES_SUITE is 'forky': give bookworm or trixie"):
        postgres.default_suite()


def test_the_matrix_has_all_pairs_or_those_that_are_asked_for() -> None:
    assert len(matrix.pairs([])) == 9
    assert matrix.pairs(["18/3.10", "15/4.3"]) == [("15", "4.3"), ("18", "3.10")]
    with pytest.raises(ValueError, match=r"no pair '14/4\.0'"):
        matrix.pairs(["14/4.0"])


WRONG: list[list[str]] = [
    [],
    ["dance"],
    ["up", "north"],
    ["run"],
    ["run", "--"],
    ["reset", "all"],
    ["matrix", "15/4.0", "--write"],
]


@pytest.mark.parametrize("words", [*WRONG, ["test", "tests/nowhere.py::test_x"]])
def test_a_wrong_command_line_exits_2(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, DEV, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("dev: ")
    assert done.stderr.count("\n") == 1


def test_help_names_every_command() -> None:
    done = subprocess.run(
        [sys.executable, DEV, "--help"], capture_output=True, text=True, check=True
    )
    for command in commands.COMMANDS:
        assert f"  {command.name} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--batches", "abc"],
        ["demo", "--batches", "1"],
        ["demo", "--review-log", "/nowhere"],
        ["bench", "--rounds", "x"],
        ["chaos", "--seconds", "soon"],
        ["test", "--no-such-option"],
    ],
)
def test_arguments_are_checked_before_servers_start(words: list[str]) -> None:
    environ = os.environ | {"INGEST_AMQP_URL": "amqp://127.0.0.1:1/"}  # would be an error, later
    done = subprocess.run(
        [sys.executable, DEV, *words], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode in (2, 4)
    assert words[-1] in done.stderr
    assert "INGEST_AMQP_URL" not in done.stderr


@pytest.mark.parametrize("command", [command.name for command in commands.COMMANDS])
def test_every_command_has_help(command: str) -> None:
    done = subprocess.run(
        [sys.executable, DEV, command, "--help"], capture_output=True, text=True, check=True
    )
    assert f"usage: ./dev {command}" in done.stdout


def test_an_unreachable_server_exits_1_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGEST_AMQP_URL", "amqp://127.0.0.1:1/")
    argv = [sys.executable, DEV, "run", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no RabbitMQ answers at INGEST_AMQP_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_exit_code_is_the_commands_own() -> None:
    argv = [sys.executable, DEV, "run", "--", "sh", "-c", "exit 7"]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 7


def test_sigterm_is_passed_on_and_nothing_is_left(tmp_path: Path) -> None:
    script = 'trap "exit 7" TERM; sleep 600 & echo $! ; wait'
    argv = [sys.executable, DEV, "run", "--", "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        left_behind = int(child.stdout.readline())
        child.terminate()
    assert child.returncode == 7
    assert processes.gone(left_behind, 60)


EARLY = """
import os
import signal
import subprocess
import sys
from pathlib import Path
from devtools import commands

class Early(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)

signal.signal(signal.SIGTERM, commands._terminate)
subprocess.Popen = Early
sys.exit(commands._foreground(["sleep", "600"], Path.cwd(), os.environ))
"""


def test_sigterm_right_after_the_start_is_passed_on_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY],
        cwd=places.CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGTERM


def test_a_missing_command_is_named() -> None:
    argv = [sys.executable, DEV, "run", "no-such-command"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no-such-command can't be run" in done.stderr
