"""The stage: the run's own servers, prepared with the commands that an operator uses.

Only the run uses the database's superuser and the broker's guest. Workers have a role of their own,
so that the run can look and repair while they are locked out.
"""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aio_pika
import asyncpg
import httpx

from chaos import bank
from devtools import instances
from devtools.cluster import RabbitMQCluster
from devtools.postgres import Postgres, standby_of
from devtools.processes import at_once
from devtools.rabbitmq import HASHING, MANAGEMENT, RabbitMQ
from schemas import amqp

PROGRAM: Final = str(Path(sys.executable).parent / "study-ingest")
ROLE: Final = "ingest"
JOBS_TAP: Final = "chaos.jobs"
RESULTS_TAP: Final = "chaos.results"
ANSWERS_TAP: Final = "chaos.answers"
"""Gets the same as the tap of results. It is emptied all the time, because answers to viewers that
ask what the server has last only a minute in a queue.
"""

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


@dataclass(slots=True)
class Stage:
    """The servers, which are ready. `folder` is for outboxes and logs.

    `postgres` is the primary, and `replica` its synchronous standby, if there is one. They change
    places when the replica is promoted. `others` are the broker's other nodes. One that is lost is
    `gone` until an operator has removed it from the cluster.
    """

    postgres: Postgres
    broker: RabbitMQ
    folder: Path
    replica: Postgres | None = None
    others: list[RabbitMQ] = field(default_factory=list)
    gone: list[RabbitMQ] = field(default_factory=list)
    promoted: list[float] = field(default_factory=list)
    """When a replica became the primary (`time.time`)."""

    @property
    def databases(self) -> list[Postgres]:
        """The primary, and the replica if there is one."""
        return [self.postgres, *([self.replica] if self.replica else [])]

    @property
    def nodes(self) -> list[RabbitMQ]:
        """The broker's nodes. The first one is there until the end."""
        return [self.broker, *self.others]

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

    def database_url(self, ports: Sequence[int]) -> str:
        """For a worker, through proxies at `ports`."""
        kind = "?target_session_attrs=read-write" if len(ports) > 1 else ""
        return f"postgresql://{ROLE}@{_hosts(ports)}/{self.postgres.database}{kind}"

    def amqp_url(self, ports: Sequence[int]) -> str:
        """For a worker or viewer, through proxies at `ports`."""
        return f"amqp://guest:guest@{_hosts(ports)}/"

    def environment(
        self, databases: Sequence[int], brokers: Sequence[int], managements: Sequence[int]
    ) -> dict[str, str]:
        """The environment of a worker. The three are ports of proxies, or of the servers."""
        mine = {name: value for name, value in os.environ.items() if "INGEST_" not in name}
        return {
            **mine,
            **SETTINGS,
            "INGEST_DATABASE_URL": self.database_url(databases),
            "INGEST_AMQP_URL": self.amqp_url(brokers),
            "INGEST_MANAGEMENT_URL": f"http://guest:guest@{_hosts(managements)}",
        }

    def past_proxies(self) -> dict[str, str]:
        """The environment of an operator, which leads to the servers themselves.

        A node that is gone is the first of its list, so that each command has to get past it.
        """
        nodes = [*self.gone, *self.nodes]
        return self.environment(
            [each.port for each in self.databases],
            [node.port for node in nodes],
            [node.port_of(MANAGEMENT) for node in nodes],
        )


def _hosts(ports: Sequence[int]) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in ports)


_FOLLOWS_WITHIN: Final = 60.0
"""Seconds for a replica to get everything that the primary has."""
_REPLICATED: Final = {
    "wal_retrieve_retry_interval": "'500ms'",  # a replica that lost its primary looks more often
    "wal_keep_size": "'512MB'",  # enough for any absence within a run
}
"""They are kept in the data, where `pg_rewind` finds them as well when it recovers a server."""


@asynccontextmanager
async def stage(
    folder: Path, questions: list[bank.Question], partitions: int = 1, *, failover: bool = False
) -> AsyncIterator[Stage]:
    """Starts and prepares all servers. At the end it kills them and deletes their data.

    With `failover` there are a primary with a synchronous replica, and three nodes of the broker.
    """
    await asyncio.to_thread(instances.sweep)  # what a killed run has left behind
    databases = [Postgres(settings={"max_connections": "60"}) for _ in range(2 if failover else 1)]
    brokers = RabbitMQCluster(plugins=(MANAGEMENT, HASHING)) if failover else RabbitMQ()
    nodes = brokers.nodes if isinstance(brokers, RabbitMQCluster) else [brokers]
    try:
        await asyncio.to_thread(at_once, [databases[0].start, brokers.start])
        made = Stage(databases[0], nodes[0], folder, others=nodes[1:])
        await prepare(made, questions)
        for replica in databases[1:]:
            await _set(databases[0], _REPLICATED)
            made.replica = replica
            await follow(made, standby_of)
        if partitions > 1:
            await partition(made, partitions)
        elif failover:
            await _remember_queues(made)
        yield made
    finally:
        for number, database in enumerate(databases):
            _keep_log(database.log, folder / f"postgres{number or ''}.log")
        for number, node in enumerate(nodes):
            _keep_log(node.log, folder / f"rabbitmq{number or ''}.log")
        closing = [*(each.close for each in databases), brokers.close]
        await asyncio.shield(asyncio.to_thread(at_once, closing))


def _keep_log(log: Path, kept: Path) -> None:
    if log.exists():
        shutil.copyfile(log, kept)


async def prepare(stage: Stage, questions: list[bank.Question]) -> None:
    """Prepares two empty servers for a run."""
    await stage.sql(f"CREATE ROLE {ROLE} LOGIN")
    await stage.sql(f"GRANT CREATE ON SCHEMA public TO {ROLE}")
    await asyncio.gather(operate(stage, "migrate"), operate(stage, "topology"))
    await bank.publish(stage.postgres.url, questions)
    await _tap(stage.broker.url)


async def follow(stage: Stage, make: Callable[[Postgres, Postgres], object]) -> None:
    """Makes the replica a synchronous standby of the primary, and waits until it has everything.

    `make(primary, replica)` prepares its data.
    """
    assert stage.replica is not None
    await asyncio.to_thread(make, stage.postgres, stage.replica)
    await asyncio.to_thread(stage.replica.start)
    await _set(stage.postgres, {"synchronous_standby_names": "'*'"})
    (now,) = (await stage.sql("SELECT CAST(pg_current_wal_flush_lsn() AS text)"))[0]
    has_all = (
        "SELECT 1 FROM pg_stat_replication"  # noqa: S608
        f" WHERE sync_state = 'sync' AND flush_lsn >= '{now}'"
    )
    async with asyncio.timeout(_FOLLOWS_WITHIN):
        while not await stage.sql(has_all):  # noqa: ASYNC110  # the server offers no event
            await asyncio.sleep(0.1)


async def promote(stage: Stage) -> None:
    """Makes the replica the primary, as a failover manager does.

    Nobody is left to confirm its commits, so they wait for nobody until the other server follows.
    """
    assert stage.replica is not None
    await _set(stage.replica, {"synchronous_standby_names": "''"})
    stage.postgres, stage.replica = stage.replica, stage.postgres
    stage.promoted.append(time.time())
    # A statement that waited for the promotion could hold up the replay that has to end before it.
    await stage.sql("SELECT pg_promote(false)")
    async with asyncio.timeout(_FOLLOWS_WITHIN):
        while (await stage.sql("SELECT pg_is_in_recovery()"))[0][0]:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.05)


async def _set(server: Postgres, settings: Mapping[str, str]) -> None:
    """Changes settings of the server. The values are literals of SQL."""
    connection = await asyncpg.connect(server.url, timeout=5)
    try:
        for name, value in settings.items():
            await connection.execute(f"ALTER SYSTEM SET {name} = {value}")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close(timeout=5)


async def partition(stage: Stage, number: int) -> None:
    """Divides the queue into so many partitions, which survive that the broker is killed."""
    await operate(stage, "topology", INGEST_PARTITIONS=str(number))
    await _remember_queues(stage)


async def _remember_queues(stage: Stage) -> None:
    await asyncio.to_thread(at_once, [node.remember_queues for node in stage.nodes])


async def operate(stage: Stage, command: str, **settings: str) -> None:
    """Runs a command as an operator does. Raises RuntimeError if it fails."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        command,
        env=stage.past_proxies() | settings,
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
            (ANSWERS_TAP, amqp.RESULTS_EXCHANGE, "result.#"),
            (JOBS_TAP, amqp.FOLLOWUPS_EXCHANGE, "#"),
        ):
            queue = await channel.declare_queue(
                name, durable=True, arguments={"x-queue-type": "quorum"}
            )
            await queue.bind(exchange, key)
