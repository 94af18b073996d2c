"""The demo's worker processes. They are started as an operator would start them, and end by
SIGTERM.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aio_pika

from schemas import amqp
from worker.errors import IngestError
from worker.settings import Settings

_START_SECONDS: Final = 120.0  # a busy machine takes many to start a process
_STOP_SECONDS: Final = 30.0


@asynccontextmanager
async def workers(
    count: int, settings: Settings, environment: Mapping[str, str], logs: Path
) -> AsyncIterator[None]:
    """Runs `count` workers while the block runs. Each writes its log to a file in the folder
    `logs`.

    Raises `IngestError` if one ends early, or does not exit with 0 after SIGTERM.
    """
    logs.mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).parent / "study-ingest"
    processes = []
    try:
        for number in range(1, count + 1):
            with (logs / f"worker-{number}.log").open("wb") as log:
                processes.append(
                    await asyncio.create_subprocess_exec(
                        str(program),
                        "worker",
                        env={**os.environ, **environment, "INGEST_LOG_FORMAT": "json"},
                        stdout=log,
                        stderr=log,
                        start_new_session=True,  # Ctrl-C is for the demo, which ends them
                    )
                )
        await _consuming(count, settings, processes, logs)
        yield
    finally:
        codes = await asyncio.gather(*(end(process) for process in processes))
    if any(codes):
        raise IngestError(f"Workers ended with {codes}: see the logs in {logs}.")


async def _consuming(
    count: int, settings: Settings, processes: list[asyncio.subprocess.Process], logs: Path
) -> None:
    async with await aio_pika.connect(settings.amqp_url.get_secret_value()) as connection:
        channel = await connection.channel()
        for _ in range(int(_START_SECONDS / 0.1)):
            if any(process.returncode is not None for process in processes):
                raise IngestError(f"A worker did not start: see the logs in {logs}.")
            queue = await channel.declare_queue(amqp.ATTEMPTS_QUEUE, passive=True)
            if (queue.declaration_result.consumer_count or 0) >= count:
                return
            await asyncio.sleep(0.1)  # the broker offers no event to wait for
    raise IngestError(f"The workers did not start to consume: see the logs in {logs}.")


async def end(process: asyncio.subprocess.Process) -> int:
    """Ends a process by SIGTERM, or by force if that takes too long. Returns its exit code."""
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
    return process.returncode or 0
