"""The examples in Python, Node and shell: a session, its result, and the same session again."""

import asyncio
import json
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from demo.devices import due_dates
from tests import factories
from tests.broker_fixtures import Broker
from tests.whole_worker import Login, Viewers, working
from worker.operate.viewers import Access
from worker.settings import Settings

pytestmark = pytest.mark.broker

EXAMPLES = Path(__file__).parents[2] / "examples"


async def run(*command: str | Path, env: dict[str, str], cwd: Path) -> str:
    """Runs an example to its end; what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent), **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        printed, complaints = await asyncio.wait_for(process.communicate(), 60)
    except TimeoutError:
        process.kill()
        await process.wait()
        pytest.fail(f"{command} did not end")
    assert process.returncode == 0, complaints.decode()
    return printed.decode()


def environment(broker: Broker, login: Login, folder: Path) -> dict[str, str]:
    url = urlsplit(broker.settings.amqp_url.get_secret_value())
    management = broker.settings.management_url
    api = urlsplit(management.get_secret_value()) if management else None
    return {
        "STUDY_VIEWER": login.name,
        "STUDY_PASSWORD": login.password,
        "STUDY_AMQP_URL": url._replace(netloc=url.netloc.rpartition("@")[2]).geturl(),
        "STUDY_API_URL": api._replace(netloc=api.netloc.rpartition("@")[2]).geturl() if api else "",
        "STUDY_VHOST": quote(broker.vhost, safe=""),
        "STUDY_OUTBOX": str(folder / "outbox"),
        "STUDY_SESSION": str(uuid4()),
    }


async def session_twice(
    broker: Broker,
    settings: Settings,
    engine: AsyncEngine,
    login: Login,
    folder: Path,
    *command: str | Path,
) -> None:
    """Runs the example, and again with its outbox gone: one effect, two tellings."""
    one, two = await factories.publish(engine, 2, user_id=42)
    env = environment(broker, login, folder)
    answers = [f"{one.pub_id}={factories.RIGHT}", f"{two.pub_id}=unsure", "never-published=1"]
    told: list[dict[str, Any]] = []
    async with working(settings, engine):
        for attempt in range(2):
            env["STUDY_OUTBOX"] = str(folder / f"outbox-{attempt}")
            printed = await run(*command, *answers, env=env, cwd=folder)
            told.append(json.loads(printed))
    first, again = told
    assert first["status"] == "ingested"
    assert first["client_session_uuid"] == env["STUDY_SESSION"]
    assert [each["reason"] for each in first["skipped"]] == ["unknown_publication"]
    (summary,) = first["sessions"]
    assert (summary["correct"], summary["unsure"], summary["newly_correct"]) == (1, 1, 1)
    # Its times are new, so its content is: the worker says so, or (same second) repeats itself.
    assert again["status"] in ("rejected", "already_ingested")
    assert len(await factories.rows(engine, "SELECT * FROM study_question_attempts")) == 2


async def test_python(
    broker: Broker, viewers: Viewers, settings: Settings, engine: AsyncEngine, tmp_path: Path
) -> None:
    login = await viewers.add(42)
    script = EXAMPLES / "python/session.py"
    await session_twice(broker, settings, engine, login, tmp_path, sys.executable, script)


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node example with its dependency installed, as `npm install` does it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    for path in (EXAMPLES / "node").glob("*.*js*"):
        shutil.copy(path, folder)
    done = asyncio.run(asyncio.wait_for(_install(folder), 120))
    if done != 0:
        pytest.skip("npm could not install amqplib: is there a network?")
    return folder


async def _install(folder: Path) -> int:
    process = await asyncio.create_subprocess_exec(
        "npm",
        "install",
        "--no-audit",
        "--no-fund",
        "--no-package-lock",
        "--prefer-offline",
        cwd=folder,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await process.wait()


async def test_node(
    node_modules: Path,
    broker: Broker,
    viewers: Viewers,
    settings: Settings,
    engine: AsyncEngine,
    tmp_path: Path,
) -> None:
    login = await viewers.add(42)
    script = node_modules / "session.mjs"
    await session_twice(broker, settings, engine, login, tmp_path, "node", script)
    stored = await due_dates(engine, 42)
    assert len(stored) == 2
    for outbox in ("outbox-0", "outbox-1"):  # of which the second has no session that counted
        env = {"STUDY_OUTBOX": str(tmp_path / outbox)}
        due = node_modules / "due.mjs"
        printed = await run("node", due, "2100-01-01T00:00:00+01:00", env=env, cwd=tmp_path)
        told = [json.loads(line) for line in printed.splitlines()]
        assert {each["pub_ids"][0] for each in told} == stored.keys()
        assert not any(each["waiting"] for each in told)
        for each in told:
            seconds = (
                datetime.fromisoformat(each["due_at"]) - stored[each["pub_ids"][0]]
            ).total_seconds()
            assert abs(seconds) < 0.001  # a Date of JavaScript has milliseconds
        assert await run("node", due, "2000-01-01T00:00:00Z", env=env, cwd=tmp_path) == ""


async def test_curl(
    broker: Broker, viewers: Viewers, settings: Settings, engine: AsyncEngine, tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    login = await viewers.add(42, access=Access(http=True))
    script = EXAMPLES / "curl/session.sh"
    await session_twice(broker, settings, engine, login, tmp_path, script)
