"""`python -m chaos.cluster`: kills each of three RabbitMQ nodes in turn, under load.

It kills the leader of the queue of batches first, then the others, one at a time, and waits until
each is back before it kills the next. Viewers and workers use one address, which leads to any node
that accepts connections, like an operator's load balancer. No worker is restarted. At the end it
drains, checks, and prints one JSON object with the time without a commit after each kill. It takes
a few minutes, mostly for starting nodes.
"""

import asyncio
import itertools
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aio_pika
import httpx

from chaos import bank
from chaos.actors import Actor
from chaos.checker import check
from chaos.evidence import Evidence, read_database, read_outbox, read_queues
from chaos.link import Link
from chaos.phone import Plan
from chaos.pulse import Pulse
from chaos.stage import JOBS_TAP, PROGRAM, RESULTS_TAP, Stage, prepare
from devtools.cluster import RabbitMQCluster
from devtools.postgres import Postgres
from devtools.processes import at_once
from devtools.rabbitmq import MANAGEMENT, RabbitMQ
from schemas import amqp

_VIEWERS: Final = 3
_RATE: Final = 2.0
"""Sessions per second of each viewer."""
_BEFORE: Final = 5.0
"""Seconds of normal work before each kill."""
_PATIENCE: Final = 180.0
_LOOK_EVERY: Final = 0.3


class Balancer(Link):
    """One address for several nodes. Each connection goes to the next node that accepts it."""

    def __init__(self, ports: Sequence[int]) -> None:
        super().__init__()
        self._ports = list(ports)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in self._ports:
                self._ports.append(port := self._ports.pop(0))
                with suppress(OSError):
                    there, back = await asyncio.open_connection("127.0.0.1", port)
                    ways = [
                        asyncio.create_task(_carry(reader, back)),
                        asyncio.create_task(_carry(there, writer)),
                    ]
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                    for way in ways:
                        way.cancel()
                    back.close()
                    return
        finally:
            writer.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()


@dataclass(slots=True)
class Outcome:
    """The result of the run. `paused` is in seconds, for each node that was killed."""

    members: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    paused: list[float] = field(default_factory=list)
    sessions: int = 0
    ingested: int = 0
    drained_after: float = 0.0
    exits: dict[str, dict[str, int]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


async def run(folder: Path, say: Callable[[str], None]) -> Outcome:
    """Runs everything. Logs and outboxes stay in `folder`."""
    outcome = Outcome()
    questions = bank.made_up(1, _VIEWERS, 40)
    bank.save(folder / "bank.json", questions)
    async with AsyncExitStack() as stack:
        postgres, cluster = Postgres(), RabbitMQCluster()
        stack.push_async_callback(asyncio.to_thread, at_once, [postgres.close, cluster.close])
        await asyncio.to_thread(at_once, [postgres.start, cluster.start])
        amqp_ports = Balancer([node.port for node in cluster.nodes])
        api_ports = Balancer([node.port_of(MANAGEMENT) for node in cluster.nodes])
        broker = await stack.enter_async_context(amqp_ports)
        api = await stack.enter_async_context(api_ports)
        stage = Stage(postgres, cluster.nodes[0], folder)
        await prepare(stage, questions)
        outcome.members = (await _queue(cluster.nodes[0]))["members"]
        # Otherwise a node that is killed before it has stored its queues comes back without them.
        for node in cluster.nodes:
            await asyncio.to_thread(node.remember_queues)
        say(f"three nodes; the queue's members are {outcome.members}")

        env = stage.environment([postgres.port], [broker.port], [api.port])
        workers = [
            Actor(name, [PROGRAM, "worker"], env, folder / f"{name}.log")
            for name in ("worker-1", "worker-2")
        ]
        phones = [_phone(number, stage, broker.port) for number in range(1, _VIEWERS + 1)]
        actors = [*workers, *phones]
        stack.push_async_callback(_abort, actors)
        pulse = Pulse(stage)
        watching = asyncio.create_task(pulse.run())
        stack.callback(watching.cancel)
        await asyncio.gather(*(actor.start() for actor in actors))
        await _beats(pulse, 0.0)

        left = {node.node: node for node in cluster.nodes}
        while left:
            await asyncio.sleep(_BEFORE)
            alive = next(node for node in cluster.nodes if node.alive())
            leader = (await _queue(alive))["leader"]
            node = left.pop(leader) if leader in left else left.popitem()[1]
            role = "leader" if node.node == leader else "follower"
            killed_at = time.monotonic()
            await asyncio.to_thread(node.kill)
            await asyncio.sleep(_BEFORE)
            await _beats(pulse, time.monotonic())
            outcome.killed.append(f"{node.node} ({role})")
            outcome.paused.append(round(_pause(pulse, killed_at), 2))
            say(f"killed {outcome.killed[-1]}: nothing was committed for {outcome.paused[-1]} s")
            await asyncio.to_thread(node.start, _PATIENCE)
            await _until(lambda: _whole(cluster))

        for phone in phones:
            phone.tell("quiet")
        ended = time.monotonic()
        outboxes = [folder / f"{phone.name}.sqlite" for phone in phones]
        await _until(lambda: _drained(stage, outboxes))
        outcome.drained_after = round(time.monotonic() - ended, 1)
        await asyncio.gather(*(worker.stop() for worker in workers))
        await asyncio.gather(*(phone.abort() for phone in phones))
        outcome.exits = {worker.name: dict(worker.exits) for worker in workers}
        found = await _evidence(stage, phones, outboxes)
        outcome.sessions, outcome.ingested = len(found.played), len(found.inbox)
        outcome.violations = [str(each) for each in await asyncio.to_thread(check, found)]
    return outcome


def _phone(number: int, stage: Stage, port: int) -> Actor:
    name = f"viewer-{number}"
    plan = Plan(
        viewer=name,
        outbox=str(stage.folder / f"{name}.sqlite"),
        bank=str(stage.folder / "bank.json"),
        url=stage.amqp_url([port]),
        seed=number,
        users=[number, number % _VIEWERS + 1],
        began=time.time(),
        seconds=120.0,
        rate=_RATE,
        impatience=20.0,
    )
    argv = [sys.executable, "-m", "chaos.phone", plan.as_argument()]
    return Actor(name, argv, stage.environment([0], [0], [0]), stage.folder / f"{name}.log")


def _pause(pulse: Pulse, killed_at: float) -> float:
    """The longest time without a commit that ended after the kill."""
    beats = [killed_at, *(beat for beat in pulse.beats if beat > killed_at)]
    return max(after - before for before, after in itertools.pairwise(beats))


async def _queue(node: RabbitMQ, name: str = amqp.ATTEMPTS_QUEUE) -> Any:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(f"{node.management_url}/api/queues/%2F/{quote(name)}")
        return answer.raise_for_status().json()


async def _whole(cluster: RabbitMQCluster) -> bool:
    """Whether all members of the queue are in sync again."""
    with suppress(httpx.HTTPError):
        found = await _queue(cluster.nodes[0])
        return len(found.get("online", ())) == len(found["members"]) == len(cluster.nodes)
    return False


async def _drained(stage: Stage, outboxes: Sequence[Path]) -> bool:
    if any(_unsettled(path) for path in outboxes):
        return False
    (unsent,) = (await stage.sql("SELECT count(*) FROM outbox"))[0]
    async with await aio_pika.connect(stage.broker.url) as connection:
        queue = await (await connection.channel()).get_queue(amqp.ATTEMPTS_QUEUE)
        return not unsent and not queue.declaration_result.message_count


def _unsettled(outbox: Path) -> bool:
    with closing(sqlite3.connect(outbox, timeout=5)) as file:
        found = file.execute("SELECT 1 FROM study_outbox WHERE state <> 'settled' LIMIT 1")
        return found.fetchone() is not None


async def _evidence(stage: Stage, phones: Sequence[Actor], outboxes: Sequence[Path]) -> Evidence:
    found = Evidence()
    for phone, path in zip(phones, outboxes, strict=True):
        read_outbox(found, path, phone.name)
    await read_database(found, stage.postgres.url)
    await read_queues(
        found,
        stage.broker.url,
        empty=[amqp.ATTEMPTS_QUEUE, amqp.DEAD_QUEUE],
        results=RESULTS_TAP,
        jobs=JOBS_TAP,
    )
    return found


async def _until(done: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(_PATIENCE):
        while not await done():  # noqa: ASYNC110  # servers and files offer no event
            await asyncio.sleep(_LOOK_EVERY)


async def _beats(pulse: Pulse, moment: float) -> None:
    """Waits until something was committed after that time."""

    async def beaten() -> bool:
        return pulse.first_after(moment) is not None

    await _until(beaten)


async def _abort(actors: Sequence[Actor]) -> None:
    await asyncio.gather(*(actor.abort() for actor in actors))


def main() -> int:
    """Returns 0 if nothing was lost or doubled, and no worker had to be restarted."""
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        outcome = asyncio.run(run(Path(folder), lambda line: print(line, file=sys.stderr)))
    print(json.dumps(asdict(outcome), indent=2))
    return 1 if outcome.violations or any(e != {"asked": 1} for e in outcome.exits.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
