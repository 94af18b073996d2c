"""A RabbitMQ of our own: started, stopped, killed, paused, in a folder of its own.

Runs the scripts of an installed RabbitMQ, or of one unpacked from Debian's packages, in a
private environment. Knows nothing of PostgreSQL, of our topology, or of who uses the server.
"""

import os
import secrets
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from devtools import debian, instances
from devtools.errors import DevError
from devtools.probe import amqp_ready, management_ready
from devtools.processes import (
    freeze,
    gone,
    kill_tree,
    leave_running,
    our_process,
    run_step,
    send,
    thaw,
    wait_until,
)
from devtools.state import all_free, ports, read_json

MEND = "see the log, or set INGEST_AMQP_URL to a RabbitMQ of yours"
INSTALLED = Path("/usr/lib/rabbitmq/bin")
MANAGEMENT = "rabbitmq_management"

# Where each plugin listens, in rabbitmq.conf's words; {} is the port.
LISTENERS = {
    MANAGEMENT: "management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}",
    "rabbitmq_prometheus": "prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {}",
    "rabbitmq_mqtt": "mqtt.listeners.tcp.1 = 127.0.0.1:{}",
    "rabbitmq_web_mqtt": "web_mqtt.tcp.ip = 127.0.0.1\nweb_mqtt.tcp.port = {}",
    "rabbitmq_stream": "stream.listeners.tcp.1 = 127.0.0.1:{}",
}


class Programs(NamedTuple):
    """The scripts to run, what else has to be on PATH, and where shared libraries lie."""

    scripts: Path
    erlang: Path | None
    libraries: Path | None


def installed(suite: str | None) -> bool:
    """Whether the machine's own RabbitMQ is of the suite."""
    return (INSTALLED / "rabbitmq-server").exists() and suite == debian.own_suite()


def default_suite() -> str | None:
    """The Debian suite to take RabbitMQ from: DEV_RABBITMQ_SUITE, else the machine's own.

    None where it isn't a Debian. Raises DevError for a suite that isn't known.
    """
    asked = os.environ.get("DEV_RABBITMQ_SUITE")
    if asked and asked not in debian.SUITES:
        raise DevError(f"DEV_RABBITMQ_SUITE is {asked!r}: give {' or '.join(debian.SUITES)}.")
    return asked or debian.own_suite()


def programs(suite: str | None) -> Programs:
    """RabbitMQ's programs of this suite: the installed ones where they are it, else unpacked ones.

    Raises DevError where there are neither.
    """
    if installed(suite):
        return Programs(INSTALLED, None, None)
    if suite is None:
        raise DevError(
            "RabbitMQ isn't installed, and can only be unpacked on Debian: install it, "
            "or set INGEST_AMQP_URL to one of yours."
        )
    root = debian.unpacked(suite)
    libraries = next((lib.parent for lib in root.glob("usr/lib/*/libcrypto.so.3")), None)
    own_loader = any(root.glob("usr/lib/*/ld-linux*.so.*"))  # then the programs know the way
    return Programs(
        root / "usr/lib/rabbitmq/bin",
        root / "usr/lib/erlang/bin",
        None if own_loader else libraries,
    )


class RabbitMQ:
    """One node. `with RabbitMQ() as node:` makes a private one and removes it at the end.

    `folder` keeps the data; None: a disposable one. `suite` is the Debian release that the
    programs come from; None: DEV_RABBITMQ_SUITE, else the machine's own. `settings` are
    lines of rabbitmq.conf, `kernel` parameters of Erlang's kernel. Nodes of one cluster
    share an `epmd`, which somebody else starts and stops, the `cookie` and the names in
    `cluster`.
    """

    name = "rabbitmq"

    def __init__(
        self,
        folder: Path | None = None,
        *,
        suite: str | None = None,
        node: str = "study@localhost",
        plugins: Sequence[str] = (MANAGEMENT,),
        settings: Mapping[str, str] | None = None,
        kernel: Mapping[str, str] | None = None,
        cluster: Sequence[str] = (),
        cookie: str | None = None,
        epmd: "Epmd | None" = None,
    ) -> None:
        self.disposable = folder is None
        self.folder = folder or instances.new_folder(self.name)
        self.suite = suite or default_suite()
        self.node = node
        self.plugins = tuple(plugins)
        self._cluster = tuple(cluster)
        self._cookie = cookie
        self._kernel = {"inet_dist_use_interface": "{127,0,0,1}", **(kernel or {})}
        self._settings = {
            "disk_free_limit.absolute": "50MB",
            "vm_memory_high_watermark.absolute": "1GB",
            "collect_statistics_interval": "1000",
            "log.console": "false",
            **(settings or {}),
        }
        self._own_epmd = epmd is None
        self._epmd = epmd or Epmd(self.folder, self.suite)

    @property
    def port(self) -> int:
        """The AMQP port on 127.0.0.1; stays the same over restarts. 0 before the first start."""
        return self.port_of("amqp")

    def port_of(self, what: str) -> int:
        """The port of "amqp", "distribution", or a plugin by its name; 0 before the start."""
        return int(read_json(self.folder / "ports.json").get(what, 0))

    @property
    def url(self) -> str:
        """For AMQP clients. The password is RabbitMQ's own default, good on the loopback only."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def management_url(self) -> str:
        """For clients of the management API."""
        return f"http://guest:guest@127.0.0.1:{self.port_of(MANAGEMENT)}"

    @property
    def pid(self) -> int | None:
        """The Erlang machine's process id; None while it doesn't run."""
        return our_process(self.folder / "server.pid", self.folder)

    @property
    def log(self) -> Path:
        """What the node logs."""
        return self.folder / "log" / f"{self.node}.log"

    def alive(self) -> bool:
        """Whether its process runs, ready or not."""
        return self.pid is not None

    def ready(self) -> bool:
        """Whether it runs and answers on AMQP, and on the management API where that is on."""
        if self.pid is None or not amqp_ready(self.port):
            return False
        return MANAGEMENT not in self.plugins or management_ready(self.port_of(MANAGEMENT))

    def prepare(self) -> None:
        """Fetch what is needed to start. Raises DevError where that can't be had."""
        programs(self.suite)

    def start(self, seconds: float = 90) -> Self:
        """Start, or wait for one that is starting; return when clients can connect.

        Raises DevError where it isn't ready within that many seconds.
        """
        self.launch()
        return self.wait(seconds)

    def launch(self) -> None:
        """Start without waiting for it to be ready."""
        if self.pid is None:
            self._configure()
            self._epmd.start()
            found = programs(self.suite)
            argv = (found.scripts / "rabbitmq-server",)
            env = self._environment(found)
            leave_running(argv, self.folder / "server.pid", self.folder / "server.log", env=env)

    def wait(self, seconds: float = 90) -> Self:
        """Wait until clients can connect. Raises DevError where that takes longer."""
        done = wait_until(lambda: self.pid is None or self.ready(), seconds, 0.05)
        if not done or self.pid is None:
            log = self.log if self.log.exists() else self.folder / "server.log"
            raise DevError(f"RabbitMQ {self.node} didn't start: {MEND} (log: {log}).")
        return self

    def stop(self, seconds: float = 30) -> None:
        """End it cleanly; kill -9 after that many seconds. Ends its port mapper too."""
        if pid := self.pid:
            send(pid, signal.SIGTERM)
            if not gone(pid, seconds):
                kill_tree(pid)
        if self._own_epmd:
            self._epmd.stop()

    def kill(self) -> None:
        """kill -9 the node's whole Erlang machine."""
        if pid := self.pid:
            kill_tree(pid)

    def pause(self) -> None:
        """SIGSTOP the node: connections stay open, and nothing answers.

        A node of a cluster that the others held for dead meanwhile comes back partitioned from
        them, whatever cluster_partition_handling says but autoheal: restart it then.
        """
        if pid := self.pid:
            freeze(pid)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        if pid := self.pid:
            thaw(pid)

    def restart(self) -> Self:
        """Stop cleanly and start again, on the same ports."""
        self.stop()
        return self.start()

    def ctl(self, *words: str, program: str = "rabbitmqctl") -> str:
        """Run rabbitmqctl (or another of RabbitMQ's programs) on this node; its output.

        Starts an Erlang machine of its own: half a second and more. Raises DevError.
        """
        found = programs(self.suite)
        argv: list[str | Path] = [found.scripts / program, "--quiet", *words]
        return run_step(program, argv, MEND, env=self._environment(found))

    def remember_queues(self) -> None:
        """Let the quorum queues that were declared so far survive a `kill`.

        RabbitMQ (seen with 3.10.8 and 4.0.5) writes down which quorum queues a node has every
        three minutes only. Killed before that, a lone node starts the queue as a new one:
        confirmed messages are gone, and it never finds a leader. Raises DevError.
        """
        self.ctl("eval", "lists:foreach(fun dets:sync/1, dets:all()).")

    def close(self) -> None:
        """Stop; a disposable one is killed, and its data removed."""
        if not self.disposable:
            self.stop()
            return
        self.kill()
        if self._own_epmd:
            self._epmd.stop()
        instances.remove(self.folder)

    def __enter__(self) -> Self:
        try:
            return self if self.ready() else self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _configure(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        listening = [plugin for plugin in self.plugins if plugin in LISTENERS]
        mine = ports(self.folder / "ports.json", ["amqp", "distribution", *listening])
        lines = [f"listeners.tcp.1 = 127.0.0.1:{mine['amqp']}"]
        lines += [LISTENERS[plugin].format(mine[plugin]) for plugin in listening]
        lines += [f"{name} = {value}" for name, value in self._settings.items()]
        if self._cluster:
            lines.append("cluster_formation.peer_discovery_backend = classic_config")
            for place, node in enumerate(self._cluster, 1):
                lines.append(f"cluster_formation.classic_config.nodes.{place} = {node}")
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].\n")
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(self._cookie or secrets.token_hex(16))

    def _environment(self, found: Programs) -> dict[str, str]:
        folder = self.folder
        kernel = " ".join(f"-kernel {name} {value}" for name, value in self._kernel.items())
        return {
            **erlang_environment(found, folder, self._epmd.port),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self.port_of("distribution")),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_PID_FILE": str(folder / "node.pid"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": kernel,
            "RABBITMQ_CTL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            # makes the script give way to the Erlang machine, instead of staying its parent
            "RUNNING_UNDER_SYSTEMD": "true",
        }


class Epmd:
    """Erlang's port mapper, by which nodes on one machine find each other; on the loopback."""

    def __init__(self, folder: Path, suite: str | None) -> None:
        self.folder = folder
        self.suite = suite

    @property
    def port(self) -> int:
        """Its TCP port on 127.0.0.1; 0 before the first start."""
        return int(read_json(self.folder / "epmd.json").get("epmd", 0))

    @property
    def pid(self) -> int | None:
        """Its process id; None while it doesn't run."""
        return our_process(self.folder / "epmd.pid", self.folder)

    def start(self) -> None:
        """Start it where it doesn't run. Raises DevError where it won't."""
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
        """End it."""
        if pid := self.pid:
            send(pid, signal.SIGTERM)
            gone(pid, 5)


def erlang_environment(found: Programs, folder: Path, epmd_port: int) -> dict[str, str]:
    """What Erlang's programs need to keep to their own folder and port mapper, on the loopback."""
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
