"""RabbitMQ's and Erlang's programs: where they are, and how they stay private."""

import os
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

from devtools import broker_packages, debian
from devtools.errors import DevError
from devtools.processes import gone, leave_running, our_process, send, wait_until
from devtools.state import all_free, ports, read_json

INSTALLED = Path("/usr/lib/rabbitmq/bin")


class Programs(NamedTuple):
    """The scripts to run, what else has to be on PATH, and where shared libraries lie."""

    scripts: Path
    erlang: Path | None
    libraries: Path | None


def installed(suite: str | None) -> bool:
    """Whether the machine's own RabbitMQ is of the suite."""
    return (INSTALLED / "rabbitmq-server").exists() and suite == debian.own_suite()


def default_suite() -> str | None:
    """The Debian suite from which to take RabbitMQ: DEV_RABBITMQ_SUITE, or else the machine's own.

    None if this is not Debian. Raises DevError for an unknown suite.
    """
    asked = os.environ.get("DEV_RABBITMQ_SUITE")
    if asked and asked not in debian.SUITES:
        raise DevError(f"DEV_RABBITMQ_SUITE is {asked!r}: give {' or '.join(debian.SUITES)}.")
    return asked or debian.own_suite()


def programs(suite: str | None) -> Programs:
    """RabbitMQ's programs of this suite: the installed ones if they fit, or else unpacked ones.

    Raises DevError if there are neither.
    """
    if installed(suite):
        return Programs(INSTALLED, None, None)
    if suite is None:
        raise DevError(
            "RabbitMQ isn't installed, and can only be unpacked on Debian: install it, "
            "or set INGEST_AMQP_URL to one of yours."
        )
    root = broker_packages.unpacked(suite)
    libraries = next((lib.parent for lib in root.glob("usr/lib/*/libcrypto.so.3")), None)
    own_loader = any(root.glob("usr/lib/*/ld-linux*.so.*"))  # then the programs know the way
    return Programs(
        root / "usr/lib/rabbitmq/bin",
        root / "usr/lib/erlang/bin",
        None if own_loader else libraries,
    )


class Epmd:
    """Erlang's port mapper on the loopback interface, by which nodes on one machine find each
    other.
    """

    def __init__(self, folder: Path, suite: str | None) -> None:
        self.folder = folder
        self.suite = suite

    @property
    def port(self) -> int:
        """Its TCP port on 127.0.0.1. 0 before the first start."""
        return int(read_json(self.folder / "epmd.json").get("epmd", 0))

    @property
    def pid(self) -> int | None:
        """Its process id. None if it does not run."""
        return our_process(self.folder / "epmd.pid", self.folder)

    def start(self) -> None:
        """Start it if it does not run. Raises DevError if it fails."""
        if self.pid is not None:
            return
        port = ports(self.folder / "epmd.json", ["epmd"])["epmd"]
        found = programs(self.suite)
        env = erlang_environment(found, self.folder, port)
        epmd = shutil.which("epmd", path=env["PATH"])
        if epmd is None:
            raise DevError(f"Erlang's epmd is on none of {env['PATH']}: install erlang-base.")
        argv = (epmd, "-port", str(port), "-address", "127.0.0.1")
        leave_running(argv, self.folder / "epmd.pid", self.folder / "epmd.log", env=env)
        wait_until(lambda: not all_free([port]), 10)

    def stop(self) -> None:
        """Stop it."""
        if pid := self.pid:
            send(pid, signal.SIGTERM)
            gone(pid, 5)


def erlang_environment(found: Programs, folder: Path, epmd_port: int) -> dict[str, str]:
    """The environment that keeps Erlang's programs in their own folder and port mapper, on the
    loopback.
    """
    path = [str(part) for part in (found.erlang, found.scripts, "/usr/bin", "/bin") if part]
    environment = {
        "PATH": ":".join(path),
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    if found.libraries:
        environment["LD_LIBRARY_PATH"] = str(found.libraries)
    return environment
