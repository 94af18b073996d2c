"""A batch of a newer major version waits for a worker that knows it, and is not lost."""

from functools import partial
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.words import RejectReason
from tests import factories
from tests.broker_fixtures import PATIENCE, VIEWER, Broker, until
from tests.whole_worker import working
from worker.broker import topology
from worker.broker.management import Management
from worker.consume import intake

pytestmark = pytest.mark.broker

NEWER_TYPE = amqp.ATTEMPT_BATCH_TYPE.replace("v1", "v2")
NEWER_KEY = f"attempts.v2.{VIEWER}"


@pytest.mark.parametrize(
    ("key", "message_type"),
    [
        pytest.param(amqp.attempts_key(VIEWER), NEWER_TYPE, id="by-type"),
        pytest.param(NEWER_KEY, None, id="by-key"),
        pytest.param(NEWER_KEY, f"{NEWER_TYPE}.3", id="by-both"),
    ],
)
async def test_an_older_worker_lets_it_wait_and_a_newer_one_takes_it_by_itself(
    bare_broker: Broker,
    management: Management,
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    message_type: str | None,
) -> None:
    settings = bare_broker.settings.model_copy(update={"newer_version_delay": 0.3})
    await topology.apply(management, settings)
    (question,) = await factories.publish(engine)
    batch = factories.batch(factories.right(question))
    more: dict[str, Any] = {} if message_type is None else {"type": message_type}

    async with working(settings, engine) as older:
        await bare_broker.publish(batch.model_dump_json(), routing_key=key, **more)
        # It comes back, and waits again: no try is counted, and nobody is told a rejection.
        assert await older.changed.until(lambda: older.counts["postponed"] >= 3, PATIENCE)
        assert set(older.counts) == {"postponed"}
    assert await factories.rows(engine, "SELECT * FROM ingest_inbox") == []

    monkeypatch.setattr(intake, "_MAJOR", 2)
    async with working(settings, engine) as newer:
        assert await newer.changed.until(lambda: newer.counts["ingested"] == 1, PATIENCE)
    (row,) = await factories.rows(engine, "SELECT client_session_uuid, viewer FROM ingest_inbox")
    assert (row["client_session_uuid"], row["viewer"]) == (batch.client_session_uuid, VIEWER)
    for queue in (amqp.NEWER_QUEUE, amqp.ATTEMPTS_QUEUE, amqp.DEAD_QUEUE):
        assert await until(partial(bare_broker.depth, queue), (0).__eq__) == 0


async def _reasons(engine: AsyncEngine) -> list[str]:
    rows = await factories.rows(engine, "SELECT reason FROM ingest_dead_letters")
    return [row["reason"] for row in rows]


async def test_what_is_no_version_at_all_is_refused(broker: Broker, engine: AsyncEngine) -> None:
    async with working(broker.settings, engine):
        for nonsense in ("study.attempt_batch.v0", "study.attempt_batch.v2x", "something.v2"):
            await broker.publish("{}", type=nonsense)
        reasons = await until(lambda: _reasons(engine), lambda found: len(found) == 3)
    assert {*reasons} == {RejectReason.UNSUPPORTED_VERSION}


async def test_a_newer_batch_without_a_known_sender_is_rejected(
    broker: Broker, engine: AsyncEngine
) -> None:
    settings = broker.settings.model_copy(update={"require_user_id": True})
    async with working(settings, engine):
        await broker.publish("{}", type=NEWER_TYPE)
        reasons = await until(lambda: _reasons(engine), bool)
    assert reasons == [RejectReason.UNIDENTIFIED_PUBLISHER]


@pytest.mark.parametrize("minor", ["", ".0", ".1", ".9999"])
async def test_every_minor_version_is_taken(
    broker: Broker, engine: AsyncEngine, minor: str
) -> None:
    (question,) = await factories.publish(engine)
    batch = factories.batch(factories.right(question))
    async with working(broker.settings, engine) as worker:
        await broker.publish(batch.model_dump_json(), type=f"{amqp.ATTEMPT_BATCH_TYPE}{minor}")
        assert await worker.changed.until(lambda: worker.counts["ingested"] == 1, PATIENCE)
