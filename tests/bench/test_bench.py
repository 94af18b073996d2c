"""The benchmark runs with tiny sizes, and every contender leaves the right rows."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from rich.console import Console

from bench import environment, race, rows
from bench.arguments import WORKLOADS
from bench.contenders import PEERS, Contender
from bench.courses import FRESH, course, worlds
from bench.errors import BenchError
from bench.figures import percentile, ratios, spread
from bench.meet import Meet, Sizes
from bench.stage import Stage
from bench.workload import Shape, batches
from devtools.processes import gone, started_at
from worker.settings import Settings, load_settings

SMALL = Sizes.tiny()


@pytest.fixture
def settings() -> Settings:
    if "INGEST_DATABASE_URL" not in os.environ:
        pytest.fail("INGEST_DATABASE_URL is not set: run the tests with ./dev test.")
    return load_settings()


@pytest.fixture
def prefix() -> str:
    return f"study_bench_{uuid4().hex[:8]}"


@pytest.fixture
def stage(settings: Settings, prefix: str) -> Stage:
    return Stage(settings, prefix)


async def test_a_tiny_run_has_every_figure(settings: Settings, prefix: str) -> None:
    meet = Meet(settings, SMALL, Console(quiet=True), prefix)

    measured: dict[str, Any] = await meet.run(rounds=1, with_peers=False, with_growth=False)

    assert measured["throughput_vs_usual"] > 0
    assert measured["worker_cpu_vs_usual"] > 0
    assert measured["throughput_vs_floor"] > 0
    assert measured["throughput_vs_set_based"] > 0
    assert measured["latency_vs_usual"].keys() == {"p50", "p99"}
    assert min(measured["latency_vs_usual"].values()) > 0
    assert measured["round_trips_per_group"] <= 12
    assert set(measured["raw"]["round_trips_by_group"].values()) == {
        measured["round_trips_per_group"]
    }, "the same for a group of any size"
    assert 0 < measured["latency_ms"]["p50"] <= measured["latency_ms"]["p99"]
    assert measured["peers"] == {}
    assert measured["hot_user"].keys() == {
        "throughput",
        "others_p99",
        "deferred",
        "partitioned_throughput",
        "partitioned_others_p99",
    }
    assert min(measured["late_vs_in_order"], measured["even"]["four_vs_one"]) > 0
    assert measured["good_among_rejected"] > 0
    assert measured["eight_vs_two"] > 0 < measured["flood"]["wait"]
    assert {"ours_1", "ours_2", "usual", "set_based", "floor"} == set(
        measured["raw"]["states"][FRESH]["contenders"]
    )


def test_a_workload_can_run_alone(settings: Settings, prefix: str) -> None:
    meet = Meet(settings, SMALL, Console(quiet=True), prefix)
    assert tuple(meet.workloads) == WORKLOADS


async def test_dead_letters_are_measured(settings: Settings, prefix: str) -> None:
    meet = Meet(settings, SMALL, Console(quiet=True), prefix)
    measured = await meet.run(rounds=1, with_peers=False, with_growth=False, only="dead")
    (seconds,) = measured["dead"].values()
    assert len(seconds) == 9 and min(seconds.values()) > 0


async def test_what_open_consoles_cost_is_measured(settings: Settings, prefix: str) -> None:
    meet = Meet(settings, SMALL, Console(quiet=True), prefix)
    measured = await meet.run(rounds=1, with_peers=False, with_growth=False, only="consoles")
    assert min(measured["consoles"], measured["consoles_ms"]) > 0


@pytest.mark.parametrize("workload", ["asking", "old_names"])
async def test_what_devices_cost_is_measured(
    settings: Settings, prefix: str, workload: str
) -> None:
    meet = Meet(settings, SMALL, Console(quiet=True), prefix)
    measured = await meet.run(rounds=1, with_peers=False, with_growth=False, only=workload)
    figures = measured["asking"] if workload == "asking" else measured
    assert len(figures) == (5 if workload == "asking" else 2)
    assert min(figures.values()) > 0


def test_a_run_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    run = (
        "import sys, time; from pathlib import Path; from bench.processes import Processes\n"
        "with Processes([['sleep', '600']], {}, Path(sys.argv[1])) as processes:\n"
        "    print(processes._leaders[0].pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    argv = [sys.executable, "-c", run, str(tmp_path / "log")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert started_at(child) is not None
        parent.kill()
    assert gone(child, 60)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
async def test_a_peer_leaves_the_right_rows(peer: Contender, stage: Stage) -> None:
    if not environment.is_there():
        pytest.skip("the peers' environment is not there: ./dev bench makes it")
    await worlds(stage, SMALL.course)
    try:
        await race.run(stage, peer, await course(stage, FRESH, SMALL.course, short=True))
    finally:
        await stage.drop()


async def test_rows_that_differ_fail_the_benchmark(stage: Stage) -> None:
    await worlds(stage, SMALL.course)
    try:
        expected = (await course(stage, FRESH, SMALL.course, short=True)).expected
        connection = await stage.connect("reference")
        await rows.check(connection, expected, "somebody")
        await connection.execute(
            "UPDATE study_question_progress SET stability = stability * 1.0000001"
            " WHERE study_question_id = (SELECT min(study_question_id)"
            " FROM study_question_progress)"
        )
        with pytest.raises(BenchError, match="progress"):
            await rows.check(connection, expected, "somebody")
        await connection.close()
    finally:
        await stage.drop()


def test_the_workload_is_the_same_every_time() -> None:
    shape = Shape(users=4, questions=400)

    once, again = (batches(shape, 5, seed="x", day=1) for _ in range(2))

    assert once == again
    assert once != batches(shape, 5, seed="y", day=1)


def test_the_benchmark_computes_its_figures() -> None:
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert ratios([10.0, 30.0, 20.0], [1.0, 2.0, 5.0]) == (10.0, 4.0, 15.0)
    assert [percentile(range(1, 101), percent) for percent in (0, 50, 99, 100)] == [1, 51, 100, 100]
