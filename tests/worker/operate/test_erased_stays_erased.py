"""What an erased user answered before does not come back, wherever it waited meanwhile."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

import study_viewer
from schemas import amqp
from schemas.attempt_batch import Attempt, AttemptBatch
from schemas.words import Status
from study_viewer import Outbox, Relay
from tests import factories as make
from tests.broker_fixtures import VIEWER, Broker, make_settings, until
from tests.factories import Published, batch, no_answer, right, sent, told, wrong
from tests.whole_worker import working
from tests.worker.operate.commands import invoke
from tests.worker.operate.conftest import Site
from worker.broker import topology
from worker.broker.management import Management
from worker.domain.dispositions import Disposition, Duplicate, Ingested, Rejected
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.operate.archive.json_lines import export, import_lines
from worker.operate.erase import Survey, erase
from worker.operate.repair import verify
from worker.settings import Settings
from worker.store.audit import By

pytestmark = pytest.mark.broker

BY = By("ops", "asked to be forgotten")
DAY = timedelta(days=1)
USER = 7


@pytest.fixture
async def settings(bare_broker: Broker, database_url: str) -> Settings:
    """A set-up broker, whose waiting queues do not make anybody wait."""
    settings = make_settings(
        bare_broker.settings.amqp_url.get_secret_value(),
        database_url=database_url,
        newer_version_delay=0.3,
    )
    async with Management(settings) as management:
        await topology.apply(management, settings)
    return settings


@pytest.fixture
def ingest(engine: AsyncEngine) -> Ingest:
    return Ingest(engine, Policy())


async def _erase(engine: AsyncEngine, user_id: int = USER) -> datetime:
    """Erases, having seen no dead letter: what is parked just now is not seen either."""
    await erase(engine, user_id, Survey(0, 0), BY)
    (row,) = await make.rows(engine, "SELECT erased_at FROM ingest_erasures")
    erased_at: datetime = row["erased_at"]
    return erased_at


async def _one(ingest: Ingest, *attempts: Attempt, **more: Any) -> Disposition:
    (disposition,) = await ingest([sent(*attempts, **more)])
    assert isinstance(disposition, Disposition)
    return disposition


async def _left(engine: AsyncEngine) -> tuple[int, int]:
    """Attempts and progress."""
    return (
        await make.count(engine, "study_question_attempts"),
        await make.count(engine, "study_question_progress"),
    )


BEFORE: dict[str, Any] = {
    "right": lambda now: now - DAY,
    "a_year_ago": lambda now: now - 365 * DAY,
    "null": lambda now: None,
    "unreadable": lambda now: "noon",
    "1970": lambda now: "1970-01-01T00:00:00Z",
    "three_years_ahead": lambda now: now + 3 * 365 * DAY,
}


@pytest.mark.parametrize("withdrawn", [False, True], ids=["published", "withdrawn"])
@pytest.mark.parametrize("time", BEFORE)
async def test_a_batch_from_before_is_acked_and_leaves_its_uuid_alone(
    engine: AsyncEngine, ingest: Ingest, settings: Settings, time: str, withdrawn: bool
) -> None:
    (question,) = await make.publish(engine, user_id=USER)
    at = BEFORE[time](datetime.now(UTC))
    await _erase(engine)
    if withdrawn:  # as whoever erases a user may do
        await make.withdraw(engine, question)
    delivery = sent(right(question, at), no_answer(question, at), right("unknown", at))

    assert await ingest([delivery]) == [Duplicate()]
    assert await ingest([delivery]) == [Duplicate()]

    assert await _left(engine) == (0, 0)
    (row,) = await make.rows(engine, "SELECT * FROM ingest_inbox")
    assert row.pop("client_session_uuid") == delivery.client_session_uuid
    assert {name for name, value in row.items() if value is not None} == {
        "erased_at",
        "received_at",
    }
    results = await told(engine)
    assert [each.status for each in results] == [Status.ALREADY_INGESTED] * 2
    assert all(each.erased_at is not None and not each.skipped for each in results)


async def test_of_a_batch_half_before_and_half_after_the_second_half_counts(
    engine: AsyncEngine, ingest: Ingest, settings: Settings
) -> None:
    first, second = await make.publish(engine, 2, user_id=USER)
    erased_at = await _erase(engine)
    after = erased_at + timedelta(microseconds=1)
    disposition = await _one(
        ingest,
        *(right(first, erased_at - DAY), wrong(first, None), right(second, after)),
        *(wrong(second, erased_at - timedelta(microseconds=1)), right(second, erased_at)),
    )
    assert isinstance(disposition, Ingested)
    stored = await make.rows(engine, "SELECT position FROM study_question_attempts ORDER BY 1")
    assert [row["position"] for row in stored] == [2, 4]
    (result,) = await told(engine)
    assert result.erased_at == erased_at
    assert [(each.position, each.reason) for each in result.skipped] == [
        (position, "erased") for position in (0, 1, 3)
    ]
    assert await verify(engine, USER, Policy()) == []


async def test_answers_from_after_it_begin_a_new_history_and_others_are_not_affected(
    engine: AsyncEngine, ingest: Ingest, settings: Settings
) -> None:
    (mine,), (yours,) = await make.publish(engine, user_id=USER), await make.publish(engine)
    await _one(ingest, right(mine))
    await _erase(engine)
    assert isinstance(await _one(ingest, right(yours, None)), Ingested)
    assert isinstance(await _one(ingest, right(mine, datetime.now(UTC))), Ingested)
    progress = await make.progress(engine)
    assert progress[USER, mine.question_id]["attempts_count"] == 1


async def test_a_time_that_says_nothing_counts_again_when_the_memory_is_over(
    engine: AsyncEngine, settings: Settings
) -> None:
    (question,) = await make.publish(engine, user_id=USER)
    await _erase(engine)
    forgetful = Ingest(engine, Policy(erase_memory=timedelta()))
    assert isinstance(await _one(forgetful, right(question, None)), Ingested)
    # A credible time is judged by itself, for ever.
    assert await _one(forgetful, right(question, datetime.now(UTC) - DAY)) == Duplicate()


async def test_a_rejected_batch_of_somebody_else_is_rejected_as_ever(
    engine: AsyncEngine, ingest: Ingest, settings: Settings
) -> None:
    (mine,), (yours,) = await make.publish(engine, user_id=USER), await make.publish(engine)
    await _erase(engine)
    await make.withdraw(engine, yours)
    for attempts in ([right(yours, None)], [right("unknown")], [right(mine), right(yours)]):
        disposition = await _one(ingest, *attempts)
        assert isinstance(disposition, Rejected) or attempts[0].question_pub_id == mine.pub_id


async def test_every_viewer_that_sent_something_is_told(
    engine: AsyncEngine, ingest: Ingest, settings: Settings
) -> None:
    (question,) = await make.publish(engine, user_id=USER)
    deliveries = [sent(right(question), viewer=viewer) for viewer in ("phone", "tablet", None)]
    await ingest(deliveries)
    erased_at = await _erase(engine)
    for viewer, delivery in zip(("phone", "tablet"), deliveries, strict=False):
        (result,) = await told(engine, viewer)
        assert result.client_session_uuid == delivery.client_session_uuid
        assert (result.status, result.erased_at) == (Status.ALREADY_INGESTED, erased_at)
        assert (result.sessions, result.due) == ((), ())
    assert await make.count(engine, "outbox") == 2


async def test_an_export_takes_the_erasure_along(
    engine: AsyncEngine, ingest: Ingest, settings: Settings
) -> None:
    (question,) = await make.publish(engine, user_id=USER)
    erased_at = await _erase(engine)
    lines = [line async for line in export(engine, None)]
    await make.execute(engine, "DELETE FROM ingest_erasures")
    await import_lines(engine, lines, Policy(), BY)
    assert await make.rows(engine, "SELECT user_id, erased_at FROM ingest_erasures") == [
        {"user_id": USER, "erased_at": erased_at}
    ]
    assert await _one(ingest, right(question)) == Duplicate()


def _batches(question: Published, now: datetime) -> list[AttemptBatch]:
    """One with each time, and one with two of them."""
    made = [batch(right(question, time(now))) for time in BEFORE.values()]
    return [*made, batch(right(question, now - DAY), wrong(question, "1970-01-01T00:00:00Z"))]


WAITING = (f"{amqp.RETRY_QUEUE_PREFIX}100", amqp.NEWER_QUEUE)


async def _put(broker: Broker, queue: str, *made: AttemptBatch) -> None:
    """As a worker puts batches there: with what it trusts when they return."""
    channel = await broker.channel()
    for each in made:
        message = aio_pika.Message(
            each.model_dump_json().encode(),
            type=amqp.ATTEMPT_BATCH_TYPE,
            message_id=str(uuid4()),
            headers={
                amqp.VIEWER_HEADER: VIEWER,
                amqp.ROUTING_KEY_HEADER: amqp.attempts_key(VIEWER),
                amqp.RETRIES_HEADER: 1,
            },
        )
        await channel.default_exchange.publish(message, queue)


def _on_a_phone(made: AttemptBatch) -> study_viewer.AttemptBatch:
    return study_viewer.AttemptBatch.model_validate_json(made.model_dump_json())


async def test_none_comes_back_from_the_queue_from_retry_from_newer_or_from_a_dead_letter(
    bare_broker: Broker, engine: AsyncEngine, settings: Settings
) -> None:
    site = Site(bare_broker, engine, settings)
    (question,) = await make.publish(engine, user_id=USER)
    now = datetime.now(UTC)
    await make.withdraw(engine, question)
    await site.park(*_batches(question, now))
    await make.execute(engine, "UPDATE published SET deleted = false")

    await site.publish(*_batches(question, now))
    for queue in WAITING:
        await _put(bare_broker, queue, *_batches(question, now))
    await _erase(engine)

    batches = 4 * len(_batches(question, now))
    async with site.working():
        # The dead letters too: the command was told of none.
        assert (await invoke(site, "dead", "replay")).exit_code == 0
        await until(lambda: make.count(engine, "ingest_inbox"), batches.__eq__)
    assert await _left(engine) == (0, 0)
    rows = await make.rows(engine, "SELECT * FROM ingest_inbox WHERE content_digest IS NOT NULL")
    assert rows == []


@pytest.mark.parametrize("time", BEFORE)
async def test_of_half_and_half_only_the_second_half_comes_from_wherever_it_waited(
    bare_broker: Broker, engine: AsyncEngine, settings: Settings, time: str
) -> None:
    """From the queue, from retry, from newer, and from a dead letter."""
    site = Site(bare_broker, engine, settings)
    before, after = await make.publish(engine, 2, user_id=USER)
    erased_at = await _erase(engine)

    def half_and_half() -> AttemptBatch:
        # A time that says nothing must not take that of its neighbor for itself.
        return batch(
            wrong(before, BEFORE[time](erased_at)),
            right(after, erased_at + timedelta(microseconds=1)),
        )

    for question in (before, after):
        await make.withdraw(engine, question)
    await site.park(half_and_half())
    await make.execute(engine, "UPDATE published SET deleted = false")
    await site.publish(half_and_half())
    for queue in WAITING:
        await _put(bare_broker, queue, half_and_half())

    async with site.working():
        assert (await invoke(site, "dead", "replay")).exit_code == 0
        await until(lambda: make.count(engine, "study_question_attempts"), (4).__eq__)
    rows = await make.rows(engine, "SELECT position, outcome FROM study_question_attempts")
    assert [(row["position"], row["outcome"]) for row in rows] == [(1, "correct")] * 4
    assert [*await make.progress(engine)] == [(USER, after.question_id)]
    assert await site.letters() == 0
    assert await make.count(engine, "ingest_inbox") == 4
    assert await verify(engine, USER, Policy()) == []


async def test_none_comes_back_from_a_phone_and_the_phone_keeps_none(
    bare_broker: Broker, engine: AsyncEngine, settings: Settings, tmp_path: Path
) -> None:
    (question,) = await make.publish(engine, user_id=USER)
    made = _batches(question, datetime.now(UTC))
    url = settings.amqp_url.get_secret_value()
    with Outbox(tmp_path / "phone.db") as outbox:
        with closing(sqlite3.connect(tmp_path / "phone.db")) as file, file:
            for each in made:
                if each.attempts[0].answered_at != "noon":  # which the library refuses
                    outbox.record(file, _on_a_phone(each))
        first, *others = outbox.pending()
        async with Relay(outbox, url, VIEWER) as relay, working(settings, engine):
            assert not (await relay.until_settled(first.client_session_uuid)).erased
            for entry in others:
                await relay.until_settled(entry.client_session_uuid)
            await _erase(engine)
            relay.wake()
            await relay.until(lambda: all(entry.erased for entry in outbox.settled()))
        assert {entry.body for entry in outbox.settled()} == {b""}
    assert await _left(engine) == (0, 0)


async def test_what_a_phone_recorded_before_and_sends_after_it_is_gone_there_as_well(
    bare_broker: Broker, engine: AsyncEngine, settings: Settings, tmp_path: Path
) -> None:
    (question,) = await make.publish(engine, user_id=USER)
    erased_at = await _erase(engine)
    half = batch(right(question, erased_at - DAY), wrong(question, datetime.now(UTC)))
    whole = batch(right(question, erased_at - DAY))
    url = settings.amqp_url.get_secret_value()
    with Outbox(tmp_path / "phone.db") as outbox:
        with closing(sqlite3.connect(tmp_path / "phone.db")) as file, file:
            outbox.record(file, _on_a_phone(whole))
            outbox.record(file, _on_a_phone(half))
        async with Relay(outbox, url, VIEWER) as relay, working(settings, engine):
            assert (await relay.until_settled(whole.client_session_uuid)).erased
            entry = await relay.until_settled(half.client_session_uuid)
        assert entry.batch.attempts == _on_a_phone(half).attempts[1:]
        with closing(sqlite3.connect(tmp_path / "phone.db")) as file, file:
            assert outbox.record(file, _on_a_phone(whole)) is False
    assert await _left(engine) == (1, 1)
