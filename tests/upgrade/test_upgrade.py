"""An upgrade from version 0.1.0 while batches come in: old and new workers run beside each other.

The old version is taken from the repository's own history, and runs in the same environment.
"""

import asyncio
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from tests import factories as make
from tests.broker_fixtures import VIEWER, Broker
from tests.worker_process import PATIENCE, PROGRAM, Process, environment, running
from worker.settings import Settings
from worker.store.engine import make_engine

pytestmark = pytest.mark.broker

_REVISION: Final = "e7c52e9"
"""The last revision of version 0.1.0."""
_USERS: Final = 4
_QUESTIONS: Final = 6
_BATCHES: Final = 150
"""In each of three parts: before the upgrade, while it begins, while both versions run."""


@pytest.fixture(scope="module")
def old_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of version 0.1.0, to be run by this environment's Python."""
    folder = tmp_path_factory.mktemp("old")
    checkout = Path(__file__).parents[2]
    archive = folder / "old.tar"
    packages = ("worker", "schemas", "migrations")
    made = subprocess.run(
        ["git", "-C", checkout, "archive", "-o", archive, _REVISION, *packages],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("the repository's history is not here")
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    program = folder / "old_study_ingest.py"
    # A script's own folder comes before everything that is installed.
    program.write_text(
        "import worker\n"
        f"assert worker.__file__.startswith({str(folder)!r}), worker.__file__\n"
        "from worker.cli import main\nmain()\n"
    )
    return program


@pytest.fixture
def settings(bare_broker: Broker, empty_database_url: str) -> Settings:
    given = bare_broker.settings.model_dump(exclude_unset=True)
    return Settings.model_validate(
        given | {"database_url": empty_database_url, "prefetch": 20, "group_max": 5}
    )


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(settings, connections=4, name="tests")
    yield engine
    await engine.dispose()


async def command(settings: Settings, *words: str | Path) -> None:
    """Runs a command to its end, which has to be a good one."""
    process = await asyncio.create_subprocess_exec(
        *words,
        env=environment(settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-2000:]


class Viewers:
    """Publishes batches of every kind that ends well, and remembers what has to arrive."""

    def __init__(self, broker: Broker, questions: list[list[make.Published]]) -> None:
        self._broker = broker
        self._questions = questions
        self._number = itertools.count()
        self.sent: dict[UUID, int] = {}
        """How many attempts each batch has."""
        self.rejected: dict[UUID, str] = {}
        """The bodies of batches that either version has to refuse."""

    async def publish(self, count: int) -> None:
        for _ in range(count):
            number = next(self._number)
            mine = self._questions[number % _USERS]
            # Late batches, times that no reader of 0.1.0 took, answers of every kind.
            times: tuple[Any, ...] = (
                make.at(days=number % 17, minutes=number),
                make.at(days=-number),
                "2024-03-04t09:00:00z",
                "2024-03-04T24:00:00Z",
                None,
            )
            batch = make.batch(
                make.right(mine[number % _QUESTIONS], times[number % 5]),
                make.wrong(mine[(number + 1) % _QUESTIONS], times[(number + 1) % 5]),
                make.unsure(mine[(number + 3) % _QUESTIONS], times[(number + 2) % 5]),
                uuid=uuid4(),
            )
            if number % 10 == 5:
                await self._publish_one_to_refuse()
            self.sent[batch.client_session_uuid] = len(batch.attempts)
            # Some come twice: the other version may meet the second one.
            for _ in range(2 if number % 3 == 0 else 1):
                await self._broker.publish(
                    batch.model_dump_json(),
                    headers={amqp.CLIENT_SESSION_UUID_HEADER: str(batch.client_session_uuid)},
                )

    async def _publish_one_to_refuse(self) -> None:
        batch = make.batch(make.right("nowhere"), uuid=uuid4())
        body = self.rejected[batch.client_session_uuid] = batch.model_dump_json()
        await self._broker.publish(
            body, headers={amqp.CLIENT_SESSION_UUID_HEADER: str(batch.client_session_uuid)}
        )


async def ingested(engine: AsyncEngine, count: int) -> None:
    async with asyncio.timeout(4 * PATIENCE):
        # A database informs nobody of its rows: there is no event to wait for.
        while await make.count(engine, "ingest_inbox") < count:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def told(broker: Broker, name: str, count: int) -> dict[UUID, Counter[str]]:
    """The statuses that were told, by batch, until all of them have one."""
    found: dict[UUID, Counter[str]] = {}
    queue = await (await broker.channel()).get_queue(name, ensure=False)
    async with asyncio.timeout(4 * PATIENCE):
        while len(found) < count:
            message = await queue.get(fail=False, no_ack=True)
            if message is None:
                await asyncio.sleep(0.1)
                continue
            result = json.loads(message.body)
            uuid = UUID(result["client_session_uuid"])
            found.setdefault(uuid, Counter())[result["status"]] += 1
    return found


async def test_version_0_1_0_is_upgraded_under_load_and_nothing_is_lost(
    old_version: Path, settings: Settings, engine: AsyncEngine, bare_broker: Broker
) -> None:
    broker = bare_broker
    old = (sys.executable, old_version)
    await command(settings, *old, "migrate")
    await command(settings, *old, "topology")
    results = amqp.results_queue(VIEWER)
    channel = await broker.channel()
    queue = await channel.declare_queue(results, durable=True, arguments={"x-queue-type": "quorum"})
    await queue.bind(amqp.RESULTS_EXCHANGE, amqp.result_key(VIEWER))
    questions = [await make.publish(engine, _QUESTIONS, user_id=n + 1) for n in range(_USERS)]
    viewers = Viewers(broker, questions)

    async with AsyncExitStack() as everything:

        async def worker(program: Path | None = None) -> Process:
            process = await everything.enter_async_context(running(settings, program=program))
            await process.until_ready()
            return process

        before = [await worker(old_version) for _ in range(2)]
        await viewers.publish(_BATCHES)
        await ingested(engine, _BATCHES)

        # The upgrade, in the order of the manual, while the queue fills.
        filling = asyncio.create_task(viewers.publish(_BATCHES))
        await command(settings, PROGRAM, "migrate")
        await command(settings, PROGRAM, "topology")
        after = [await worker() for _ in range(2)]
        await filling
        both = asyncio.create_task(viewers.publish(_BATCHES))
        await ingested(engine, 2 * _BATCHES + _BATCHES // 2)
        assert [await process.end() for process in before] == [0, 0]
        await both
        await ingested(engine, len(viewers.sent))
        await broker.until_depth(amqp.ATTEMPTS_QUEUE, 0)
        found = await told(broker, results, len(viewers.sent) + len(viewers.rejected))
        # Those of the older version are taken over from the queue.
        await broker.until_depth(amqp.DEAD_QUEUE, 0)
        assert [await process.end() for process in after] == [0, 0]
        versions = [
            sum(event["event"] == "delivery.settled" for event in process.events)
            for process in (*before, *after)
        ]
        assert all(versions), versions
        bad = {"delivery.failed", "group.split"}
        assert not [e for p in (*before, *after) for e in p.events if e["event"] in bad]

    rows = await make.rows(
        engine,
        "SELECT client_session_uuid AS uuid, count(attempt.id) AS n FROM ingest_inbox"
        " JOIN study_quiz_sessions AS session USING (client_session_uuid)"
        " JOIN study_question_attempts AS attempt ON attempt.quiz_session_id = session.id"
        " GROUP BY 1",
    )
    assert {row["uuid"]: row["n"] for row in rows} == viewers.sent
    assert found.keys() == viewers.sent.keys() | viewers.rejected.keys()
    statuses = {status for uuid in viewers.sent for status in found[uuid]}
    assert statuses <= {"ingested", "already_ingested"}
    assert all(found[uuid].keys() == {"rejected"} for uuid in viewers.rejected)
    assert await broker.depth(amqp.DEAD_QUEUE) == 0
    letters = await make.rows(engine, "SELECT * FROM ingest_dead_letters")
    assert {row["client_session_uuid"]: row["body"].decode() for row in letters} == viewers.rejected
    assert len(letters) == len(viewers.rejected)
    assert {(row["reason"], row["viewer"]) for row in letters} == {("nothing_resolved", VIEWER)}
    assert {row["routing_key"].decode() for row in letters} == {amqp.attempts_key(VIEWER)}
    assert await make.count(engine, "outbox") == 0
    # Both schedulers folded while both versions ran, each for what it ingested. Nothing is lost by
    # that, and the rebuild that the manual asks for now brings the rest over.
    await command(settings, PROGRAM, "rebuild")
    await command(settings, PROGRAM, "verify")
