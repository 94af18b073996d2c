"""`./dev demo --console`: the system goes on, and the console shows it, until Ctrl-C."""

import asyncio
import os
import random
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from rich.console import Console

from demo import bank, processes, sessions, stage
from demo.phone import Phone
from devtools.state import free_ports
from worker.errors import IngestError
from worker.settings import Settings

_WORKERS: Final = 2
_SESSIONS_PER_SECOND: Final = 2.0
_SESSION_TIME: Final = timedelta(minutes=17)


async def live(
    settings: Settings, questions: list[bank.Question], logs: Path, console: Console
) -> None:
    """Runs workers, viewers that study all the time, and the console, until SIGINT or SIGTERM."""
    settings = stage.of_the_last(settings)
    environment = stage.environment_of(settings)
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(processes.workers(_WORKERS, settings, environment, logs))
        address, token = await stack.enter_async_context(_console(environment, logs))
        console.print(f"The console is at {address}", highlight=False)
        console.print(f"Sign in with the token {token}", highlight=False)
        console.print("Ctrl-C ends it.")
        await _study(settings, questions, stop)


async def _study(settings: Settings, questions: list[bank.Question], stop: asyncio.Event) -> None:
    rng = random.Random()
    by_user: dict[int, list[bank.Question]] = {}
    for question in questions:
        by_user.setdefault(question.user_id, []).append(question)
    url = settings.amqp_url.get_secret_value()
    with tempfile.TemporaryDirectory(prefix="study-demo-") as folder:
        async with AsyncExitStack() as stack:
            phones = {
                user: await stack.enter_async_context(Phone(Path(folder), url, f"phone-{user}"))
                for user in by_user
            }
            while not stop.is_set():
                user = rng.choice([*phones])
                began = datetime.now(UTC) - _SESSION_TIME
                phones[user].record(sessions.session(rng, by_user[user], began))
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), rng.expovariate(_SESSIONS_PER_SECOND))


@asynccontextmanager
async def _console(environment: Mapping[str, str], logs: Path) -> AsyncIterator[tuple[str, str]]:
    """Runs the console. Gives its address, and a token with which everything is allowed."""
    (port,), token = free_ports(1), secrets.token_urlsafe(18)
    path = logs / "console.log"
    with path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).parent / "study-ingest"), "console"),
            env={
                **os.environ,
                **environment,
                "INGEST_CONSOLE_PORT": str(port),
                "INGEST_CONSOLE_TOKENS": f"you:act:{token}",
                "INGEST_LOG_FORMAT": "json",
            },
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the demo, which ends it
        )
    try:
        while b"console.serving" not in path.read_bytes():
            if process.returncode is not None:
                raise IngestError(f"The console did not start: see {path}.")
            await asyncio.sleep(0.1)  # a log offers no event to wait for
        yield f"http://127.0.0.1:{port}/", token
    finally:
        await processes.end(process)
