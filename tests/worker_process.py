"""A real `study-ingest` process: its log as it is written, its probes, its metrics, its end."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from worker.settings import Settings

PATIENCE = 60.0
"""Seconds after which a process counts as hanging; a start takes one of them, and many on a
machine that has other things to do."""

PROGRAM = Path(sys.executable).with_name("study-ingest")


def environment(settings: Settings) -> dict[str, str]:
    """The variables that give a process these settings, where they are not the defaults."""
    variables = dict(os.environ)
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if hasattr(value, "get_secret_value"):
            value = value.get_secret_value()
        if value is not None:
            said = value if isinstance(value, str) else json.dumps(value)
            variables[f"INGEST_{name.upper()}"] = said
    return variables


@asynccontextmanager
async def logging(
    *command: str | Path,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stderr: int | None = asyncio.subprocess.STDOUT,
) -> AsyncIterator[asyncio.StreamReader]:
    """A process and its output as it is written. SIGTERM ends it, and it must exit with 0."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


class Process:
    """A process that serves on a port of its own; to be had from `running`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.http = httpx.AsyncClient(trust_env=False, timeout=PATIENCE)
        self._reading = asyncio.create_task(self._read())
        self._told = asyncio.Condition()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": line.decode().rstrip()}
            async with self._told:
                self.events.append(event)
                self._told.notify_all()

    async def logged(self, name: str, **fields: Any) -> dict[str, Any]:
        """The first event of this name with these fields, waiting until there is one."""

        def found() -> dict[str, Any] | None:
            for event in self.events:
                if event["event"] == name and fields.items() <= event.items():
                    return event
            return None

        async with asyncio.timeout(PATIENCE), self._told:
            event = await self._told.wait_for(found)
        assert event is not None
        return event

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and answer of a probe."""
        port = (await self.logged("http.serving"))["port"]
        answer = await self.http.get(f"http://127.0.0.1:{port}{path}")
        return answer.status_code, answer.json()

    async def until_ready(self, ready: bool = True) -> dict[str, Any]:
        """Asks until `/ready` says so; the answer."""
        wanted = 200 if ready else 503
        return await self.until("/ready", wanted)

    async def until(self, path: str, status: int) -> dict[str, Any]:
        """Asks the probe until it answers with `status`; the answer."""
        # A probe tells nobody of its own accord: there is no event to wait for, here and below.
        async with asyncio.timeout(PATIENCE):
            while (seen := await self.get(path))[0] != status:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return seen[1]

    async def exposition(self) -> str:
        """What Prometheus would scrape."""
        port = (await self.logged("http.serving"))["port"]
        return (await self.http.get(f"http://127.0.0.1:{port}/metrics")).raise_for_status().text

    async def metrics(self) -> dict[str, float]:
        """Every sample, as `name{label="value"}`, labels in order of their names."""
        return samples(await self.exposition())

    async def until_metric(self, sample: str, value: float) -> None:
        """Scrapes until the sample has the value."""

        async with asyncio.timeout(PATIENCE):
            while (await self.metrics()).get(sample) != value:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def end(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.returncode is None:
            self.process.terminate()
        return await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            code = await self.process.wait()
            await self._reading
        await self.http.aclose()
        return code


def samples(exposition: str) -> dict[str, float]:
    """The samples of a scrape, by name and labels."""
    found = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


@asynccontextmanager
async def running(
    settings: Settings, *words: str, program: Path | None = None, **variables: str
) -> AsyncIterator[Process]:
    """`study-ingest worker` (or other words, or another program), killed if it does not end."""
    command = [str(PROGRAM)] if program is None else [sys.executable, str(program)]
    process = Process(await _start(settings, [*command, *(words or ("worker",))], variables))
    try:
        yield process
        await process.end()
    finally:
        if process.process.returncode is None:
            process.process.kill()
            await process.ended()


async def _start(
    settings: Settings, command: list[str], variables: Mapping[str, str]
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        env=environment(settings)
        | {"INGEST_HTTP_PORT": "0", "INGEST_LOG_FORMAT": "json"}
        | dict(variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
