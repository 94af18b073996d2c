"""Actors are restarted like under a supervisor, and end with their keeper."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from chaos.actors import Actor
from devtools.processes import gone

_SOON = 20.0
_OBEDIENT = (
    sys.executable,
    "-uc",
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    "print('ready')\n"
    "time.sleep(600)",
)
_KEEPER = """
import asyncio, sys
from pathlib import Path
from chaos.actors import Actor

async def keep():
    argv = [sys.executable, "-c", "import time; time.sleep(600)"]
    actor = Actor("sleeper", argv, {}, Path(sys.argv[1]))
    await actor.start()
    print(actor.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(keep())
"""


@pytest.fixture
async def actor(tmp_path: Path) -> AsyncIterator[Actor]:
    actor = Actor("obedient", _OBEDIENT, {}, tmp_path / "log")
    await actor.start()
    await _until(lambda: (tmp_path / "log").read_text().count("ready") == 1)
    yield actor
    await actor.abort()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_SOON):
        while not condition():  # noqa: ASYNC110  # another process offers no event
            await asyncio.sleep(0.02)


async def test_a_killed_process_is_restarted(actor: Actor) -> None:
    before = actor.pid
    actor.kill()
    await _until(lambda: actor.pid not in (None, before))
    assert actor.exits == {"killed": 1}


async def test_stopping_is_final_and_counts_as_asked(actor: Actor) -> None:
    await actor.stop()
    assert actor.pid is None
    assert not actor.is_wanted
    assert actor.exits == {"asked": 1}


async def test_a_paused_process_can_be_stopped(actor: Actor) -> None:
    actor.pause()
    await actor.stop()
    assert actor.exits == {"asked": 1}


async def test_a_process_that_ends_by_itself_is_counted_and_restarted(tmp_path: Path) -> None:
    actor = Actor("failing", (sys.executable, "-c", "raise SystemExit(7)"), {}, tmp_path / "log")
    await actor.start()
    await _until(lambda: actor.exits["exit 7"] >= 2)
    await actor.abort()
    assert "ended with 7" in (tmp_path / "log").read_text()


def test_no_process_outlives_its_keeper(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", _KEEPER, str(tmp_path / "log")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as keeper:
        assert keeper.stdout is not None
        pid = int(keeper.stdout.readline())
        keeper.kill()
    assert gone(pid, _SOON)
