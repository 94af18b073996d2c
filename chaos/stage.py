"""The stage: the run's own servers, prepared with the commands that an operator uses.

Only the run uses the database's superuser and the broker's guest. Workers have a role of their own,
so that the run can look and repair while they are locked out.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aio_pika
import asyncpg
import httpx

from chaos import bank
from devtools import instances
from devtools.postgres import Postgres
from devtools.processes import at_once
from devtools.rabbitmq import RabbitMQ
from schemas import amqp

PROGRAM: Final = str(Path(sys.executable).parent / "study-ingest")
ROLE: Final = "ingest"
JOBS_TAP: Final = "chaos.jobs"
RESULTS_TAP: Final = "chaos.results"

SETTINGS: Final[Mapping[str, str]] = {
    # Every mechanism as in production, with shorter times, so that a minute is enough for all.
    "INGEST_HEARTBEAT": "2",
    "INGEST_CONNECT_TIMEOUT": "3",
    "INGEST_STATEMENT_TIMEOUT": "8",
    "INGEST_LOCK_TIMEOUT": "5",
    "INGEST_IDLE_IN_TRANSACTION_TIMEOUT": "8",
    "INGEST_TRANSACTION_TIMEOUT": "20",
    "INGEST_PUBLISH_TIMEOUT": "4",
    "INGEST_PAUSE_DELAY_MAX": "2",
    "INGEST_CONSUMER_CHECK_INTERVAL": "2",
    "INGEST_RETRY_DELAYS": "[0.5, 1, 2, 4, 8, 16]",
    "INGEST_PREFETCH": "50",
    "INGEST_GROUP_MAX": "10",
    "INGEST_DRAIN_TIMEOUT": "10",
    "INGEST_REQUIRE_USER_ID": "false",
    "INGEST_LOG_FORMAT": "json",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """Two servers that are ready. `folder` is for outboxes and logs."""

    postgres: Postgres
    broker: RabbitMQ
    folder: Path

    async def sql(self, statement: str) -> list[Any]:
        """Runs one statement as superuser, past every proxy."""
        connection = await asyncpg.connect(self.postgres.url, timeout=5)
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close(timeout=5)

    async def grant(self, viewer: str, users: Sequence[int]) -> None:
        """Grants the viewer these users, and no others."""
        rows = ", ".join(f"('{viewer}', {user})" for user in users)
        await self.sql(f"INSERT INTO viewer_grants (viewer, user_id) VALUES {rows}")  # noqa: S608

    async def management(self, method: str, path: str, body: Any = None) -> Any:
        """Calls the broker's management API, past every proxy. `path` is below /api/."""
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            url = f"{self.broker.management_url}/api/{path}"
            answer = await client.request(method, url, json=body)
            answer.raise_for_status()
            return answer.json() if answer.content else None

    def database_url(self, port: int) -> str:
        """For a worker, through a proxy at `port`."""
        return f"postgresql://{ROLE}@127.0.0.1:{port}/{self.postgres.database}"

    def amqp_url(self, port: int) -> str:
        """For a worker or viewer, through a proxy at `port`."""
        return f"amqp://guest:guest@127.0.0.1:{port}/"

    def environment(self, database: int, broker: int, management: int) -> dict[str, str]:
        """The environment of a worker. The three are ports of proxies, or of the servers."""
        mine = {name: value for name, value in os.environ.items() if "INGEST_" not in name}
        return {
            **mine,
            **SETTINGS,
            "INGEST_DATABASE_URL": self.database_url(database),
            "INGEST_AMQP_URL": self.amqp_url(broker),
            "INGEST_MANAGEMENT_URL": f"http://guest:guest@127.0.0.1:{management}",
        }


@asynccontextmanager
async def stage(
    folder: Path, questions: list[bank.Question], partitions: int = 1
) -> AsyncIterator[Stage]:
    """Starts and prepares both servers. At the end it kills them and deletes their data."""
    await asyncio.to_thread(instances.sweep)  # what a killed run has left behind
    postgres = Postgres(settings={"max_connections": "60"})
    broker = RabbitMQ()
    try:
        await asyncio.to_thread(at_once, [postgres.start, broker.start])
        made = Stage(postgres, broker, folder)
        await prepare(made, questions)
        if partitions > 1:
            await partition(made, partitions)
        yield made
    finally:
        for log, name in ((postgres.log, "postgres.log"), (broker.log, "rabbitmq.log")):
            if log.exists():
                shutil.copyfile(log, folder / name)
        await asyncio.shield(asyncio.to_thread(at_once, [postgres.close, broker.close]))


async def prepare(stage: Stage, questions: list[bank.Question]) -> None:
    """Prepares two empty servers for a run."""
    await stage.sql(f"CREATE ROLE {ROLE} LOGIN")
    await stage.sql(f"GRANT CREATE ON SCHEMA public TO {ROLE}")
    await asyncio.gather(_run(stage, "migrate"), _run(stage, "topology"))
    await bank.publish(stage.postgres.url, questions)
    await _tap(stage.broker.url)


async def partition(stage: Stage, number: int) -> None:
    """Divides the queue into so many partitions, which survive that the broker is killed."""
    await _run(stage, "topology", INGEST_PARTITIONS=str(number))
    await asyncio.to_thread(stage.broker.remember_queues)


async def _run(stage: Stage, command: str, **settings: str) -> None:
    management = stage.broker.port_of("rabbitmq_management")
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        command,
        env=stage.environment(stage.postgres.port, stage.broker.port, management) | settings,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"study-ingest {command} failed: {output.decode()[-500:]}")


async def _tap(url: str) -> None:
    """Queues that get a copy of every result and every job, as durable as the worker's own."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for name, exchange, key in (
            (RESULTS_TAP, amqp.RESULTS_EXCHANGE, "result.#"),
            (JOBS_TAP, amqp.FOLLOWUPS_EXCHANGE, "#"),
        ):
            queue = await channel.declare_queue(
                name, durable=True, arguments={"x-queue-type": "quorum"}
            )
            await queue.bind(exchange, key)
