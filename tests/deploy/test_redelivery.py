"""docs/redelivery.md and its checks agree, and with Docker all of it is run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo import redelivery
from devtools import compose

ROOT = Path(__file__).parents[2]
OURS = ("study-ingest:", "study-viewers:")  # built on the way
NOT_WALKED = ("prom/", "grafana/")


def test_every_step_has_a_check_and_every_check_a_step() -> None:
    steps = dict(redelivery.steps((ROOT / "docs" / "redelivery.md").read_text()))
    assert list(steps) == list(redelivery.Walk().checks)
    assert all(steps.values())


def obstacle() -> str | None:
    """Why the walk can't be made here."""
    if why := compose.obstacle():
        return why
    named = re.findall(r"image: (\S+)", (ROOT / "docker-compose.yml").read_text())
    named += re.findall(r"^FROM (\S+:\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for image in named:
        if not image.startswith((*OURS, *NOT_WALKED)):
            done = subprocess.run(["docker", "image", "inspect", image], capture_output=True)
            if done.returncode:
                return f"the image {image} isn't here: docker pull {image}"
    return None


@pytest.mark.slow
@pytest.mark.compose
def test_the_walk_through_holds() -> None:
    if why := obstacle():
        pytest.skip(why)
    done = subprocess.run(
        [sys.executable, "-m", "demo.redelivery"], cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
