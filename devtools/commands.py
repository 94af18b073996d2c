"""The subcommands of ./dev: one table, and what stands behind each.

Knows where servers and the environment come from, and nothing of how they are made. To add
a command, add a row to COMMANDS.
"""

import errno
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

from devtools import environment, servers
from devtools.errors import DevError
from devtools.places import CHECKOUT, home, log_file
from devtools.processes import DISK_FULL, send, started_at, tree

GRACE = 20  # s that a command has to end after SIGTERM before it is killed
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("lint-imports",),
)


class Usage(Exception):
    """The command line makes no sense; says why."""


class Terminated(Exception):
    """We were asked to end, by this signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Command(NamedTuple):
    """One row of the table: `run` takes what follows the name, and returns the exit code."""

    name: str
    arguments: str
    what: str
    run: Callable[[Sequence[str]], int]


def up(words: Sequence[str]) -> int:
    """Start the servers, leave them running, and print where they are."""
    _expect(words)
    with servers.servers(keep=True) as variables:
        for name, url in variables.items():
            print(f"{name}={url}")
    return 0


def down(words: Sequence[str]) -> int:
    """Stop the servers that ./dev started."""
    _expect(words, "--now")
    for line in servers.stop(now="--now" in words) or ["nothing of ours is running"]:
        print(line)
    return 0


def status(words: Sequence[str]) -> int:
    """Say what runs, where, and for whom."""
    _expect(words)
    for line in servers.report() or ["no servers yet: ./dev up starts them"]:
        print(line)
    print(f"state: {home()}")
    return 0


def run(words: Sequence[str]) -> int:
    """Run a command of the user's, in the user's folder, with the servers."""
    command = list(words[1:] if words[:1] == ["--"] else words)
    if not command:
        raise Usage("run needs a command")
    return _with_servers(command, Path.cwd())


def check(words: Sequence[str]) -> int:
    """Lint, format, types, imports: all of them at once, and all of them told."""
    _expect(words)
    environment.ensure()

    def one(argv: Sequence[str]) -> tuple[int, str]:
        done = subprocess.run(
            argv,
            cwd=CHECKOUT,
            env=_variables({}),
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return done.returncode, done.stdout

    failed = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for argv, (code, output) in zip(CHECKS, pool.map(one, CHECKS), strict=True):
            print(f"--- {' '.join(argv)}: {'failed' if code else 'ok'}\n{output.rstrip()}")
            if code:
                failed.append(" ".join(argv))
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def tests(words: Sequence[str]) -> int:
    """Run pytest, on as many processes as there are cores (four at most: they share servers)."""
    spread = ["-n", str(min(4, os.cpu_count() or 1))]
    if any(
        word.startswith(("-n", "--numprocesses", "--pdb", "--collect-only", "--co"))
        for word in words
    ):
        spread = []
    return _module("pytest", *spread)(words)


def _module(name: str, *first: str) -> Callable[[Sequence[str]], int]:
    """The command that runs a Python module of the checkout; only its help needs no servers."""

    def command(words: Sequence[str]) -> int:
        argv = ["python", "-m", name, *first, *words]
        if {"-h", "--help"} & set(words):
            environment.ensure()
            return _foreground(argv, CHECKOUT, _variables({}))
        return _with_servers(argv, CHECKOUT)

    return command


COMMANDS = (
    Command(
        "demo", "[ARGS]", "the way of a study session, from viewer to schedule", _module("demo")
    ),
    Command("test", "[PYTEST ARGS]", "the tests, against real servers", tests),
    Command("check", "", "lint, format, types and the direction of imports", check),
    Command("bench", "[ARGS]", "the benchmark", _module("bench")),
    Command(
        "chaos",
        "[ARGS]",
        "kill and cut servers and workers, and count what arrives",
        _module("chaos"),
    ),
    Command("run", "-- CMD", "any command, with INGEST_*_URL set and .venv first on PATH", run),
    Command("up", "", "start PostgreSQL and RabbitMQ, and leave them running", up),
    Command("down", "[--now]", "stop them (--now: even while another ./dev uses them)", down),
    Command("status", "", "what runs, where, and for whom", status),
)

HELP = """\
usage: ./dev COMMAND [ARGUMENTS]

{commands}

Servers: those at INGEST_DATABASE_URL and INGEST_AMQP_URL where these are set; else a
PostgreSQL 18 and a RabbitMQ of our own on free ports of the loopback, with no root and
no Docker; else docker compose. What a command starts it also stops, unless `up` did.

  INGEST_DATABASE_URL, INGEST_AMQP_URL   use this server, or fail (INGEST_MANAGEMENT_URL too)
  DEV_BACKEND=auto|embedded|docker       which servers, where no URL is set
  DEV_RABBITMQ_SUITE=bookworm|trixie     RabbitMQ 3.10 or 4.0, out of this Debian suite

examples:
  ./dev demo                             from nothing to a result
  ./dev test -k duplicate                some of the tests
  ./dev up; ./dev test; ./dev down       keep the servers while you work
  ./dev run -- study-ingest --help       any command, in the environment
  DEV_RABBITMQ_SUITE=trixie ./dev test   on RabbitMQ 4
"""


def main(words: Sequence[str]) -> int:
    """Run one subcommand; its exit code, 1 for what we can't do, 2 for a wrong command line."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    try:
        if words[:1] in (["-h"], ["--help"], ["help"]):
            print(_help())
            return 0
        command = next((each for each in COMMANDS if [each.name] == list(words[:1])), None)
        if command is None:
            raise Usage(f"no command {words[0]!r}" if words else "no command")
        return command.run(words[1:])
    except Usage as wrong:
        print(f"dev: {wrong}; ./dev --help lists them.", file=sys.stderr)
        return 2
    except DevError as error:
        print(f"dev: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Terminated as end:
        return 128 + end.number
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"dev: {DISK_FULL}", file=sys.stderr)
        else:
            print(f"dev: {error}{_traceback()}", file=sys.stderr)
        return 1


def _help() -> str:
    rows = [(f"{each.name} {each.arguments}".strip(), each.what) for each in COMMANDS]
    return HELP.format(commands="\n".join(f"  {name:22}{what}" for name, what in rows)).rstrip()


def _traceback() -> str:
    """Where the details of an unforeseen error were written; a full disk leaves nowhere."""
    try:
        log = log_file("dev")
        log.write_text(traceback.format_exc())
    except (OSError, DevError):
        return ""
    return f": mend that and run ./dev again (log: {log})"


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    raise Terminated(number)


def _expect(words: Sequence[str], *known: str) -> None:
    for word in words:
        if word not in known:
            raise Usage(f"unexpected {word!r}")


def _variables(variables: dict[str, str]) -> dict[str, str]:
    """Our environment, these variables, and the virtual environment's programs first."""
    path = f"{environment.bin_folder()}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "VIRTUAL_ENV": str(environment.VENV), "PATH": path, **variables}


def _with_servers(argv: Sequence[str], folder: Path) -> int:
    with servers.servers() as variables:
        return _foreground(argv, folder, _variables(variables))


def _foreground(argv: Sequence[str], folder: Path, env: dict[str, str]) -> int:
    """Run a command in front of the user; its exit code, as a shell counts.

    Signals are passed on, and it is waited for: the servers must not end under it.
    Raises DevError where there is no such command.
    """
    try:
        child = subprocess.Popen(argv, cwd=folder, env=env)
    except (FileNotFoundError, PermissionError) as error:
        raise DevError(f"{argv[0]} can't be run ({error.strerror}): is it installed?") from None
    patience: float | None = None
    family: dict[int, int | None] = {}
    while True:
        try:
            code = child.wait(patience)
            for pid, started in family.items():  # what it has left behind
                if started_at(pid) == started:
                    send(pid, signal.SIGKILL)
            return code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            child.kill()
        except KeyboardInterrupt:
            if not _terminal_told_it():
                child.send_signal(signal.SIGINT)
        except Terminated as end:
            family = {pid: started_at(pid) for pid in tree(child.pid)[1:]}
            child.send_signal(end.number)
            patience = GRACE


def _terminal_told_it() -> bool:
    """Whether a Ctrl-C reached the command as well, so that passing it on would be a second."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False
