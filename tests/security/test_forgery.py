"""Nothing in a message can forge a log line or a field of a dead letter.

Secrets do not leak: the tests search everything that the programs print for a planted password.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from tests import factories
from tests.broker_fixtures import Broker
from tests.security.test_identity import publish_as
from tests.whole_worker import Viewers
from worker.settings import Settings

pytestmark = pytest.mark.broker

STUDY_INGEST = Path(sys.executable).parent / "study-ingest"
ESCAPE = "\x1b[2K\x1b[1A\x1b[31m"
FORGED = f'{ESCAPE}\r\n{{"event": "forged", "level": "info"}}\n'
PATIENCE = 120.0
"""Seconds for a process to start, to speak or to end, on a machine that is busy."""
PLANTED = "pl4nted-s3cret/@:%"
"""A password that has to be quoted in a URL, so that half of it might slip through."""


async def said_by(*words: str, env: dict[str, str]) -> tuple[int, str]:
    """Runs the program to its end; its exit code, and all that it said."""
    process = await asyncio.create_subprocess_exec(
        STUDY_INGEST,
        *words,
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    return process.returncode or 0, said.decode()


class Running:
    """A worker process, and every line that it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []

    async def until(self, event: str, count: int = 1) -> None:
        """Reads on until `event` was said `count` times."""
        async with asyncio.timeout(PATIENCE):
            while sum(event in line for line in self.lines) < count:
                assert await self._read(), "the worker ended: " + "\n".join(self.lines)

    async def end(self) -> None:
        """SIGTERM, and the rest of what it says."""
        if self._process.returncode is None:
            self._process.terminate()
        async with asyncio.timeout(PATIENCE):
            while await self._read():
                pass
            await self._process.wait()

    async def _read(self) -> bool:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if line:
            self.lines.append(line.decode().removesuffix("\n"))
        return bool(line)


@asynccontextmanager
async def worker(env: dict[str, str]) -> AsyncIterator[Running]:
    """`study-ingest worker` as a process."""
    process = await asyncio.create_subprocess_exec(
        STUDY_INGEST,
        "worker",
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,
    )
    running = Running(process)
    try:
        yield running
    finally:
        await running.end()


def environment(settings: Settings, database_url: str, **more: str) -> dict[str, str]:
    return {
        "INGEST_DATABASE_URL": database_url,
        "INGEST_AMQP_URL": settings.amqp_url.get_secret_value(),
        "INGEST_REQUIRE_USER_ID": "true",
        "INGEST_RETRY_DELAYS": "[0.1, 0.2]",
        "INGEST_LOG_LEVEL": "debug",
        **more,
    }


def hostile(login_name: str) -> list[dict[str, Any]]:
    """Messages that would write into a log or a dead letter if they could."""
    return [
        {"body": FORGED},
        {"body": json.dumps({FORGED: FORGED, "attempts": FORGED})},
        {"body": json.dumps({"client_session_uuid": FORGED, "attempts": [{FORGED: 1}]})},
        {"type": FORGED[:200]},
        {"content_encoding": FORGED[:200]},
        {"headers": {amqp.CLIENT_SESSION_UUID_HEADER: FORGED, amqp.TRACEPARENT_HEADER: FORGED}},
        {"headers": {amqp.REASON_HEADER: FORGED, amqp.DETAIL_HEADER: FORGED, "x-death": FORGED}},
        {"headers": {FORGED[:100]: FORGED, "n": {"deep": [FORGED] * 50}}},
        {"headers": {"huge": "x" * 100_000, "client-session-uuid": "x" * 1_000}},
        {"headers": {f"many-{n}": FORGED for n in range(400)}},
        {"user_id": None, "app_id": FORGED[:200], "correlation_id": FORGED[:200]},
    ]


def clean(text: object) -> bool:
    return str(text).isprintable() and "forged" not in str(text)


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_a_message_forges_neither_a_log_line_nor_a_reason(
    viewers: Viewers,
    broker: Broker,
    settings: Settings,
    engine: AsyncEngine,
    database_url: str,
    log_format: str,
) -> None:
    login = await viewers.add(42)
    (question,) = await factories.publish(engine, user_id=42)
    good = factories.batch(factories.right(question)).model_dump_json()
    messages = hostile(login.name)
    for message in messages:
        await publish_as(login, message.pop("body", "no body"), **message)
    await publish_as(login, good)
    env = environment(settings, database_url, INGEST_LOG_FORMAT=log_format)
    async with worker(env) as running:
        await running.until("delivery.settled", len(messages) + 1)
    settled = [line for line in running.lines if "delivery.settled" in line]
    assert len(settled) == len(messages) + 1
    for line in running.lines:
        assert "forged" not in line
        assert "\x1b[2K" not in line
        assert len(line) < 2_000
        if log_format == "json":
            assert "event" in json.loads(line)

    letters = await factories.rows(engine, "SELECT * FROM ingest_dead_letters")
    assert len(letters) == len(messages)
    for letter in letters:
        ours = [letter[name] for name in ("reason", "detail", "viewer")]
        assert all(clean(value) for value in ours), ours
    assert len(await factories.rows(engine, "SELECT * FROM ingest_inbox")) == 1


async def test_a_planted_password_is_nowhere(
    viewers: Viewers, broker: Broker, settings: Settings, engine: AsyncEngine, database_url: str
) -> None:
    """Every command, in good times and bad, and all that a worker says and leaves behind."""
    login = await viewers.add(42)
    # The servers' administrator under another name, so that the password can be planted.
    admin = f"{login.name}-admin"
    await viewers.accounts.put_user(admin, PLANTED, ["administrator"])
    await viewers.accounts.permit(admin, configure=".*", write=".*", read=".*")
    secret = quote(PLANTED, safe="")

    def planted(url: str, user: str = admin) -> str:
        parts = urlsplit(url)
        netloc = f"{user}:{secret}@{parts.netloc.rpartition('@')[2]}"
        return parts._replace(netloc=netloc).geturl()

    amqp_url = settings.amqp_url.get_secret_value()
    database_user = urlsplit(database_url).username or ""
    good = environment(settings, planted(database_url, database_user)) | {
        "INGEST_AMQP_URL": planted(amqp_url)
    }
    if settings.management_url is not None:
        good["INGEST_MANAGEMENT_URL"] = planted(settings.management_url.get_secret_value())
    closed = f"amqp://u:{secret}@127.0.0.1:1/v"
    bad = [
        {"INGEST_DATABASE_URL": f"postgresql://u:{secret}@127.0.0.1:1/d"},
        {"INGEST_DATABASE_URL": f"mysql://u:{secret}@127.0.0.1:1/d"},
        {"INGEST_DATABASE_URL": f"postgresql://u:{PLANTED}@127.0.0.1:1/d"},
        {"INGEST_AMQP_URL": closed, "INGEST_MANAGEMENT_URL": closed.replace("amqp", "http")},
        {"INGEST_AMQP_URL": f"http://u:{secret}@127.0.0.1:1/d"},
        {"INGEST_AMQP_URL": planted(amqp_url, "nobody")},
    ]
    said: list[str] = []
    try:
        await publish_as(login, "no body")
        await publish_as(login, factories.batch(factories.right("unknown")).model_dump_json())
        async with worker(good) as running:
            await running.until("delivery.settled", 2)
        said += running.lines
        letters = await factories.rows(engine, "SELECT * FROM ingest_dead_letters")
        assert len(letters) == 2
        commands: list[tuple[tuple[str, ...], dict[str, str]]] = [
            (("settings", "--json"), good),
            (("viewer", "list", "--json"), good),
            *((("verify",), good | wrong) for wrong in bad[:3]),
            *((("topology",), good | wrong) for wrong in bad[3:]),
        ]
        for words, env in commands:
            code, output = await said_by(*words, env=env)
            assert code in range(7), output
            assert "Traceback" not in output, output
            said.append(output)
        async with worker(good | bad[0] | {"INGEST_CONNECT_TIMEOUT": "1"}) as waiting:
            await waiting.until("worker.waiting")
        said += waiting.lines
    finally:
        await viewers.accounts.delete_user(admin)
    everything = "\n".join(said) + repr(letters)
    for part in (PLANTED, secret, login.password, "s3cret"):
        assert part not in everything
