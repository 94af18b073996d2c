"""An operator's URLs name a node that is gone until it is removed from the cluster."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from chaos import failover
from chaos.failover import FAILOVER
from chaos.stage import Stage
from chaos.world import World
from devtools.postgres import Postgres
from devtools.rabbitmq import MANAGEMENT, RabbitMQ

_NODE_GONE = next(fault for fault in FAILOVER if fault.kind == "broker node gone")


def _node(folder: Path, number: int) -> RabbitMQ:
    """A node that has had its ports, and does not run."""
    (folder / f"n{number}").mkdir()
    ports = {"amqp": 5000 + number, MANAGEMENT: 15000 + number}
    (folder / f"n{number}" / "ports.json").write_text(json.dumps(ports))
    return RabbitMQ(folder / f"n{number}", node=f"n{number}@localhost")


def _named(stage: Stage) -> tuple[list[int], list[int]]:
    """The ports of the brokers and of their management APIs in an operator's URLs."""
    env = stage.past_proxies()
    urls = (env["INGEST_AMQP_URL"], env["INGEST_MANAGEMENT_URL"])
    hosts = [urlsplit(url).netloc.rpartition("@")[2].split(",") for url in urls]
    brokers, managements = [[int(each.rpartition(":")[2]) for each in some] for some in hosts]
    return brokers, managements


async def test_doctor_and_topology_have_to_get_past_a_node_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = [_node(tmp_path, number) for number in (1, 2, 3)]
    stage = Stage(Postgres(tmp_path / "postgres"), first, tmp_path, others=others)
    world = World(stage, [], [], [], {})
    commands: dict[str, tuple[list[int], list[int]]] = {}

    async def look(world: World, during: str, command: str, *_: Any) -> None:
        commands[command] = _named(world.stage)

    async def operate(stage: Stage, command: str) -> None:
        commands[command] = _named(stage)

    async def leader(world: World) -> str:
        return "n3@localhost"

    monkeypatch.setattr(failover, "_look", look)
    monkeypatch.setattr(failover, "operate", operate)
    monkeypatch.setattr(failover, "_leader", leader)
    monkeypatch.setattr(failover, "_KNOWN_WITHIN", 0.0)
    monkeypatch.setattr(RabbitMQ, "kill", lambda node: None)
    monkeypatch.setattr(RabbitMQ, "ctl", lambda node, *words: "")

    assert _named(stage) == ([5001, 5002, 5003], [15001, 15002, 15003])
    async with _NODE_GONE.inflict(world, random.Random(1)):
        await asyncio.sleep(0)
    assert _NODE_GONE.afterwards is not None
    await _NODE_GONE.afterwards(world, random.Random(1))

    past_the_dead = ([5003, 5001, 5002], [15003, 15001, 15002])
    assert commands == {"doctor": past_the_dead, "topology": past_the_dead}
    assert _named(stage) == ([5001, 5002], [15001, 15002])
