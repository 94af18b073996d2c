"""The faults of `--failover`: a server is gone, and another one takes over.

The primary has a synchronous replica, and the broker three nodes. What this machine does here is
what a failover manager does: it promotes the replica, and makes the old primary follow.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

from chaos.evidence import Look
from chaos.faults import MOVED_ADDRESS, OUT_OF_DISK, Fault
from chaos.stage import PROGRAM, ROLE, follow, operate, promote
from chaos.world import World
from devtools.postgres import rewound, standby_of
from schemas import amqp

IMPOSSIBLE: Final = (MOVED_ADDRESS, OUT_OF_DISK)
"""The faults that a pair can't have: its servers have addresses of their own, and would share the
folder of a tablespace, because they are on one machine.
"""
_SETTLED: Final = 1.0
"""Seconds after the replica's end until what it had confirmed is visible."""
_KNOWN_WITHIN: Final = 3.0
"""Seconds until the broker's statistics say that a node is gone."""
_HANGING: Final = (
    f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{ROLE}' AND wait_event = 'SyncRep'"  # noqa: S608
    " AND query_start < clock_timestamp() - interval '3 s'"
)


@asynccontextmanager
async def _lose_primary(world: World, rng: random.Random) -> AsyncIterator[str]:
    """The primary is killed. The fault ends when the replica has become the primary."""
    await asyncio.to_thread(world.stage.postgres.kill)
    try:
        yield "primary"
    finally:
        await promote(world.stage)


async def _bring_back(world: World, rng: random.Random) -> str:
    """The old primary follows the new one, and confirms its commits."""
    if rng.random() < 0.5:
        await follow(world.stage, standby_of)
        return "the old primary follows, with a copy of the new one"
    await follow(world.stage, rewound)
    return "the old primary follows, rewound"


@asynccontextmanager
async def _lose_replica(world: World, rng: random.Random) -> AsyncIterator[str]:
    """The replica is away for a while. Commits wait for it, and nobody is told of them."""
    how = await _away(world, rng)
    # Beside the fault, so that it has struck before anything can fail.
    counting = asyncio.create_task(_batches_once_settled(world))
    try:
        yield how
        before = await counting
        during = "replica away"
        if (await world.stage.sql(_HANGING))[0][0]:
            await asyncio.gather(
                _look(world, during, "status", "attention", "code", "commits_hang"),
                _look(world, during, "doctor", "findings", "check", "commits", "danger"),
            )
        after = await _batches(world)
        world.looks.append(Look(during, "the count of ingested batches", before, [after]))
    finally:
        counting.cancel()
        await _back(world)


async def _batches_once_settled(world: World) -> str:
    await asyncio.sleep(_SETTLED)
    return await _batches(world)


async def _batches(world: World) -> str:
    return str((await world.stage.sql("SELECT count(*) FROM ingest_inbox"))[0][0])


@asynccontextmanager
async def _lose_both(world: World, rng: random.Random) -> AsyncIterator[str]:
    """The replica is away, and then the primary is lost. The replica comes back and is promoted.

    What the primary had written meanwhile is gone, and nobody may have been told of it.
    """
    how = await _away(world, rng)
    try:
        yield how
    finally:
        await asyncio.to_thread(world.stage.postgres.kill)
        await _back(world)
        await promote(world.stage)


async def _away(world: World, rng: random.Random) -> str:
    replica = world.stage.replica
    assert replica is not None
    is_killed = rng.random() < 0.5
    await asyncio.to_thread(replica.kill if is_killed else replica.pause)
    return "replica killed" if is_killed else "replica paused"


async def _back(world: World) -> None:
    replica = world.stage.replica
    assert replica is not None
    replica.resume()
    await asyncio.to_thread(replica.start)


@asynccontextmanager
async def _lose_node(world: World, rng: random.Random) -> AsyncIterator[str]:
    """A node of the broker is gone for good, and the others go on at once."""
    others = world.stage.others
    if len(others) < 2:
        raise RuntimeError("one node is gone already, and two are a majority only together")
    leader = await _leader(world)
    node = next((node for node in others if node.node == leader), rng.choice(others))
    others.remove(node)
    world.stage.gone.append(node)
    await asyncio.to_thread(node.kill)
    yield f"{node.node} ({'leader' if node.node == leader else 'follower'})"


async def _forget_it(world: World, rng: random.Random) -> str:
    """The operator finds out that it is missing, and removes it from the cluster.

    Until then nobody can use the classic queues that it had, and then they are gone. `topology`
    makes those that workers need, and viewers make their own. Only then the operator removes it
    from the URLs as well.
    """
    await asyncio.sleep(_KNOWN_WITHIN)
    await _look(world, "broker node gone", "doctor", "findings", "check", "replicas", "warning")
    node = world.stage.gone[-1]
    await asyncio.to_thread(world.stage.broker.ctl, "forget_cluster_node", node.node)
    await operate(world.stage, "topology")
    world.stage.gone.remove(node)
    return f"{node.node} is removed from the cluster"


async def _leader(world: World) -> str:
    queue = await world.stage.management("GET", f"queues/%2F/{quote(amqp.ATTEMPTS_QUEUE)}")
    return str(queue.get("leader"))


async def _look(
    world: World, during: str, command: str, listed: str, field: str, must: str, severity: str = ""
) -> None:
    """An operator runs a command, whose answer must list something. Only those of this severity
    count.
    """
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        command,
        "--json",
        env=world.stage.past_proxies(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, complaint = await process.communicate()
    try:
        answer: list[dict[str, Any]] = json.loads(output)[listed]
        shown = [str(each[field]) for each in answer if severity in ("", each["severity"])]
    except (ValueError, LookupError):
        shown = [complaint.decode().strip()]
    world.looks.append(Look(during, f"study-ingest {command}", must, shown))


FAILOVER: Final = (
    Fault("primary lost", (1.0, 4.0), "database", _lose_primary, _bring_back),
    Fault("replica away", (6.0, 9.0), "database", _lose_replica),
    Fault("replica away, primary lost", (2.0, 6.0), "database", _lose_both, _bring_back),
    Fault("broker node gone", (0.0, 0.0), "broker", _lose_node, _forget_it),
)
