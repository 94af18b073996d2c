"""One minute of chaos: nothing is lost, nothing is doubled, and no message is left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.places import CHECKOUT

_SEED = "2"
_PATIENCE = 300
"""Seconds for the whole: a minute of storm, and servers made, healed and drained on a busy
machine."""


@pytest.mark.chaos
def test_a_minute_of_faults() -> None:
    command = [sys.executable, "-m", "chaos", "--seconds", "60", "--seed", _SEED, "--json"]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=_PATIENCE
    )
    told = (done.stdout.splitlines() or ["nothing"])[-1]
    assert done.returncode == 0, f"{told}\n{done.stderr[-4_000:]}"
    report = json.loads(told)
    assert report["kinds_of_fault"] >= 12
    assert report["batches_ingested"] > 50
    assert report["redeliveries"] > 0
    assert report["progress_held_by_viewers"] > 50
    assert report["duplicates_seen_by_database"] > 0
    assert (report["lost"], report["doubled"], report["wrong"]) == (0, 0, 0)
    assert _left_behind() == []


def _left_behind() -> list[int]:
    """Processes of ours that still run: they have the run's folder in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"/chaos/{_SEED}-".encode() in words:
                found.append(int(entry.name))
    return found
