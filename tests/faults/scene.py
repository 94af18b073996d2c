"""What the aimed crashes share: one user's questions, a worker to be killed, one that recovers.

The worker that is killed talks to both servers by way of a proxy that reads along; the one after
it talks to them directly, and drains in the end. Then the checker of `./dev chaos` judges what is
left: the database's rows, and every message.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from chaos.checker import check
from chaos.evidence import Evidence, Parked, Played, Recorded, read_database, read_queues
from chaos.expected import digest
from chaos.wire import AMQP, PostgreSQL, Wire
from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from tests import factories as make
from tests.broker_fixtures import VIEWER, Broker
from tests.faults.processes import Process
from worker.broker.topology import retry_queue
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest

T = TypeVar("T")

RESULTS, JOBS = "tap.results", "tap.jobs"
RETRY_DELAY: Final = 0.1

PATIENCE: Final = 60.0
"""Seconds; several processes start for each boundary, perhaps on a machine that has much to do."""


@dataclass
class Scene:
    """One vhost and one database, with two wires in front of them."""

    broker: Broker
    engine: AsyncEngine
    database_url: str
    database: Wire
    messages: Wire
    folder: Path
    questions: list[make.Published]
    sent: list[tuple[AttemptBatch, str | None]] = field(default_factory=list)
    """Each batch that was sent, and why it has to be refused."""
    processes: list[Process] = field(default_factory=list)

    def start(self, command: str = "worker", *, wired: bool, **changed: object) -> Process:
        """Starts a `study-ingest` process; `changed` are settings."""
        settings = self.broker.settings
        env = {name: value for name, value in os.environ.items() if "INGEST_" not in name} | {
            "INGEST_DATABASE_URL": self.database.url if wired else self.database_url,
            "INGEST_AMQP_URL": self.messages.url if wired else settings.amqp_url.get_secret_value(),
            "INGEST_REQUIRE_USER_ID": "false",
            "INGEST_RETRY_DELAYS": f"[{RETRY_DELAY}, 0.2]",
            "INGEST_PAUSE_DELAY_MIN": "0.05",
            "INGEST_PAUSE_DELAY_MAX": "0.5",
            "INGEST_RELAY_POLL_INTERVAL": "0.1",
            "INGEST_RELAY_IN_WORKER": str(not wired).lower(),
            "INGEST_LANES": "1",
            "INGEST_LOG_FORMAT": "json",
        }
        if settings.management_url is not None:
            env["INGEST_MANAGEMENT_URL"] = settings.management_url.get_secret_value()
        env |= {f"INGEST_{name.upper()}": str(value) for name, value in changed.items()}
        log = self.folder / f"{len(self.processes)}-{command}.log"
        self.processes.append(Process(command, env, log))
        return self.processes[-1]

    async def history(self) -> None:
        """A batch that was ingested long ago, and after which the others come late."""
        first, second, *_ = self.questions
        batch = make.batch(make.right(first, make.at(9)), make.wrong(second, make.at(9)))
        await Ingest(self.engine, Policy())([make.incoming(batch, VIEWER)])
        self.sent.append((batch, None))

    def batch(self, **changed: Any) -> AttemptBatch:
        """One that takes every way: two topics, a late answer, a new question, a skipped one."""
        first, second, third, withdrawn = self.questions
        return make.batch(
            make.wrong(first, make.at(1)),
            make.unsure(second, make.at(1)),
            make.right(third, make.at(1)),
            make.right(withdrawn, make.at(1)),
            **changed,
        )

    async def send(self, batch: AttemptBatch, refused_for: str | None = None) -> None:
        """Publishes a batch as a viewer does."""
        self.sent.append((batch, refused_for))
        await self.publish(batch)

    async def publish(self, batch: AttemptBatch) -> None:
        """Publishes a batch, perhaps once more."""
        await self.broker.publish(
            batch.model_dump_json(),
            headers={amqp.CLIENT_SESSION_UUID_HEADER: str(batch.client_session_uuid)},
            type=amqp.ATTEMPT_BATCH_TYPE,
        )

    async def ingested(self, batch: AttemptBatch) -> bool:
        """Whether its transaction is committed."""
        found = await make.rows(
            self.engine,
            "SELECT 1 FROM ingest_inbox WHERE client_session_uuid = :uuid",
            uuid=batch.client_session_uuid,
        )
        return bool(found)

    async def returned(self, count: int) -> None:
        """Waits until the broker has taken back what the killed worker had in hand."""
        await until(self.broker.consumers, (0).__eq__)
        await until(lambda: self.broker.depth(amqp.ATTEMPTS_QUEUE), count.__eq__)

    async def comes(self, there: asyncio.Event, worker: Process) -> None:
        """Waits until the worker has come there."""
        try:
            await asyncio.wait_for(there.wait(), PATIENCE)
        except TimeoutError:
            pytest.fail(f"never came there: {worker.log.read_text()[-3000:]}")

    async def kill(self, worker: Process) -> None:
        """kill -9, with all that was held on its way."""
        await worker.kill()
        self.database.cut()
        self.messages.cut()

    async def recover(self, settled: int) -> Process:
        """Lets another worker deal with what is there: `settled` deliveries; drains it."""
        worker = self.start(wired=False)

        async def done() -> bool:
            return (
                len(worker.lines("delivery.settled")) >= settled
                and await make.count(self.engine, "outbox") == 0
            )

        await until(done, bool)
        await worker.stop()
        assert len(worker.lines("delivery.settled")) == settled
        return worker

    async def evidence(self) -> Evidence:
        """What is left; takes all messages out of the queues."""
        found = Evidence()
        await read_database(found, self.database_url)
        await read_queues(
            found,
            self.broker.settings.amqp_url.get_secret_value(),
            empty=[
                amqp.ATTEMPTS_QUEUE,
                amqp.DEAD_QUEUE,
                retry_queue(RETRY_DELAY),
                retry_queue(0.2),
            ],
            results=RESULTS,
            jobs=JOBS,
        )
        told = {each.body["client_session_uuid"]: each.body for each in found.told}
        for batch, _ in self.sent:
            body = batch.model_dump(mode="json")
            uuid, result = batch.client_session_uuid, told.get(str(batch.client_session_uuid))
            state = "settled" if result else "confirmed"
            found.recorded.append(Recorded(VIEWER, uuid, digest(body), body, state, result, 1))
            found.played.append(Played(VIEWER, uuid, body["attempts"]))
        return found

    async def holds(self) -> Evidence:
        """The law holds: nothing lost, nothing doubled, nothing else than it should be."""
        found = await self.evidence()
        violations = check(found)
        assert not violations, "\n".join(map(str, violations))
        inbox = {row["client_session_uuid"] for row in found.inbox}
        assert inbox == {batch.client_session_uuid for batch, reason in self.sent if not reason}
        # Each exactly once, however often it was delivered.
        parked = [Parked(each.client_session_uuid, None, each.reason) for each in found.parked]
        assert sorted(parked) == sorted(
            Parked(batch.client_session_uuid, None, reason) for batch, reason in self.sent if reason
        )
        return found


@asynccontextmanager
async def scene(
    broker: Broker, engine: AsyncEngine, database_url: str, folder: Path
) -> AsyncIterator[Scene]:
    """Opens the stage; kills what is left on it."""
    questions = [
        *await make.publish(engine, 2),
        *await make.publish(engine, 2),
    ]
    await make.withdraw(engine, questions[-1])
    channel = await broker.channel()
    for name, exchange, key in (
        (RESULTS, amqp.RESULTS_EXCHANGE, "result.#"),
        (JOBS, amqp.FOLLOWUPS_EXCHANGE, "#"),
    ):
        tap = await channel.declare_queue(name, durable=True)
        await tap.bind(exchange, key)
    server = make_url(database_url).update_query_dict({"sslmode": "disable"})
    url = server.set(drivername="postgresql").render_as_string(hide_password=False)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Wire(url, PostgreSQL))
        address = broker.settings.amqp_url.get_secret_value()
        messages = await stack.enter_async_context(Wire(address, AMQP))
        made = Scene(broker, engine, url, database, messages, folder, questions)
        try:
            yield made
        finally:
            for process in made.processes:
                process.close()


async def until(look: Callable[[], Awaitable[T]], wanted: Callable[[T], bool]) -> T:
    """Looks until what is seen is as wanted, and returns it."""
    end = time.monotonic() + PATIENCE
    # Nobody tells of depths, rows or lines: there is no event to wait for.
    while not wanted(seen := await look()):
        if time.monotonic() > end:
            pytest.fail(f"still {seen!r} after {PATIENCE} s")
        await asyncio.sleep(0.02)
    return seen
