"""A RabbitMQ cluster on one machine."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Self

from devtools import instances
from devtools.erlang import Epmd, default_suite
from devtools.rabbitmq import MANAGEMENT, RabbitMQ
from devtools.server import Running


class RabbitMQCluster(Running):
    """Nodes n1@localhost, n2@localhost, ... of one disposable cluster.

    `tick` is about how many seconds it takes until a silent (paused) node counts as dead.
    """

    def __init__(
        self,
        size: int = 3,
        *,
        suite: str | None = None,
        plugins: Sequence[str] = (MANAGEMENT,),
        settings: Mapping[str, str] | None = None,
        tick: int = 8,
    ) -> None:
        self.folder = instances.new_folder("cluster")
        self._epmd = Epmd(self.folder, suite or default_suite())
        names = [f"n{place}@localhost" for place in range(1, size + 1)]
        cookie = secrets.token_hex(16)
        self.nodes = [
            RabbitMQ(
                self.folder / name.partition("@")[0],
                suite=suite,
                node=name,
                plugins=plugins,
                settings={"cluster_partition_handling": "pause_minority", **(settings or {})},
                kernel={"net_ticktime": str(tick)},
                cluster=names,
                cookie=cookie,
                epmd=self._epmd,
            )
            for name in names
        ]

    @property
    def urls(self) -> list[str]:
        """The nodes' AMQP URLs, in the order of `nodes`."""
        return [node.url for node in self.nodes]

    def start(self, seconds: float = 180) -> Self:
        """Start all nodes at once. Return when each accepts clients and knows all others.

        Raises DevError if that takes too long.
        """
        self._epmd.start()
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait(seconds)
        return self

    def close(self) -> None:
        """kill -9 all nodes and remove their data."""
        for node in self.nodes:
            node.kill()
        self._epmd.stop()
        instances.remove(self.folder)
