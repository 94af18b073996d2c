"""A learner moves to another cell while both are busy, by the steps of docs/scale.md.

A cell is a vhost and a database with workers of its own. A third database gets every batch of the
learner, as a cell in which they had been all along.
"""

import asyncio
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import aio_pika
import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

import study_viewer
from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from study_viewer import Outbox, Relay, RelaySettings
from tests import factories as make
from tests.broker_fixtures import PATIENCE, make_settings, new_vhost, until
from tests.factories import Published, answer, at, batch, incoming
from tests.whole_worker import Login, Viewers
from tests.worker.operate.commands import invoke
from tests.worker.operate.conftest import Site
from worker.broker import topology
from worker.broker.accounts import Accounts
from worker.broker.management import Management
from worker.domain.dispositions import Ingested
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.operate.repair import verify
from worker.store import schema
from worker.store.engine import make_engine

pytestmark = pytest.mark.broker

LEARNER, OTHERS = 42, range(100, 110)
OLD, NEW = 10**12, 2 * 10**12
"""Where the ids of each cell's own questions and topics begin. Shared ones lie below."""
QUICK = RelaySettings(
    retry_delay_min=0.02,
    retry_delay_max=0.1,
    poll_interval=0.02,
    check_patience=0.5,
    resend_rate=1000,
    result_timeout=1,
    progress_patience=0.5,
)
_CONTENT = {
    "study_topics": "SELECT * FROM study_topics AS row WHERE {}",
    "study_questions": "SELECT * FROM study_questions AS row WHERE {}",
    "published": "SELECT published.* FROM published JOIN study_questions AS row"
    " ON row.id = source_id WHERE kind = 'question' AND {}",
}


async def content(origin: AsyncEngine, target: AsyncEngine, whose: str, *tables: str) -> None:
    """Copies content with its ids, as an application that publishes it in several cells."""
    for table in tables or _CONTENT:
        query = _CONTENT[table].format(f"row.user_id {whose}")
        (found,) = await make.rows(
            origin, f"SELECT CAST(jsonb_agg(to_jsonb(each)) AS text) AS rows FROM ({query}) AS each"
        )
        await make.execute(
            target,
            f"INSERT INTO {table} SELECT * FROM"
            f" jsonb_populate_recordset(CAST(NULL AS {table}), CAST(:rows AS jsonb))",
            rows=found["rows"],
        )


async def number_from(engine: AsyncEngine, first: int) -> None:
    """Gives the cell a range for the ids of its own content."""
    for table in ("study_topics", "study_questions"):
        await make.execute(
            engine,
            f"ALTER TABLE {table} ALTER COLUMN id SET MINVALUE {first}"
            f" SET MAXVALUE {first + 10**12 - 1} SET START {first} RESTART",
        )


@asynccontextmanager
async def new_cell(database_url: str) -> AsyncIterator[Site]:
    async with new_vhost() as broker:
        url = broker.settings.amqp_url.get_secret_value()
        settings = make_settings(url, database_url=database_url, require_user_id=True)
        engine = make_engine(settings, connections=10, name="tests")
        async with Management(settings) as management:
            await topology.apply(management, settings)
        yield Site(broker, engine, settings)
        await engine.dispose()


async def send(cell: Site, session: AttemptBatch, user_id: int) -> None:
    """Publishes a session as the one login that writes for all other learners."""
    viewer = urlsplit(cell.settings.amqp_url.get_secret_value()).username or ""
    await cell.broker.publish(
        session.model_dump_json(),
        routing_key=amqp.attempts_key(viewer),
        type=amqp.ATTEMPT_BATCH_TYPE,
        user_id=viewer,
        headers={
            amqp.CLIENT_SESSION_UUID_HEADER: str(session.client_session_uuid),
            amqp.PRINCIPAL_HEADER: str(user_id),
        },
    )


@dataclass
class Learner:
    """Studies now and then, on questions that everybody has and on cards of their own."""

    phone: Outbox
    questions: Sequence[Published]
    dice: random.Random
    sessions: list[AttemptBatch] = field(default_factory=list)

    def session(self) -> AttemptBatch:
        """A session whose answers may be older than those of earlier sessions."""
        when = at(self.dice.uniform(0, 30))
        asked = self.dice.sample(self.questions, 3)
        answers = [
            answer(each, self.dice.choice((1, 1, 2)), when + timedelta(minutes=n))
            for n, each in enumerate(asked)
        ]
        self.sessions.append(batch(*answers))
        return self.sessions[-1]

    def study(self, sessions: int = 1) -> list[UUID]:
        """Records sessions on the phone."""
        with closing(sqlite3.connect(self.phone.path)) as file, file:
            for session in (done := [self.session() for _ in range(sessions)]):
                # The library has these models as a package of its own.
                recorded = study_viewer.AttemptBatch.model_validate(session.model_dump())
                self.phone.record(file, recorded)
        return [session.client_session_uuid for session in done]

    async def settled(self) -> bool:
        """Whether the phone has a result for all that it recorded, and doubts none."""
        return not self.phone.unsettled() and not self.phone.unchecked(1)


async def command(cell: Site, *words: str) -> dict[str, Any]:
    """Runs a command, and returns what it says with --json."""
    result = await invoke(cell, *words, INGEST_REQUIRE_USER_ID="true")
    assert result.exit_code == 0, (words, result.output, result.exception)
    # The workers of this process log into the same output.
    said = [line for line in result.stdout.splitlines() if line.startswith("{")]
    return json.loads(said[0]) if "--json" in words else {}


async def publish_without_library(viewer: Login, session: AttemptBatch) -> None:
    """Publishes with a confirm, and never again."""
    connection = await aio_pika.connect(viewer.url)
    async with connection:
        exchange = await (await connection.channel()).get_exchange(
            amqp.INGEST_EXCHANGE, ensure=False
        )
        message = aio_pika.Message(
            session.model_dump_json().encode(),
            type=amqp.ATTEMPT_BATCH_TYPE,
            user_id=viewer.name,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await exchange.publish(message, amqp.attempts_key(viewer.name))


async def copy(old: Site, new: Site, file: Path) -> dict[str, Any]:
    """Exports the learner from the old cell, and imports the file into the new one."""
    await command(old, "export", "--user", str(LEARNER), "-o", str(file))
    return await command(new, "import", str(file), "--json")


async def ingested(cell: Site, *uuids: UUID) -> int:
    """How many of these batches the cell has."""
    (found,) = await make.rows(
        cell.engine,
        "SELECT count(*) AS n FROM ingest_inbox WHERE client_session_uuid = ANY(:uuids)",
        uuids=list(uuids),
    )
    return int(found["n"])


async def batches(cell: Site) -> set[UUID]:
    """All batches of the learner in the cell."""
    query = "SELECT client_session_uuid FROM ingest_inbox WHERE user_id = :user_id"
    found = await make.rows(cell.engine, query, user_id=LEARNER)
    return {row["client_session_uuid"] for row in found}


@dataclass
class Load:
    """Other learners of a cell, who study without a pause."""

    cell: Site
    questions: Sequence[Published]
    sent: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """About fifty sessions a second."""
        dice = random.Random(self.cell.broker.vhost)
        while not stop.is_set():
            user_id = dice.choice(OTHERS)
            answers = [answer(each, dice.choice((1, 2))) for each in dice.sample(self.questions, 5)]
            await send(self.cell, batch(*answers), user_id)
            self.sent += 1
            await asyncio.sleep(0.02)

    async def done(self) -> bool:
        users = list(OTHERS)
        query = "SELECT count(*) AS n FROM ingest_inbox WHERE user_id = ANY(:users)"
        (found,) = await make.rows(self.cell.engine, query, users=users)
        return int(found["n"]) == self.sent


async def verified(engine: AsyncEngine) -> list[int]:
    """The users of a database, in which progress is what the attempts give."""
    users = await make.users(engine)
    for user_id in users:
        assert await verify(engine, user_id, Policy()) == []
    return users


async def test_a_learner_moves_between_two_busy_cells_and_nothing_is_lost_or_counts_twice(
    database_url: str, other_engine: AsyncEngine, empty_database_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        other = make_url(database_url).set(database=other_engine.url.database)
        old = await enter(new_cell(database_url))
        new = await enter(new_cell(other.render_as_string(hide_password=False)))
        elsewhere = make_settings("amqp://unused", database_url=empty_database_url)
        always = make_engine(elsewhere, connections=2, name="tests")
        stack.push_async_callback(always.dispose)
        await schema.migrate(always)

        # The same shared questions everywhere; the learner has cards of their own in the old cell.
        shared = await make.publish(old.engine, 20, user_id=None)
        await content(old.engine, new.engine, "IS NULL")
        await number_from(old.engine, OLD)
        await number_from(new.engine, NEW)
        cards = await make.publish(old.engine, 4, user_id=LEARNER)
        await content(old.engine, always, "IS NULL OR row.user_id = 42")
        login = urlsplit(old.settings.amqp_url.get_secret_value()).username or ""
        for cell in (old, new):
            for user_id in OTHERS:
                await make.grant(cell.engine, login, user_id)
        accounts = await enter(Accounts(old.settings))
        viewers = Viewers(accounts, old.engine, old.settings)
        stack.push_async_callback(viewers.remove_all)
        phone, tablet = await viewers.add(LEARNER), await viewers.add(LEARNER)
        learner = Learner(
            stack.enter_context(Outbox(tmp_path / "phone.db")),
            [*shared, *cards],
            random.Random(7),
        )
        worker = await enter(old.working())
        await enter(new.working())
        loads = [Load(cell, shared) for cell in (old, new)]
        stop = asyncio.Event()
        busy = [asyncio.create_task(load.run(stop)) for load in loads]

        relay = Relay(learner.phone, phone.url, phone.name, QUICK)
        await relay.start()
        learner.study(30)
        await until(learner.settled, bool)

        # 1. The new cell knows the learner's devices. The broker is the same here, and logins are
        # the broker's, so the phone gets another name.
        moved = viewers.name()
        (tmp_path / "devices.jsonl").write_text(
            json.dumps({"viewer": moved, "user_id": LEARNER}) + "\n"
        )
        made = await command(new, "viewer", "import", str(tmp_path / "devices.jsonl"), "--json")
        url = urlsplit(new.settings.amqp_url.get_secret_value())
        netloc = f"{moved}:{made['password']}@{url.netloc.rpartition('@')[2]}"
        address = url._replace(netloc=netloc).geturl()

        # 2. A first copy, and the publications of the learner's own cards.
        first = await copy(old, new, tmp_path / "first.jsonl")
        assert (first["batches"], first["known"]) == (30, 0)
        await content(old.engine, new.engine, f"= {LEARNER}", "published")

        # The learner goes on. Then the old cell's workers fall behind.
        between = learner.study(5)
        await until(learner.settled, bool)
        await command(old, "pause", "--reason", "behind")
        assert await worker.changed.until(lambda: worker.state == "paused", PATIENCE)
        stragglers = learner.study(2)
        await until(lambda: _count(learner.phone.pending()), (0).__eq__)
        late = learner.session()
        await publish_without_library(tablet, late)

        # 3. The directory sends the phone to the new cell, and the old one does not let it in.
        await relay.stop()
        for device in (phone, tablet):
            await command(old, "viewer", "rotate", device.name)
        relay = Relay(learner.phone, address, moved, QUICK)
        await relay.start()
        stack.push_async_callback(relay.stop)
        learner.study(3)
        await until(learner.settled, bool)
        assert relay.status.resent == len(between)
        assert await ingested(new, *between, *stragglers) == 7
        assert await batches(new) < {each.client_session_uuid for each in learner.sessions}

        # 4. A second copy: what both have counts once.
        second = await copy(old, new, tmp_path / "second.jsonl")
        assert (second["batches"], second["known"]) == (0, 35)

        # 5. The old cell catches up. It has batches that the new one has, and one that it has not.
        await command(old, "resume")
        await until(lambda: ingested(old, *stragglers, late.client_session_uuid), (3).__eq__)
        for device in (phone, tablet):
            await command(old, "viewer", "revoke", device.name)
        third = await copy(old, new, tmp_path / "third.jsonl")
        assert (third["batches"], third["known"], third["erased"]) == (1, 37, 0)
        assert await batches(old) < await batches(new)
        await command(new, "verify", "--user", str(LEARNER))

        # 6. The old cell forgets.
        await command(old, "erase", "--user", str(LEARNER), "--reason", "has moved", "--yes")

        learner.study(3)
        await until(learner.settled, bool)
        stop.set()
        await asyncio.gather(*busy)
        for load in loads:
            await until(load.done, bool)

        # Nothing is lost, and nothing counts twice.
        assert await batches(new) == {each.client_session_uuid for each in learner.sessions}
        await make.grant(always, "phone", LEARNER)
        for session in learner.sessions:
            (done,) = await Ingest(always, Policy())([incoming(session, "phone")])
            assert isinstance(done, Ingested)
        progress = await _progress(new.engine)
        assert progress == await _progress(always)
        assert await verified(old.engine) == list(OTHERS)
        assert await verified(new.engine) == [LEARNER, *OTHERS]
        for cell in (old, new):
            assert await cell.letters() == 0
        # The phone holds the same.
        due = {question: row["due_at"] for (_, question), row in progress.items()}
        await until(lambda: _due(learner.phone), due.__eq__)
        # New content has ids of its own cell.
        (card,) = await make.publish(new.engine, user_id=LEARNER)
        assert all(NEW <= each < NEW + 10**12 for each in (card.topic_id, card.question_id))


async def _count(some: Sequence[object]) -> int:
    return len(some)


async def _due(phone: Outbox) -> dict[int, object]:
    return {each.question_id: each.due_at for each in phone.progress.all(LEARNER)}


async def _progress(engine: AsyncEngine) -> dict[tuple[int | None, int], dict[str, Any]]:
    return {key: row for key, row in (await make.progress(engine)).items() if key[0] == LEARNER}
