"""The same two servers in containers, if a Docker engine answers. See devtools/compose.yml."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from devtools.errors import DevError
from devtools.probe import amqp_ready, management_ready, postgres_ready
from devtools.processes import run_step, wait_until
from devtools.state import ports, read_json

FILE = Path(__file__).parent / "compose.yml"
REMEDY = "see that the engine can pull images, or set INGEST_DATABASE_URL and INGEST_AMQP_URL"


def obstacle() -> str | None:
    """Why Docker can't be used. None if an engine answers and Compose is available."""
    if shutil.which("docker") is None:
        return "docker isn't installed"
    if not _answers("docker", "version"):
        return "no Docker engine answers"
    return None if _compose() else "docker has no compose"


def _answers(*argv: str) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=5, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _compose() -> tuple[str, ...] | None:
    for argv in (("docker", "compose"), ("docker-compose",)):
        if _answers(*argv, "version"):
            return argv
    return None


class _Container:
    """One service of the file. Its ports are stored in `folder`."""

    service: str
    port_names: tuple[str, ...]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _port(self, name: str) -> int:
        return int(read_json(self.folder / "ports.json").get(name, 0))

    def _run(self, *words: str) -> None:
        compose = _compose()
        if compose is None:
            raise DevError(f"docker has no compose any more: {REMEDY}.")
        known = {name: str(self._port(name)) for name in self.port_names}
        project = f"study-{hashlib.sha256(bytes(self.folder.parent)).hexdigest()[:8]}"
        argv: list[str | Path] = [*compose, "-p", project, "-f", FILE, *words]
        run_step("docker", argv, REMEDY, env={**os.environ, **known})

    def alive(self) -> bool:
        """Whether this checkout has started it, ready or not."""
        return (self.folder / "started").exists()

    def ready(self) -> bool:
        raise NotImplementedError

    def start(self, seconds: float = 90) -> None:
        """Start the container. Return when clients can connect. Raises DevError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ports(self.folder / "ports.json", self.port_names)
        (self.folder / "started").touch()
        self._run("up", "-d", self.service)
        if not wait_until(self.ready, seconds, 0.1):
            raise DevError(f"the container {self.service} didn't get ready: see docker's logs.")

    def stop(self, seconds: float = 10) -> None:
        """Remove the container and its data, if it was ever started."""
        if self.alive():
            self._run("rm", "--stop", "--force", "-v", self.service)
            (self.folder / "started").unlink()


class ComposePostgres(_Container):
    """PostgreSQL in a container."""

    service = "postgres"
    port_names = ("POSTGRES_PORT",)

    @property
    def url(self) -> str:
        """The URL for clients, without a password, because the loopback interface is trusted."""
        return f"postgresql://worker@127.0.0.1:{self._port('POSTGRES_PORT')}/study"

    def ready(self) -> bool:
        """Whether it accepts connections."""
        port = self._port("POSTGRES_PORT")
        return bool(port) and postgres_ready(port, "worker", "study")


class ComposeRabbitMQ(_Container):
    """RabbitMQ in a container."""

    service = "rabbitmq"
    port_names = ("RABBITMQ_PORT", "MANAGEMENT_PORT")

    @property
    def url(self) -> str:
        """For AMQP clients."""
        return f"amqp://guest:guest@127.0.0.1:{self._port('RABBITMQ_PORT')}/"

    @property
    def management_url(self) -> str:
        """For clients of the management API."""
        return f"http://guest:guest@127.0.0.1:{self._port('MANAGEMENT_PORT')}"

    def ready(self) -> bool:
        """Whether it answers on AMQP and on the management API."""
        amqp, management = self._port("RABBITMQ_PORT"), self._port("MANAGEMENT_PORT")
        return bool(amqp) and amqp_ready(amqp) and management_ready(management)
