"""One minute of chaos, and half a minute of failovers: nothing is lost, nothing is doubled, and no
message is left behind.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chaos.failover import FAILOVER
from devtools.places import CHECKOUT

_PATIENCE = 300
"""Seconds for the whole: a minute of storm, and servers made, healed and drained on a busy
machine."""


def _chaos(seed: str, *words: str) -> dict[str, Any]:
    """The report of a run in which the law held."""
    command = [sys.executable, "-m", "chaos", "--seed", seed, "--json", *words]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=_PATIENCE
    )
    told = (done.stdout.splitlines() or ["nothing"])[-1]
    assert done.returncode == 0, f"{told}\n{done.stderr[-4_000:]}\n{_logs(done.stderr)}"
    report: dict[str, Any] = json.loads(told)
    assert (report["lost"], report["doubled"], report["wrong"]) == (0, 0, 0)
    assert _left_behind(seed) == []
    return report


@pytest.mark.chaos
def test_a_minute_of_faults() -> None:
    report = _chaos("2", "--seconds", "60")
    assert report["kinds_of_fault"] >= 12
    assert report["batches_ingested"] > 50
    assert report["redeliveries"] > 0
    assert report["progress_held_by_viewers"] > 50
    assert report["duplicates_seen_by_database"] > 0


@pytest.mark.chaos
def test_servers_are_lost_and_others_take_over() -> None:
    kinds = [fault.kind for fault in FAILOVER]
    only = [word for kind in kinds for word in ("--only", kind)]
    # With this seed the long faults come last, so that each begins in time on a slow machine too.
    report = _chaos("28", "--failover", "--seconds", "30", "--pace", "4", *only)
    assert set(report["faults"]) == set(kinds), report["faults_missed"]
    assert report["batches_ingested"] > 50
    assert report["looks_of_operators"] >= 4
    assert report["viewers_asked_what_is_there"] >= 5
    # No process was started again; each ended when it was asked to.
    ends = {name: set(each) for name, each in report["exits"].items() if "viewer" not in name}
    assert set().union(*ends.values()) == {"asked"}, ends


def _logs(said: str) -> str:
    """The ends of the servers' logs, which the run has copied into its folder."""
    folder = Path(said.partition("outboxes in ")[2].partition("\n")[0])
    logs = [*folder.glob("postgres*.log"), *folder.glob("rabbitmq*.log")]
    return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-2_000:]}" for log in logs)


def _left_behind(seed: str) -> list[int]:
    """Processes of ours that still run: they have the run's folder in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"/chaos/{seed}-".encode() in words:
                found.append(int(entry.name))
    return found
