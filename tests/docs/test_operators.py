"""The commands in docs/operators.md run in their order, and its tables list every reason."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from typer.core import TyperGroup
from typer.main import get_command

from devtools import postgres
from devtools.state import free_ports
from schemas import amqp
from schemas.words import RejectReason
from tests import factories as make
from tests.broker_fixtures import Broker, until
from tests.database_fixtures import administer
from tests.worker_process import PATIENCE
from worker.cli.main import app
from worker.settings import Settings
from worker.store.engine import make_engine

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ")
    for language, text in BLOCKS
    if language == "console"
    for line in text.splitlines()
]
LASTS = ("study-ingest worker",)
"""What works until it is told to stop."""
TELLS = ("study-ingest status", "study-ingest top")
"""What exits with 1 when something needs attention, as it does here."""
CURL = f"""#!{sys.executable}
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
print(opener.open(sys.argv[-1], timeout=30).read().decode())
"""
"""Stands in for curl, which not every machine has. A bad status is an error."""
SESSION = UUID("0b9c6a52-4c1e-4a9b-9c43-6d3b1f0a7a11")
USER = 42


def test_every_code_block_has_a_known_language() -> None:
    assert {language for language, _ in BLOCKS} == {"console", "csv", "sh"}
    assert all(
        line.startswith("$ ")
        for language, text in BLOCKS
        if language == "console"
        for line in text.splitlines()
    )


def test_every_reason_has_its_row() -> None:
    letters = PAGE.partition("\n## Dead letters\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", letters, re.MULTILINE)
    assert rows == [str(reason) for reason in RejectReason]


def test_every_command_that_is_named_exists() -> None:
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    known = set(command.commands)
    named = set(re.findall(r"study-ingest ([a-z][a-z-]+)", PAGE))
    assert named <= known, named - known


@pytest.mark.broker
async def test_the_commands_run(
    bare_broker: Broker, empty_database_url: str, tmp_path: Path
) -> None:
    restored = f"{empty_database_url}_restored"
    await administer(f"CREATE DATABASE {restored.rpartition('/')[2]}")
    settings = bare_broker.settings
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "curl").write_text(CURL)
    (programs / "curl").chmod(0o755)
    path = [programs, Path(sys.executable).parent, postgres.binaries(), os.environ["PATH"]]
    environment = os.environ | {
        "INGEST_DATABASE_URL": empty_database_url,
        "RESTORED_DATABASE_URL": restored,
        "INGEST_AMQP_URL": settings.amqp_url.get_secret_value(),
        "INGEST_REQUIRE_USER_ID": "false",
        "INGEST_HTTP_PORT": str(free_ports(1)[0]),
        "PATH": ":".join(map(str, path)),
    }
    engine = make_engine(
        Settings.model_validate(
            {"database_url": empty_database_url, "amqp_url": settings.amqp_url}
        ),
        connections=1,
        name="tests",
    )
    try:
        async with _processes(environment, tmp_path) as run:
            for command in COMMANDS:
                await run(command)
                if command in LASTS:
                    await _consumes(environment["INGEST_HTTP_PORT"])
                    await _ordinary_day(bare_broker, engine)
        assert await make.count(engine, "study_question_progress") == 0  # of a user now forgotten
    finally:
        await engine.dispose()
        await administer(f"DROP DATABASE {restored.rpartition('/')[2]} WITH (FORCE)")


async def _consumes(port: str) -> None:
    async with asyncio.timeout(PATIENCE), httpx.AsyncClient(trust_env=False) as http:
        while True:
            with suppress(httpx.HTTPError):
                if (await http.get(f"http://127.0.0.1:{port}/ready")).is_success:
                    return
            await asyncio.sleep(0.1)  # a probe tells nobody of its own accord


async def _ordinary_day(broker: Broker, engine: AsyncEngine) -> None:
    """One batch that is ingested, and one dead letter."""
    question, other = await make.publish(engine, 2, user_id=USER)
    assert question.question_id == 1
    for batch in (
        make.batch(make.right(question), make.wrong(other), uuid=SESSION),
        make.batch(make.right("nowhere")),
    ):
        await broker.publish(batch.model_dump_json(), type=amqp.ATTEMPT_BATCH_TYPE)
    await until(lambda: make.count(engine, "ingest_dead_letters"), (1).__eq__)


@asynccontextmanager
async def _processes(
    environment: Mapping[str, str], folder: Path
) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    lasting: list[asyncio.subprocess.Process] = []

    async def run(command: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", f"exec {command}" if command in LASTS else command),
            cwd=folder,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL if command in LASTS else asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        if command in LASTS:
            lasting.append(process)
            return
        out, _ = await process.communicate()
        expected = (0, 1) if command.startswith(TELLS) else (0,)
        assert process.returncode in expected, f"{command}\n{out.decode()}"

    try:
        yield run
    finally:
        for process in lasting:
            process.terminate()
            await process.wait()
    assert [process.returncode for process in lasting] == [0] * len(lasting)
