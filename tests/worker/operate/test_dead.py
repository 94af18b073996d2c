"""Dead letters: looking takes nothing, replaying loses nothing, discarding takes what was seen."""

import asyncio
import os
import signal
import sys
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from schemas.ingest_result import IngestResult
from schemas.words import RejectReason, Status
from tests import factories as make
from tests.broker_fixtures import VIEWER
from tests.factories import WRONG, at, batch, right, wrong
from tests.worker.operate.conftest import TRACEPARENT, Site
from worker.broker.dead_queue import open_dead_queue
from worker.domain.policy import Policy
from worker.errors import TopologyError, Unconfirmed
from worker.operate.dead.compare import differences
from worker.operate.dead.discard import discard
from worker.operate.dead.letters import Letter, Wanted, letters
from worker.operate.dead.rehearse import Rehearsal, rehearse
from worker.operate.dead.replay import replay
from worker.store.engine import transaction

pytestmark = pytest.mark.broker

EVERYTHING = Wanted()


def quietly(seen: int, total: int) -> None:
    """No progress bar."""


async def look(site: Site, wanted: Wanted = EVERYTHING) -> list[Letter]:
    async with open_dead_queue(site.settings) as queue:
        return [each async for each in letters(queue, site.settings, wanted, quietly)]


def nowhere(n: int = 0) -> AttemptBatch:
    """A batch that resolves to nothing."""
    return batch(right(f"nowhere-{n}"), uuid=UUID(int=n + 1))


# ------------------------------------------------------------------------------------- looking


async def test_a_letter_says_why_whose_and_since_when(site: Site) -> None:
    await site.park(nowhere())

    (letter,) = await look(site)

    assert letter.reason == RejectReason.NOTHING_RESOLVED
    assert "None of the 1 attempts" in letter.detail
    assert letter.envelope.viewer == VIEWER
    assert letter.envelope.routing_key == amqp.attempts_key(VIEWER)
    assert letter.client_session_uuid == UUID(int=1)
    assert letter.died_at is not None


async def test_looking_thirty_times_takes_nothing_and_changes_no_order(site: Site) -> None:
    # A quorum queue on 4.x drops a message at its 21st return, unless its limit is raised.
    await site.park(*(nowhere(n) for n in range(5)))
    first = [letter.client_session_uuid for letter in await look(site)]

    for _ in range(30):
        assert [letter.client_session_uuid for letter in await look(site)] == first

    assert await site.broker.depth(amqp.DEAD_QUEUE) == 5


async def test_the_next_look_finds_what_this_one_let_go_of(site: Site) -> None:
    # A discard looks twice, an erasure too: what the first look saw the second must not miss.
    await site.park(*(nowhere(n) for n in range(60)))
    for _ in range(20):
        async with open_dead_queue(site.settings) as queue:
            assert await queue.count() == 60
            for _ in range(40):
                assert await queue.next() is not None


async def test_filters_by_reason_viewer_uuid_and_age(site: Site) -> None:
    (question,) = await make.publish(site.engine)
    good = batch(right(question))
    other = good.model_copy(update={"attempts": (wrong(question),)})
    await site.park(nowhere(0))
    await site.park(nowhere(1), viewer="bob")
    async with site.working() as worker:
        await site.publish(good)
        await worker.changed.until(lambda: worker.counts["ingested"] == 1)
    await site.park(other)

    async def found(**wanted: object) -> int:
        return len(await look(site, Wanted(**wanted)))  # type: ignore[arg-type]

    await site.broker.until_depth(amqp.DEAD_QUEUE, 3)
    assert await found() == 3
    assert await found(reasons=frozenset({"uuid_reused"})) == 1
    assert await found(viewers=frozenset({"bob"})) == 1
    assert await found(viewers=frozenset({VIEWER}), reasons=frozenset({"uuid_reused"})) == 1
    assert await found(uuids=frozenset({UUID(int=1), good.client_session_uuid})) == 2
    assert await found(older_than=timedelta(minutes=1)) == 0
    assert await found(newer_than=timedelta(minutes=1)) == 3


async def test_what_the_broker_parked_is_delivery_limit_and_its_headers_are_not_believed(
    site: Site,
) -> None:
    forged = {
        amqp.VIEWER_HEADER: "eve",
        amqp.REASON_HEADER: "malformed",
        amqp.PARKED_AT_HEADER: "2001-01-01T00:00:00+00:00",
    }
    await site.kill_workers_with(nowhere(), headers=forged)

    (letter,) = await look(site)

    assert letter.reason == RejectReason.DELIVERY_LIMIT
    assert letter.envelope.viewer == VIEWER
    assert letter.envelope.routing_key == amqp.attempts_key(VIEWER)
    assert letter.died_at is not None and letter.died_at.year > 2001


async def test_a_dead_letter_of_the_broker_after_a_retry_keeps_its_viewer(site: Site) -> None:
    ours = {amqp.VIEWER_HEADER: "bob", amqp.ROUTING_KEY_HEADER: amqp.attempts_key("bob")}
    await site.kill_workers_with(
        nowhere(), exchange=amqp.RETURN_EXCHANGE, routing_key="", headers=ours
    )

    (letter,) = await look(site)

    assert letter.envelope.viewer == "bob"
    assert letter.envelope.routing_key == amqp.attempts_key("bob")


async def test_without_the_queue_there_is_one_sentence(site: Site) -> None:
    await site.broker.delete_queue(amqp.DEAD_QUEUE)
    with pytest.raises(TopologyError, match="study-ingest topology"):
        await look(site)


# ----------------------------------------------------------------------------------- replaying


async def test_a_replay_gives_the_message_as_it_was_with_its_viewer(site: Site) -> None:
    original = nowhere()
    await site.park(original)

    assert await replay(site.settings, Wanted(), quietly) == 1

    assert await site.broker.depth(amqp.DEAD_QUEUE) == 0
    message = await site.broker.take(amqp.ATTEMPTS_QUEUE)
    assert message.body == original.model_dump_json().encode()
    assert message.exchange == amqp.RETURN_EXCHANGE
    assert message.properties["type"] == amqp.ATTEMPT_BATCH_TYPE
    assert message.properties["delivery_mode"] == 2
    assert message.headers == {
        amqp.CLIENT_SESSION_UUID_HEADER: str(original.client_session_uuid),
        amqp.TRACEPARENT_HEADER: TRACEPARENT,
        "app": "notes",
        amqp.VIEWER_HEADER: VIEWER,
        amqp.ROUTING_KEY_HEADER: amqp.attempts_key(VIEWER),
        amqp.RETRIES_HEADER: 0,
    }


async def test_after_the_cause_is_fixed_a_replay_ingests_everything_and_sends_results(
    site: Site,
) -> None:
    (question,) = await make.publish(site.engine)
    await make.withdraw(site.engine, question)
    batches = [batch(right(question, at(n))) for n in range(3)]
    await site.park(*batches[:2])
    await site.park(batches[2], viewer="bob")
    results = {viewer: await _results(site, viewer) for viewer in (VIEWER, "bob")}

    await make.execute(site.engine, "UPDATE published SET deleted = false")
    assert await replay(site.settings, Wanted(), quietly) == 3
    async with site.working() as worker:
        await worker.changed.until(lambda: worker.counts["ingested"] == 3)
        await _told_ingested(site, results[VIEWER], 2)
        await _told_ingested(site, results["bob"], 1)

    assert await site.broker.depth(amqp.DEAD_QUEUE) == 0
    (row,) = (await make.progress(site.engine)).values()
    assert row["attempts_count"] == 3


async def _results(site: Site, viewer: str) -> str:
    channel = await site.broker.channel()
    queue = await channel.declare_queue(amqp.results_queue(viewer), durable=True)
    await queue.bind(amqp.RESULTS_EXCHANGE, amqp.result_key(viewer))
    return queue.name


async def _told_ingested(site: Site, queue: str, count: int) -> None:
    """Waits for so many results of an ingest; those of the rejections may come before."""
    while count:
        told = IngestResult.model_validate_json((await site.broker.take(queue)).body)
        count -= told.status is Status.INGESTED


async def test_what_is_parked_again_meanwhile_is_not_replayed_twice(site: Site) -> None:
    await site.park(*(nowhere(n) for n in range(4)))
    async with site.working() as worker:
        assert await replay(site.settings, Wanted(), quietly) == 4
        await worker.changed.until(lambda: worker.counts["rejected"] == 4)
        await site.broker.until_depth(amqp.DEAD_QUEUE, 4)
    assert worker.counts["rejected"] == 4


async def test_a_filter_and_a_limit_leave_the_rest(site: Site) -> None:
    await site.park(*(nowhere(n) for n in range(4)))
    wanted = Wanted(uuids=frozenset({UUID(int=2), UUID(int=3), UUID(int=4)}))

    assert await replay(site.settings, wanted, quietly, limit=2) == 2

    assert await site.broker.depth(amqp.DEAD_QUEUE) == 2
    # In which order the broker takes back what was looked at is its own affair.
    left = {each.client_session_uuid for each in await look(site)}
    assert left == {UUID(int=1), UUID(int=4)}
    assert await site.broker.depth(amqp.ATTEMPTS_QUEUE) == 2


async def test_where_no_queue_takes_the_copy_the_letter_stays(site: Site) -> None:
    await site.park(nowhere())
    channel = await site.broker.channel()
    queue = await channel.get_queue(amqp.ATTEMPTS_QUEUE, ensure=False)
    await queue.unbind(amqp.RETURN_EXCHANGE, "")

    with pytest.raises(Unconfirmed):
        await replay(site.settings, Wanted(), quietly)

    await site.broker.until_depth(amqp.DEAD_QUEUE, 1)


KILLED = """
import asyncio, os, signal, sys
from worker.broker.publisher import Publisher
from worker.operate.dead import replay
from worker.settings import load_settings

left = int(sys.argv[1])
send = Publisher.send

async def send_and_die(*args, **kwargs):
    global left
    await send(*args, **kwargs)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

Publisher.send = send_and_die
replay._AT_ONCE = 10
asyncio.run(replay.replay(load_settings(), replay.Wanted(), lambda seen, total: None))
"""


@pytest.mark.parametrize("copies", [1, 25])
async def test_killed_between_copy_and_ack_nothing_is_lost(site: Site, copies: int) -> None:
    count = 40
    await site.park(*(nowhere(n) for n in range(count)))

    killed = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        KILLED,
        str(copies),
        env=os.environ
        | {
            "INGEST_AMQP_URL": site.settings.amqp_url.get_secret_value(),
            "INGEST_DATABASE_URL": site.settings.database_url.get_secret_value(),
        },
    )
    assert await killed.wait() == -signal.SIGKILL

    # The broker notices the death, and puts back what was in hand.
    replayed = await _drained(site, amqp.ATTEMPTS_QUEUE)
    assert len(replayed) >= copies
    dead = await _drained(site, amqp.DEAD_QUEUE, count - (len(replayed) // 10) * 10)
    everything = {nowhere(n).model_dump_json().encode() for n in range(count)}
    assert {*replayed, *dead} == everything


async def _drained(site: Site, queue: str, at_least: int = 1) -> list[bytes]:
    """All that is in the queue, once the broker has put back what was in dead hands."""
    bodies: list[bytes] = []
    while len(bodies) < at_least or await site.broker.depth(queue):
        bodies.append((await site.broker.take(queue)).body)
    return bodies


# ----------------------------------------------------------------------------------- rehearsing


async def _rehearsed(site: Site) -> Rehearsal:
    await site.broker.until_depth(amqp.DEAD_QUEUE, 1)
    (letter,) = await look(site)
    incoming = letter.replayed(site.settings)
    return await rehearse(site.engine, incoming, Policy())


async def test_a_dry_run_shows_what_a_replay_would_write_and_writes_nothing(site: Site) -> None:
    (question,) = await make.publish(site.engine, user_id=7)
    async with site.working() as worker:
        await site.publish(batch(right(question, at(0))))
        await worker.changed.until(lambda: worker.counts["ingested"] == 1)
    await make.withdraw(site.engine, question)
    await site.park(batch(wrong(question, at(1)), right("nowhere")))
    before = await make.contents(site.engine)

    assert (await _rehearsed(site)).reason == RejectReason.NOTHING_RESOLVED
    await make.execute(site.engine, "UPDATE published SET deleted = false")
    shown = await _rehearsed(site)

    assert shown.disposition == "ingested"
    ((_, user_id, topic_id, *counts),) = shown.sessions
    assert (user_id, topic_id, counts) == (7, question.topic_id, [0, 1, 0])
    (attempt,) = shown.attempts
    assert (attempt.question_id, attempt.selected_choice) == (question.question_id, WRONG)
    (change,) = shown.progress
    assert change.before is not None and change.after is not None
    assert change.before.progress.attempts_count == 1
    assert change.after.progress.attempts_count == 2
    assert [each.routing_key for each in shown.messages] == [
        amqp.EXPLANATION_REQUESTED,
        amqp.REVIEW_REQUESTED,
        amqp.result_key(VIEWER),
    ]
    assert await make.contents(site.engine) == before
    await site.broker.until_depth(amqp.DEAD_QUEUE, 1)


async def test_a_dry_run_shows_a_duplicate_as_one(site: Site) -> None:
    (question,) = await make.publish(site.engine)
    await make.withdraw(site.engine, question)
    again = batch(right(question))
    await site.park(again)
    await make.execute(site.engine, "UPDATE published SET deleted = false")
    async with site.working() as worker:
        await site.publish(again)
        await worker.changed.until(lambda: worker.counts["ingested"] == 1)

    shown = await _rehearsed(site)

    assert (shown.disposition, shown.sessions, shown.progress) == ("duplicate", (), ())
    assert Status.ALREADY_INGESTED in shown.messages[0].body


async def test_a_dry_run_survives_what_still_fails(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise ZeroDivisionError("not mended")

    await site.park(nowhere())
    monkeypatch.setattr("worker.operate.dead.rehearse.transact", fails)
    shown = await _rehearsed(site)
    assert (shown.disposition, shown.reason, shown.detail) == (
        "failed",
        "ZeroDivisionError",
        "not mended",
    )


# ----------------------------------------------------------------------------------- comparing


async def test_a_reused_uuid_is_shown_with_each_difference(site: Site) -> None:
    first, second = await make.publish(site.engine, 2)
    uuid = uuid4()
    was = batch(right(first, at(0)), right(second, at(1)), right("nowhere"), uuid=uuid)
    now = batch(wrong(first, at(0)), right(first, at(2)), right("else"), right(first), uuid=uuid)
    async with site.working() as worker:
        await site.publish(was)
        await worker.changed.until(lambda: worker.counts["ingested"] == 1)
    await site.park(now)

    (letter,) = await look(site)
    content = letter.batch()
    assert letter.reason == RejectReason.UUID_REUSED and isinstance(content, AttemptBatch)
    async with transaction(site.engine) as connection:
        found = await differences(connection, content)
        same = await differences(connection, was)

    assert same == []
    assert found == [
        (0, "selected_choice", "1", "2"),
        (1, "question", f"question {second.question_id}", f"question {first.question_id}"),
        (1, "answered_at", at(1).isoformat(), at(2).isoformat()),
        (2, "question_pub_id", "nowhere", "else"),
        (3, "attempt", "none", f"on {first.pub_id}"),
    ]


# ---------------------------------------------------------------------------------- discarding


async def test_a_discard_takes_what_was_seen_and_no_more(site: Site) -> None:
    await site.park(nowhere(0), nowhere(1))
    seen = {each.key for each in await look(site, Wanted(uuids=frozenset({UUID(int=2)})))}
    # The same batch once more, after the look.
    await site.park(nowhere(1))

    assert await discard(site.settings, seen, quietly) == 1
    assert await site.broker.depth(amqp.DEAD_QUEUE) == 2
    assert [each.client_session_uuid for each in await look(site)] == [UUID(int=1), UUID(int=2)]
