"""A fault that can't be caused is missed. What fails after it has struck breaks the law."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chaos.faults import Fault, Inflict, Repair
from chaos.nemesis import Outcome, hurt
from chaos.report import is_ok
from chaos.schedule import Planned
from chaos.stage import Stage
from chaos.world import World
from devtools.postgres import Postgres
from devtools.rabbitmq import RabbitMQ


@asynccontextmanager
async def _strike(world: World, rng: random.Random) -> AsyncIterator[str]:
    yield "server"


@asynccontextmanager
async def _never_strike(world: World, rng: random.Random) -> AsyncIterator[str]:
    raise RuntimeError("one node is gone already")
    yield "server"


@asynccontextmanager
async def _never_end(world: World, rng: random.Random) -> AsyncIterator[str]:
    yield "server"
    raise RuntimeError("it was not promoted")


async def _repair(world: World, rng: random.Random) -> str:
    return "repaired"


async def _never_repair(world: World, rng: random.Random) -> str:
    raise RuntimeError("study-ingest topology failed")


async def _outcome(
    world: World, inflict: Inflict, afterwards: Repair | None = None, *, at: float = 0.0
) -> Outcome:
    """The outcome of one fault in a run of half a second, in which everything else went well."""
    outcome = Outcome(seed=1, seconds=0.5, drained_after=1.0, current_after=1.0)
    fault = Fault("server lost", (0.0, 0.0), "broker", inflict, afterwards)
    plan = [Planned(at, fault.kind, 0.0, 1)]
    await hurt(world, {fault.kind: fault}, plan, outcome.seconds, outcome, lambda _: None)
    return outcome


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world in which no server and no process runs."""
    servers = Stage(Postgres(tmp_path / "postgres"), RabbitMQ(tmp_path / "rabbitmq"), tmp_path)
    return World(servers, [], [], [], {})


async def test_a_fault_that_ends_and_is_repaired_leaves_the_run_ok(world: World) -> None:
    outcome = await _outcome(world, _strike, _repair)
    assert is_ok(outcome)
    assert [each.kind for each in outcome.inflicted] == ["server lost"]
    assert outcome.missed == []


@pytest.mark.parametrize(
    ("inflict", "afterwards", "why"),
    [
        (_strike, _never_repair, "study-ingest topology failed"),
        (_never_end, None, "it was not promoted"),
        (_never_end, _repair, "it was not promoted"),
    ],
)
async def test_what_fails_after_a_fault_has_struck_breaks_the_law(
    world: World, inflict: Inflict, afterwards: Repair | None, why: str
) -> None:
    outcome = await _outcome(world, inflict, afterwards)
    assert not is_ok(outcome)
    (violation,) = outcome.violations
    assert violation.kind == "wrong"
    assert why in violation.sentence and "server lost" in violation.sentence
    assert outcome.missed == []
    assert [each.hit for each in outcome.inflicted] == ["server"]


async def test_a_fault_that_can_not_be_caused_is_only_missed(world: World) -> None:
    outcome = await _outcome(world, _never_strike, _never_repair)
    assert is_ok(outcome)
    assert outcome.missed == ["server lost: RuntimeError: one node is gone already"]
    assert outcome.inflicted == []


async def test_a_fault_whose_turn_did_not_come_is_only_missed(world: World) -> None:
    outcome = await _outcome(world, _strike, _never_repair, at=0.6)
    assert is_ok(outcome)
    assert outcome.missed == ["server lost: its turn did not come"]
