"""The subcommands of ./dev, in one table.

`servers` and `environment` do the work. To add a command, add a row to COMMANDS.
"""

import errno
import importlib
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

import demo
from devtools import environment, matrix, postgres, servers
from devtools.causes import DISK_FULL
from devtools.errors import DevError
from devtools.places import CHECKOUT, beside, home, in_home, log_file, writable
from devtools.processes import send, started_at, tree
from devtools.progress import say
from devtools.state import held, locked

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 20  # seconds that a command gets after SIGTERM before it is killed
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
)
CACHES = {
    "MYPY_CACHE_DIR": ".mypy_cache",
    "RUFF_CACHE_DIR": ".ruff_cache",
    "HYPOTHESIS_STORAGE_DIRECTORY": ".hypothesis",
}
OTHER_CACHES = (".pytest_cache", ".import_linter_cache")


class Usage(Exception):
    """The command line is not valid. The text says why."""


class Terminated(Exception):
    """The process was asked to end, by this signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Command(NamedTuple):
    """One row of the table. `run` gets the words after the name and returns the exit code."""

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
    for line in servers.stop(now="--now" in words) or ["no servers of this checkout are running"]:
        print(line)
    return 0


def reset(words: Sequence[str]) -> int:
    """Stop the servers and delete everything that ./dev has created, wherever it is."""
    _expect(words)
    made = [".venv", *CACHES.values(), *OTHER_CACHES]
    freed = servers.reset(
        [*(CHECKOUT / name for name in made), *CHECKOUT.rglob("__pycache__")] if writable() else []
    )
    print(f"{freed // 1_000_000:,} MB freed: ./dev is as in a new checkout")
    return 0


def status(words: Sequence[str]) -> int:
    """Show what is running, where, and who uses it."""
    _expect(words)
    for line in servers.report() or ["there are no servers: start them with ./dev up"]:
        print(line)
    print(f"state: {home()}")
    return 0


def run(words: Sequence[str]) -> int:
    """Run a command in the current folder, with the servers."""
    command = list(words[1:] if words[:1] == ["--"] else words)
    if not command:
        raise Usage("run needs a command, as in ./dev run -- study-ingest --help")
    return _with_servers(command, Path.cwd())


def psql(words: Sequence[str]) -> int:
    """Open the database that the demo filled. The remaining arguments go to psql."""
    with servers.servers(names=["postgres"]) as variables:
        url = urlsplit(variables["INGEST_DATABASE_URL"])
        env = dict(os.environ)
        if url.password is not None:  # so that `ps` does not show it
            env["PGPASSWORD"] = unquote(url.password)
            login, _, address = url.netloc.rpartition("@")
            url = url._replace(netloc=f"{login.partition(':')[0]}@{address}")
        database = url._replace(path=f"/{demo.DATABASE}").geturl()
        program = shutil.which("psql") or str(postgres.binaries(postgres.default_suite()) / "psql")
        code = _foreground([program, database, *words], Path.cwd(), env)
    if code == 2:
        say(f"run ./dev demo first, which creates and fills the database {demo.DATABASE}")
    return code


def check(words: Sequence[str]) -> int:
    """Run lint, format, types and import contracts at the same time, and report all of them."""
    _expect(words)
    environment.ensure()
    checks = (*CHECKS, ("lint-imports", "--cache-dir", str(beside(".import_linter_cache"))))

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
        for argv, (code, output) in zip(checks, pool.map(one, checks), strict=True):
            print(f"--- {' '.join(argv)}: {'failed' if code else 'ok'}\n{output.rstrip()}")
            if code:
                failed.append(argv[0])
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def tests(words: Sequence[str]) -> int:
    """Run pytest on two processes for each core, since tests wait more than they compute, but on
    at most four, which share the servers.
    """
    # Each process takes its tests from one part of the suite, because files have servers of their
    # own, and helps others when it has finished.
    spread = ["-n", str(min(4, 2 * (os.cpu_count() or 1))), "--dist", "worksteal"]
    if any(
        word.startswith(("-n", "--numprocesses", "--pdb", "--collect-only", "--co"))
        for word in words
    ):
        spread = []
    argv = ["python", "-m", "pytest", *spread, *words]
    for word in words:
        path = word.partition("::")[0]
        if "/" in path and not word.startswith("-") and not (CHECKOUT / path).exists():
            raise Usage(f"there is no {path}")
    if words:
        environment.ensure()
        asked = [*argv, "--markers", "--noconftest"]  # reads the command line and does nothing else
        done = subprocess.run(
            asked, cwd=CHECKOUT, env=_variables({}), capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(done.stderr.strip(), file=sys.stderr)
            return done.returncode
    return _with_servers(argv, CHECKOUT)


def versions(words: Sequence[str]) -> int:
    """Run the tests that depend on the servers with all supported versions, or with these pairs."""
    asked = [word for word in words if word != "--write"]
    if asked and "--write" in words:
        raise Usage("--write needs the results of all pairs")
    try:
        chosen = matrix.pairs(asked)
    except ValueError as error:
        raise Usage(str(error)) from None
    results = []
    for pair in chosen:
        results.append(matrix.run(*pair))
        say(f"{'ok' if results[-1].ok else 'not ok'}: {results[-1].counts}")
    print(matrix.table(results))
    if "--write" in words:
        matrix.write(results)
    return 0 if all(each.ok for each in results) else 1


def _module(name: str) -> Callable[[Sequence[str]], int]:
    """The command that runs a module of this checkout. Its arguments are checked before the servers
    start.
    """

    def command(words: Sequence[str]) -> int:
        os.chdir(CHECKOUT)  # the module runs there, so a path in its arguments means the same
        importlib.import_module(f"{name}.arguments").parser().parse_args(words)
        # Two demos at once would drop each other's database.
        alone = locked(in_home() / f"{name}.lock", f"another ./dev {name} runs here: waiting")
        with alone if name == "demo" else nullcontext():
            return _with_servers(["python", "-m", name, *words], CHECKOUT)

    return command


COMMANDS = (
    Command(
        "demo",
        "[ARGS]",
        "show the way of a study session, from viewer to schedule",
        _module("demo"),
    ),
    Command("test", "[PYTEST ARGS]", "run the tests against real servers", tests),
    Command(
        "matrix",
        "[PAIR...]",
        "test all versions of the servers, or pairs (15/4.0); --write: into docs",
        versions,
    ),
    Command("check", "", "check lint, format, types and the direction of imports", check),
    Command("bench", "[ARGS]", "the benchmark", _module("bench")),
    Command(
        "chaos",
        "[ARGS]",
        "kill servers and workers, cut links, and check that nothing is lost",
        _module("chaos"),
    ),
    Command("run", "-- CMD", "run any command with INGEST_*_URL set and .venv first on PATH", run),
    Command("psql", "[PSQL ARGS]", "look at the database that the demo filled", psql),
    Command("up", "", "start PostgreSQL and RabbitMQ, and keep them running", up),
    Command(
        "down", "[--now]", "stop the servers (--now: even while another ./dev uses them)", down
    ),
    Command("status", "", "show what is running, where, and who uses it", status),
    Command("reset", "", "stop the servers, and delete everything that ./dev has created", reset),
)

MODULES = ("demo", "bench", "chaos")
"""Commands that have their own arguments and their own help."""

HELP = """\
usage: ./dev COMMAND [ARGUMENTS]

{commands}

Servers: if INGEST_DATABASE_URL and INGEST_AMQP_URL are set, these servers are used.
Otherwise ./dev starts a PostgreSQL 18 and a RabbitMQ on free ports of the loopback
interface, without root and without Docker, or else with docker compose. Each command
stops the servers that it started, except for `up`.

  INGEST_DATABASE_URL, INGEST_AMQP_URL   use this server or fail (also INGEST_MANAGEMENT_URL)
  DEV_BACKEND=auto|embedded|docker       which servers to start if no URL is set
  DEV_POSTGRES_SUITE=bookworm|trixie     PostgreSQL 15 or 17, from this suite of Debian
  DEV_RABBITMQ_SUITE=bookworm|trixie|forky   RabbitMQ 3.10, 4.0 or 4.3, from this suite

examples:
  ./dev demo                             from an empty machine to a result
  ./dev test -k duplicate                some of the tests
  ./dev up; ./dev test; ./dev down       keep the servers while you work
  ./dev run -- study-ingest --help       any command, in the environment
  DEV_RABBITMQ_SUITE=trixie ./dev test   on RabbitMQ 4
"""


def main(words: Sequence[str]) -> int:
    """Run one subcommand. Returns its exit code, 1 if it fails, or 2 for an invalid command
    line.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    try:
        if words[:1] in (["-h"], ["--help"], ["help"]):
            print(_help())
            return 0
        command = next((each for each in COMMANDS if [each.name] == list(words[:1])), None)
        if command is None:
            raise Usage(f"no command {words[0]!r}" if words else "no command")
        if words[1:2] in (["-h"], ["--help"]) and command.name not in MODULES:
            print(f"usage: ./dev {command.name} {command.arguments}".rstrip())
            print(f"  {command.what}")
            return 0
        return command.run(words[1:])
    except Usage as wrong:
        print(f"dev: {wrong}: see ./dev --help.", file=sys.stderr)
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
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "make it writable for this user, and run ./dev again."
            print(f"dev: {error.filename}: {error.strerror}: {remedy}", file=sys.stderr)
        else:
            print(f"dev: {error}{_traceback()}", file=sys.stderr)
        return 1


def _help() -> str:
    rows = [(f"{each.name} {each.arguments}".strip(), each.what) for each in COMMANDS]
    return HELP.format(commands="\n".join(f"  {name:22}{what}" for name, what in rows)).rstrip()


def _traceback() -> str:
    """The file with the details of an unexpected error. A full disk has no room for it."""
    try:
        log = log_file("dev")
        log.write_text(traceback.format_exc())
    except (OSError, DevError):
        return ""
    return f": fix that and run ./dev again (log: {log})"


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    raise Terminated(number)


def _expect(words: Sequence[str], *known: str) -> None:
    for word in words:
        if word not in known:
            raise Usage(f"unexpected {word!r}")


def _variables(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment, with these variables, and with the programs of the virtual environment
    first.
    """
    path = [str(environment.bin_folder()), str(environment.uv_folder())]
    ours = {
        **os.environ,
        "VIRTUAL_ENV": str(environment.venv()),
        "PATH": os.pathsep.join([*path, os.environ.get("PATH", os.defpath)]),
    }
    if not writable():
        ours |= {name: str(beside(folder)) for name, folder in CACHES.items()}
        ours["PYTEST_ADDOPTS"] = f"-o cache_dir={beside('.pytest_cache')}"
    return {**ours, **variables}


def _with_servers(argv: Sequence[str], folder: Path) -> int:
    with servers.servers() as variables:
        return _foreground(argv, folder, _variables(variables))


def _foreground(argv: Sequence[str], folder: Path, env: Mapping[str, str]) -> int:
    """Run a command in the foreground. Returns its exit code, like a shell.

    It passes signals on and waits for the command, because the servers must not stop before it.
    Raises DevError if there is no such command.
    """
    # Signals are blocked but for the wait: one that came between the start of the command and the
    # wait for it would end us and leave the command behind.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        unblock = partial(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        try:
            child = subprocess.Popen(argv, cwd=folder, env=env, pass_fds=held(), preexec_fn=unblock)
        except (FileNotFoundError, PermissionError) as error:
            raise DevError(f"{argv[0]} can't be run ({error.strerror}): is it installed?") from None
        return _waited_for(child, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _waited_for(child: subprocess.Popen[bytes], heeded: set[int | signal.Signals]) -> int:
    """The exit code of a command in the foreground; while waiting, signals are as in `heeded`."""
    patience: float | None = None
    family: dict[int, int | None] = {}
    while True:
        try:
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, heeded)
                code = child.wait(patience)
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
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
    """Whether the command also got the Ctrl-C, so that it must not get it a second time."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False
