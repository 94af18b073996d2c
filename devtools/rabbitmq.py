"""A private RabbitMQ: started, stopped, killed, paused, in a folder of its own.

It runs the scripts of an installed RabbitMQ, or of one unpacked from Debian's packages, in a
private environment.
"""

import secrets
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from devtools.erlang import Epmd, Programs, default_suite, erlang_environment, programs
from devtools.errors import DevError
from devtools.probe import amqp_ready, management_ready
from devtools.processes import leave_running, run_step, wait_until
from devtools.server import Server
from devtools.state import ports, read_json

REMEDY = "see the log, or set INGEST_AMQP_URL to a RabbitMQ of yours"
MANAGEMENT = "rabbitmq_management"
HASHING = "rabbitmq_consistent_hash_exchange"  # for INGEST_PARTITIONS

# Where each plugin listens, in rabbitmq.conf's words; {} is the port.
LISTENERS = {
    MANAGEMENT: "management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}",
    "rabbitmq_prometheus": "prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {}",
    "rabbitmq_mqtt": "mqtt.listeners.tcp.1 = 127.0.0.1:{}",
    "rabbitmq_web_mqtt": "web_mqtt.tcp.ip = 127.0.0.1\nweb_mqtt.tcp.port = {}",
    "rabbitmq_stream": "stream.listeners.tcp.1 = 127.0.0.1:{}",
}

_END_OF_LOG = 20_000
"""Bytes: a failure writes some 5,000, and then the node is silent."""


class RabbitMQ(Server):
    """One node. `with RabbitMQ() as node:` makes a private one and removes it at the end.

    `folder` keeps the data; None: a disposable one. `suite` is the Debian release that the
    programs come from; None: DEV_RABBITMQ_SUITE, else the machine's own. `settings` are
    lines of rabbitmq.conf, `kernel` parameters of Erlang's kernel. Nodes of one cluster
    share an `epmd`, which somebody else starts and stops, the `cookie` and the names in
    `cluster`.
    """

    name = "rabbitmq"
    stopped_by = signal.SIGTERM

    def __init__(
        self,
        folder: Path | None = None,
        *,
        suite: str | None = None,
        node: str = "study@localhost",
        plugins: Sequence[str] = (MANAGEMENT, HASHING),
        settings: Mapping[str, str] | None = None,
        kernel: Mapping[str, str] | None = None,
        cluster: Sequence[str] = (),
        cookie: str | None = None,
        epmd: Epmd | None = None,
    ) -> None:
        super().__init__(folder)
        self.suite = suite or default_suite()
        self.node = node
        self.plugins = tuple(plugins)
        self._cluster = tuple(cluster)
        self._cookie = cookie
        self._kernel = {"inet_dist_use_interface": "{127,0,0,1}", **(kernel or {})}
        self._settings = {
            "disk_free_limit.absolute": "50MB",
            "vm_memory_high_watermark.absolute": "1GB",
            # What is logged is held in memory until the log is full, at 512 MB as it comes: with
            # that the watermark is reached now and then, and publishers wait.
            "raft.wal_max_size_bytes": "256000000",
            "collect_statistics_interval": "1000",
            "max_message_size": "4194304",  # as deploy/rabbitmq/study-ingest.conf says
            "log.console": "false",
            **(settings or {}),
        }
        self._logged_before = 0
        """The size of the log when the node was last launched."""
        self._reviving = threading.Lock()
        self._own_epmd = epmd is None
        self._epmd = epmd or Epmd(self.folder, self.suite)

    @property
    def port(self) -> int:
        """The AMQP port on 127.0.0.1, which stays the same over restarts. 0 before the first
        start.
        """
        return self.port_of("amqp")

    def port_of(self, what: str) -> int:
        """The port of "amqp", "distribution", or a plugin by its name; 0 before the start."""
        return int(read_json(self.folder / "ports.json").get(what, 0))

    @property
    def url(self) -> str:
        """The URL for AMQP clients. The password is RabbitMQ's default, which works on the loopback
        only.
        """
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def management_url(self) -> str:
        """The URL for clients of the management API."""
        return f"http://guest:guest@127.0.0.1:{self.port_of(MANAGEMENT)}"

    @property
    def log(self) -> Path:
        """The node's log file."""
        return self.folder / "log" / f"{self.node}.log"

    def ready(self) -> bool:
        """Whether it runs and answers on AMQP, and on the management API if that is on."""
        if self.pid is None or not amqp_ready(self.port):
            return False
        return MANAGEMENT not in self.plugins or management_ready(self.port_of(MANAGEMENT))

    def start(self, seconds: float = 90) -> Self:
        """Start, or wait for a node that is starting. Return when clients can connect.

        Raises DevError if it isn't ready within that many seconds.
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
            self._logged_before = self._logged
            leave_running(argv, self.folder / "server.pid", self.folder / "server.log", env=env)

    def wait(self, seconds: float = 90) -> Self:
        """Wait until clients can connect. Raises DevError if that takes longer."""

        def settled() -> bool:
            if self._cluster:
                self.revive()
            return self.pid is None or self.ready()

        if not wait_until(settled, seconds, 0.05) or self.pid is None:
            log = self.log if self.log.exists() else self.folder / "server.log"
            raise DevError(f"RabbitMQ {self.node} didn't start: {REMEDY} (log: {log}).")
        return self

    def revive(self) -> bool:
        """Start it again if it failed to start inside its Erlang machine, which then does nothing
        any more; whether that was so.

        A node that paused itself because it saw no majority starts again by itself. If another
        node of its cluster starts in that moment, RabbitMQ 3.10 may find that the two have
        incompatible feature flags, and give up. In production, a supervisor that looks at the
        node's health starts it again.
        """
        with self._reviving:
            if self.pid is None or not self._failed_to_start():
                return False
            self.kill()
            self.launch()
            return True

    def _failed_to_start(self) -> bool:
        if not self.log.exists():
            return False
        with self.log.open("rb") as log:
            log.seek(max(self._logged_before, self._logged - _END_OF_LOG))
            end = log.read()
        return end.rfind(b"BOOT FAILED") > end.rfind(b"Server startup complete")

    @property
    def _logged(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def pause(self) -> None:
        """SIGSTOP the node: connections stay open, and nothing answers.

        A node of a cluster that the others held for dead meanwhile comes back partitioned from
        them, whatever cluster_partition_handling says but autoheal: restart it then.
        """
        super().pause()

    def ctl(self, *words: str, program: str = "rabbitmqctl") -> str:
        """Run rabbitmqctl (or another of RabbitMQ's programs) on this node; its output.

        Starts an Erlang machine of its own: half a second and more. Raises DevError.
        """
        found = programs(self.suite)
        argv: list[str | Path] = [found.scripts / program, "--quiet", *words]
        return run_step(program, argv, REMEDY, env=self._environment(found))

    def remember_queues(self) -> None:
        """Let the quorum queues that were declared so far survive a `kill`.

        RabbitMQ (seen with 3.10.8 and 4.0.5) writes down which quorum queues a node has every
        three minutes only. Killed before that, a lone node starts the queue as a new one:
        confirmed messages are gone, and it never finds a leader. Raises DevError.
        """
        self.ctl("eval", "lists:foreach(fun dets:sync/1, dets:all()).")

    def _tidy(self) -> None:
        if self._own_epmd:
            self._epmd.stop()

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
            fresh = self.folder / ".erlang.cookie.new"
            fresh.touch(mode=0o600)
            fresh.write_text(self._cookie or secrets.token_hex(16))
            fresh.rename(cookie)  # whole or not at all: an empty one is never repaired

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
