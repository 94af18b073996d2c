"""Processes: run a step with its output in a log, leave a server running, find it again and end it.

A process is only ever signalled by its id, and only after a check that it was started for the
folder that the caller names.
"""

import ctypes
import os
import pwd
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path

from devtools.causes import failure
from devtools.errors import BrokenOff, DevError
from devtools.places import log_file
from devtools.state import held

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

_steps: set[subprocess.Popen[bytes]] = set()
_interrupted = threading.Event()


def run_step(
    name: str,
    argv: Sequence[str | Path],
    remedy: str,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: pwd.struct_passwd | None = None,
    given: str = "",
) -> str:
    """Run a command to its end, with its output appended to the step's log. Return its stdout.

    Everything that this process has locked stays locked until the command has ended. Raises
    DevError, with `remedy` or a better remedy, if the command is missing or fails.
    """
    if _interrupted.is_set():
        raise BrokenOff(f"{name} was broken off.")
    log = log_file(name)
    start = time.monotonic()
    try:
        child = subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            pass_fds=held(),
            umask=0o022,  # root's may be stricter; PostgreSQL's user has to read what we install
            user=user and user.pw_uid,
            group=user and user.pw_gid,
            extra_groups=[] if user else None,
        )
    except FileNotFoundError:
        raise DevError(f"{argv[0]} isn't there: {remedy}") from None
    _steps.add(child)
    try:
        output = child.communicate(given.encode())[0].decode(errors="replace")
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        _steps.discard(child)
    with log.open("a") as sink:
        seconds = time.monotonic() - start
        sink.write(f"$ {' '.join(map(str, argv))}\n{output}[{child.returncode}, {seconds:.1f} s]\n")
    if _interrupted.is_set():
        raise BrokenOff(f"{name} was broken off.")
    if child.returncode:
        raise DevError(failure(name, output, remedy, log))
    return output


def _interrupt_steps() -> None:
    _interrupted.set()
    for child in tuple(_steps):
        child.terminate()


def at_once(jobs: Sequence[Callable[[], object]]) -> None:
    """Run all jobs side by side. If one fails, or this process is interrupted, the others break
    off.
    """
    with ThreadPoolExecutor(max(1, len(jobs))) as pool:
        futures = [pool.submit(copy_context().run, job) for job in jobs]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if not all(future.done() for future in futures):
                _interrupt_steps()
            wait(futures)
            _interrupted.clear()
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenOff)):
        raise error


def wait_until(ready: Callable[[], bool], seconds: float, pause: float = 0.02) -> bool:
    """Poll until `ready()`. Returns False if the time has run out.

    Raises BrokenOff if something that runs beside it has failed.
    """
    end = time.monotonic() + seconds
    while not ready():
        if _interrupted.is_set():
            raise BrokenOff("waiting was broken off.")
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def leave_running(
    argv: Sequence[str | Path],
    pid_file: Path,
    log: Path,
    *,
    env: Mapping[str, str],
    user: pwd.struct_passwd | None = None,
) -> None:
    """Start a server in a session of its own, with its id in `pid_file`.

    A shell stands between, so that the id is on disk even if this process is killed at this moment,
    and so that the server is nobody's child: it outlives this process and leaves no zombie.
    """
    pid_file.unlink(missing_ok=True)
    subprocess.run(
        ["/bin/sh", "-c", 'log=$1 pid=$2; shift 2; "$@" >>"$log" 2>&1 & echo $! >"$pid"', "sh"]
        + [str(part) for part in (log, pid_file, *argv)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=env,
        cwd="/",
        start_new_session=True,
        umask=0o022,
        check=True,
        user=user and user.pw_uid,
        group=user and user.pw_gid,
        extra_groups=[] if user else None,
    )


def die_with_parent() -> None:
    """Call this in a new process (`preexec_fn`): it is killed when its parent ends in any way."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def started_at(pid: int) -> int | None:
    """When a process began, in the kernel's ticks since boot. None if there is no such process.

    0 for any living process, on systems that don't provide it.
    """
    if not Path("/proc/self").exists():
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            return 0
        return None
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def our_process(pid_file: Path, folder: Path) -> int | None:
    """The id in the file, if that process lives and was started for `folder`.

    Ids are reused, certainly after a restart of the machine. So only a process whose command line
    or environment names the folder is the right one.
    """
    try:
        pid = int(pid_file.read_text().split()[0])
        for _ in range(20):
            process = Path(f"/proc/{pid}")
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if told or not _stat(pid):
                break
            time.sleep(0.005)  # in the middle of an exec a process has neither
    except (OSError, ValueError, IndexError):
        return None
    # The name may be the beginning of another one: `postgres-7-1`, and `postgres-7-12`.
    is_ours = any(bytes(folder) + end in told for end in (b"/", b"\0"))
    return pid if is_ours and _stat(pid) else None


def tree(pid: int) -> list[int]:
    """The process and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if fields := _stat(int(entry.name)):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:  # grows while it is walked
        found.extend(children.get(parent, []))
    return found


def send(pid: int, number: signal.Signals) -> None:
    """Signal one process. One that has already ended is no error."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def freeze(pid: int) -> list[int]:
    """Send SIGSTOP to a process and its descendants, so that none can react. Return them."""
    frozen: list[int] = []
    while fresh := [each for each in tree(pid) if each not in frozen]:
        for each in fresh:  # the parent first: a stopped parent has no more children
            send(each, signal.SIGSTOP)
        frozen += fresh
    return frozen


def thaw(pid: int) -> None:
    """Send SIGCONT to a process and its descendants, the children first."""
    for each in reversed(tree(pid)):
        send(each, signal.SIGCONT)


def kill_tree(pid: int) -> None:
    """Send kill -9 to a process and its descendants at once, and wait until they have ended."""
    doomed = freeze(pid)
    for each in doomed:
        send(each, signal.SIGKILL)
    end_by = time.monotonic() + 10
    while any(_stat(each) for each in doomed) and time.monotonic() < end_by:
        time.sleep(0.005)


def gone(pid: int, seconds: float) -> bool:
    """Wait for a process to end. Returns False if it still runs after that time."""
    end_by = time.monotonic() + seconds
    while _stat(pid):
        if time.monotonic() > end_by:
            return False
        time.sleep(0.02)
    return True


def _stat(pid: int) -> list[str] | None:
    """/proc's fields from the state on ([0] state, [1] parent, [19] start); None if dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields
