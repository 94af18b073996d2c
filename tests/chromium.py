"""A headless Chromium of this machine, which Playwright's library drives from Node."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the browser's driver, as npm installs it."""
    if not all(map(shutil.which, ("node", "npm", "chromium"))):
        pytest.skip("node, npm and chromium are not all installed")
    folder = tmp_path_factory.mktemp("driver")
    shutil.copy(Path(__file__).with_name("chromium.mjs"), folder)
    install = "npm install --no-audit --no-fund --no-package-lock playwright-core@^1.60"
    if os.system(f"cd {folder} && {install} >/dev/null 2>&1") != 0:
        pytest.skip("npm could not install playwright-core: is there a network?")
    return folder


class Chromium:
    """A browser whose profile outlives its tabs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def do(self, work: str) -> Any:
        """Runs a JavaScript function body over `context`, `page` and `state`; what it returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(work).encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        answer = json.loads(line)
        assert "done" in answer, answer
        return answer["done"]


@asynccontextmanager
async def driven(driver: Path, profile: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process that drives a browser with this profile."""
    process = await asyncio.create_subprocess_exec(
        *("node", "chromium.mjs", shutil.which("chromium") or "", str(profile)),
        cwd=driver,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    yield process
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), 20)
    except TimeoutError:
        process.kill()
        await process.wait()
