"""Everything that faults can hit: the servers, the processes, and a link between each pair of them.

Every process has its own proxies to each server that it uses.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from chaos.actors import Actor
from chaos.evidence import Look, Strange
from chaos.phone import Plan
from chaos.proxy import Proxy
from chaos.stage import PROGRAM, Stage
from devtools.rabbitmq import MANAGEMENT

WORKERS_MAX: Final = 4
_WORKERS: Final = 3
"""The number of workers at the start and at the end. In between there are 1 to 4."""
_RELAYS: Final = 2
HOUSE_POLICY: Final = "policies/%2F/house"
"""The path of the policy that a fault sets, in the management API."""


@dataclass(frozen=True, slots=True)
class World:
    """`links` has the keys (who, whom), such as ("worker-1", "database").

    Where there are several servers of a kind, the next ones are "database 2" and so on.
    """

    stage: Stage
    workers: list[Actor]
    relays: list[Actor]
    phones: list[Actor]
    links: dict[tuple[str, str], Proxy]
    strange: list[Strange] = field(default_factory=list)
    """What faults have published."""
    looks: list[Look] = field(default_factory=list)
    """What an operator saw during faults."""

    @property
    def actors(self) -> list[Actor]:
        """All processes."""
        return [*self.workers, *self.relays, *self.phones]

    def outbox(self, phone: Actor) -> Path:
        """The file of a viewer's outbox."""
        return self.stage.folder / f"{phone.name}.sqlite"

    def links_to(self, *services: str) -> list[Proxy]:
        """Each link to a server of these services."""
        return [link for (_, to), link in self.links.items() if to.partition(" ")[0] in services]

    def pairs(self) -> list[tuple[str, str]]:
        """The kinds of links: ("worker", "database") and so on."""
        return sorted({(who.partition("-")[0], whom) for who, whom in self.links})

    def links_of(self, pair: tuple[str, str]) -> list[tuple[str, Proxy]]:
        """Each link of that kind, and its name."""
        return [
            (f"{who} to {whom}", link)
            for (who, whom), link in self.links.items()
            if (who.partition("-")[0], whom) == pair
        ]

    async def scale(self, count: int) -> None:
        """Makes `count` workers run: starts more, or drains some."""
        await asyncio.gather(
            *(each.start() for each in self.workers[:count]),
            *(each.stop() for each in self.workers[count:]),
        )

    async def heal(self) -> None:
        """Ends every possible trouble, as an operator would. May be called again."""
        for link in self.links.values():
            link.heal()
        for actor in self.actors:
            actor.resume()
        servers = [*self.stage.databases, *self.stage.nodes]
        for server in servers:
            server.resume()
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers))
        await unlock_database(self.stage)
        await relax_broker(self.stage)
        await drop_policy(self.stage)
        await self.scale(_WORKERS)
        await asyncio.gather(*(each.start() for each in (*self.relays, *self.phones)))


async def unlock_database(stage: Stage) -> None:
    """Allows workers to connect and write again."""
    await stage.sql("ALTER SYSTEM RESET default_transaction_read_only")
    await stage.sql("SELECT pg_reload_conf()")
    await stage.sql("ALTER ROLE ingest CONNECTION LIMIT -1")


async def relax_broker(stage: Stage) -> None:
    """Ends the broker's alarms."""
    # In one call, because each call starts an Erlang machine, which takes over a second.
    ends = "vm_memory_monitor:set_vm_memory_high_watermark({absolute, 1000000000}),"
    ends += "rabbit_disk_monitor:set_disk_free_limit(50000000)."
    await asyncio.to_thread(stage.broker.ctl, "eval", ends)


async def drop_policy(stage: Stage) -> None:
    """Removes the policy that a fault has set, if it is there."""
    with suppress(httpx.HTTPStatusError):
        await stage.management("DELETE", HOUSE_POLICY)


@asynccontextmanager
async def world(
    stage: Stage, *, viewers: int, users: int, seed: int, seconds: float, rate: float
) -> AsyncIterator[World]:
    """Starts all processes. At the end it kills those that are left."""
    async with AsyncExitStack() as stack:
        made = World(stage, [], [], [], {})
        stack.push_async_callback(_abort, made)

        async def links(who: str, service: str, ports: Sequence[int]) -> list[int]:
            entered = []
            for number, port in enumerate(ports, 1):
                proxy = await stack.enter_async_context(Proxy("127.0.0.1", port, seed=seed))
                made.links[who, service if number == 1 else f"{service} {number}"] = proxy
                entered.append(proxy.port)
            return entered

        databases = [each.port for each in stage.databases]
        brokers = [node.port for node in stage.nodes]
        managements = [node.port_of(MANAGEMENT) for node in stage.nodes]
        for command, names in (
            ("worker", [f"worker-{n}" for n in range(1, WORKERS_MAX + 1)]),
            ("relay", [f"relay-{n}" for n in range(1, _RELAYS + 1)]),
        ):
            for name in names:
                env = stage.environment(
                    await links(name, "database", databases),
                    await links(name, "broker", brokers),
                    await links(name, "management", managements),
                )
                # The first worker also relays, which is the default. The others leave it to the
                # relays.
                env["INGEST_RELAY_IN_WORKER"] = str(name == "worker-1").lower()
                actor = Actor(name, [PROGRAM, command], env, stage.folder / f"{name}.log")
                (made.workers if command == "worker" else made.relays).append(actor)
        for number in range(1, viewers + 1):
            name = f"viewer-{number}"
            # Each viewer has two users, and each user two viewers.
            mine = [(number - 1) % users + 1, number % users + 1]
            if number < viewers:  # the last one may see nobody's progress
                await stage.grant(name, mine)
            plan = Plan(
                viewer=name,
                outbox=str(stage.folder / f"{name}.sqlite"),
                bank=str(stage.folder / "bank.json"),
                url=stage.amqp_url(await links(name, "broker", brokers)),
                seed=seed,
                users=mine,
                began=time.time(),
                seconds=seconds,
                rate=rate,
                # Results are lost with the node that has a viewer's queue.
                impatience=20.0 if number == 1 or stage.others else 900.0,
            )
            argv = [sys.executable, "-m", "chaos.phone", plan.as_argument()]
            env = stage.environment([0], [0], [0])
            made.phones.append(Actor(name, argv, env, stage.folder / f"{name}.log"))
        await made.scale(_WORKERS)
        await asyncio.gather(*(each.start() for each in (*made.relays, *made.phones)))
        yield made


async def _abort(made: World) -> None:
    await asyncio.gather(*(actor.abort() for actor in made.actors))
