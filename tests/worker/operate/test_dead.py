"""Dead letters in the database: looked at, replayed, rehearsed, compared and discarded."""

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from schemas.followups import EXPLANATION, KINDS, REVIEW
from schemas.ingest_result import IngestResult
from schemas.words import RejectReason, Status
from tests import factories as make
from tests.broker_fixtures import VIEWER, until
from tests.factories import WRONG, at, batch, right, wrong
from tests.worker.operate.conftest import TRACEPARENT, Site
from worker.broker.publisher import Publisher
from worker.domain.policy import Policy
from worker.errors import Unconfirmed
from worker.ingest.transaction import Ingest
from worker.operate.dead import replay as replaying
from worker.operate.dead.compare import differences
from worker.operate.dead.discard import discard
from worker.operate.dead.letters import batch_in, letters, properties_of
from worker.operate.dead.rehearse import Rehearsal, rehearse, replayed
from worker.relay.replays import Replays
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate import dead as stored
from worker.store.operate.dead import Asked, Letter, Wanted

pytestmark = pytest.mark.broker

EVERYTHING = Wanted()
BY = By("ops", "a test")


def quietly(seen: int, total: int) -> None:
    """No progress bar."""


async def look(site: Site, wanted: Wanted = EVERYTHING) -> list[Letter]:
    return [each async for each in letters(site.engine, wanted)]


async def replay(site: Site, wanted: Wanted = EVERYTHING, limit: int | None = None) -> list[Asked]:
    """Asks for the replay of letters, as the command does."""
    async with transaction(site.engine) as connection:
        chosen = await stored.ids(connection, wanted, replayable=True, limit=limit)
    return await replaying.replay(site.engine, chosen, BY, quietly)


async def leave(site: Site) -> int:
    """Has a relay publish what was asked for; returns how many letters."""
    async with Publisher(site.settings, "replays") as publisher:
        return await Replays(site.engine, publisher, site.settings).replay()


def nowhere(n: int = 0) -> AttemptBatch:
    """A batch that resolves to nothing."""
    return batch(right(f"nowhere-{n}"), uuid=UUID(int=n + 1))


# ------------------------------------------------------------------------------------- looking


async def test_a_letter_says_why_whose_and_since_when(site: Site) -> None:
    await site.park(nowhere())

    (letter,) = await look(site)

    brief = letter.brief
    assert brief.reason == RejectReason.NOTHING_RESOLVED
    assert "None of the 1 attempts" in brief.detail
    assert brief.viewer == VIEWER
    assert brief.routing_key.decode() == amqp.attempts_key(VIEWER)
    assert brief.client_session_uuid == UUID(int=1)
    assert letter.body == nowhere().model_dump_json().encode()
    assert properties_of(letter)["headers"]["app"] == "notes"


async def test_letters_come_oldest_first_and_in_groups(site: Site) -> None:
    await site.park(*(nowhere(n) for n in range(5)))
    await site.park(nowhere(5), viewer="bob")
    await make.execute(
        site.engine, "UPDATE ingest_dead_letters SET died_at = now() - id * interval '1 hour'"
    )
    ids = [letter.brief.id for letter in await look(site)]
    assert ids == sorted(ids, reverse=True)

    async with transaction(site.engine) as connection:
        briefs = await stored.briefs(connection, EVERYTHING, 2)
        groups = await stored.groups(connection, EVERYTHING, 10)
        overview = await stored.overview(connection)
    assert [brief.id for brief in briefs] == ids[:2]
    assert [(group.viewer, group.letters, group.example) for group in groups] == [
        (VIEWER, 5, ids[-1]),
        ("bob", 1, ids[0]),
    ]
    assert (overview.by_reason, overview.leaving) == ({"nothing_resolved": 6}, 0)
    assert overview.oldest == briefs[0].died_at


async def test_filters_by_id_reason_viewer_uuid_and_age(site: Site) -> None:
    (question,) = await make.publish(site.engine)
    good = batch(right(question))
    other = good.model_copy(update={"attempts": (wrong(question),)})
    await site.park(nowhere(0))
    await site.park(nowhere(1), viewer="bob")
    async with site.working() as worker:
        await site.publish(good)
        await worker.changed.until(lambda: worker.counts["ingested"] == 1)
    await site.park(other)
    first, *_ = await look(site)

    async def found(**wanted: object) -> int:
        return len(await look(site, Wanted(**wanted)))  # type: ignore[arg-type]

    assert await found() == 3
    assert await found(ids=frozenset({first.brief.id, 10**9})) == 1
    assert await found(reasons=frozenset({"uuid_reused"})) == 1
    assert await found(viewers=frozenset({"bob"})) == 1
    assert await found(viewers=frozenset({VIEWER}), reasons=frozenset({"uuid_reused"})) == 1
    assert await found(uuids=frozenset({UUID(int=1), good.client_session_uuid})) == 2
    assert await found(older_than=timedelta(minutes=1)) == 0
    assert await found(newer_than=timedelta(minutes=1)) == 3


# ----------------------------------------------------------------------------------- replaying


async def test_a_replay_gives_the_batch_with_its_viewer_and_no_try_counted(site: Site) -> None:
    original = nowhere()
    await site.park(original)

    (asked,) = await replay(site)
    assert len(await look(site)) == 1  # until it has left
    assert await leave(site) == 1

    assert await look(site) == []
    message = await site.broker.take(amqp.ATTEMPTS_QUEUE)
    assert message.body == original.model_dump_json().encode()
    assert message.exchange == amqp.RETURN_EXCHANGE
    assert message.properties["type"] == amqp.ATTEMPT_BATCH_TYPE
    assert message.properties["delivery_mode"] == 2
    assert message.properties["message_id"] == str(asked.message_id)
    assert message.headers == {
        amqp.CLIENT_SESSION_UUID_HEADER: str(original.client_session_uuid),
        amqp.TRACEPARENT_HEADER: TRACEPARENT,
        amqp.VIEWER_HEADER: VIEWER,
        amqp.ROUTING_KEY_HEADER: amqp.attempts_key(VIEWER),
        amqp.RETRIES_HEADER: 0,
        amqp.REPLAY_HEADER: str(asked.message_id),
    }


async def test_after_a_fix_everything_is_ingested_and_told_to_its_viewer(site: Site) -> None:
    (question,) = await make.publish(site.engine)
    await make.withdraw(site.engine, question)
    batches = [batch(right(question, at(n))) for n in range(3)]
    await site.park(*batches[:2])
    await site.park(batches[2], viewer="bob")
    results = {viewer: await _results(site, viewer) for viewer in (VIEWER, "bob")}

    await make.execute(site.engine, "UPDATE published SET deleted = false")
    asked = await replay(site)
    async with site.working():
        outcomes = await replaying.outcomes(site.engine, asked, quietly, 30)
        await _told_ingested(site, results[VIEWER], 2)
        await _told_ingested(site, results["bob"], 1)

    assert outcomes == {"ingested": 3}
    assert await look(site) == []
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


async def test_what_still_cannot_be_ingested_becomes_a_letter_again(site: Site) -> None:
    await site.park(*(nowhere(n) for n in range(4)))
    before = {letter.brief.id for letter in await look(site)}
    asked = await replay(site)
    async with site.working() as worker:
        outcomes = await replaying.outcomes(site.engine, asked, quietly, 30)

    assert outcomes == {"rejected: nothing_resolved": 4}
    assert worker.counts["rejected"] == 4
    after = await look(site)
    assert len(after) == 4 and not before & {letter.brief.id for letter in after}
    assert {letter.brief.viewer for letter in after} == {VIEWER}


async def test_a_reused_uuid_counts_as_rejected_again_and_never_as_ingested(site: Site) -> None:
    (question,) = await make.publish(site.engine)
    good = batch(right(question))
    await Ingest(site.engine, Policy())([make.incoming(good, VIEWER)])
    await site.park(good.model_copy(update={"attempts": (wrong(question),)}))
    asked = await replay(site)

    async def outcomes() -> dict[str, int]:
        async with transaction(site.engine) as connection:
            return await stored.outcomes(connection, asked)

    assert await outcomes() == {"leaving": 1}
    await leave(site)
    assert await outcomes() == {"in the queue": 1}
    async with site.working():
        await until(outcomes, {"rejected: uuid_reused": 1}.__eq__)


async def test_a_filter_and_a_limit_leave_the_rest(site: Site) -> None:
    await site.park(*(nowhere(n) for n in range(4)))
    wanted = Wanted(uuids=frozenset({UUID(int=2), UUID(int=3), UUID(int=4)}))
    oldest = [each.brief.client_session_uuid for each in await look(site, wanted)][:2]

    assert len(await replay(site, wanted, limit=2)) == 2
    assert await leave(site) == 2

    left = {each.brief.client_session_uuid for each in await look(site)}
    assert left == {UUID(int=n) for n in range(1, 5)} - {*oldest}
    assert await site.broker.depth(amqp.ATTEMPTS_QUEUE) == 2


async def test_what_is_being_replayed_is_not_asked_for_twice(site: Site) -> None:
    await site.park(nowhere(0), nowhere(1))
    assert len(await replay(site, limit=1)) == 1
    assert len(await replay(site)) == 1
    assert await replay(site) == []
    assert await leave(site) == 2


async def test_a_letter_of_which_only_the_beginning_is_kept_stays(site: Site) -> None:
    await site.park(nowhere(0), nowhere(1))
    await make.execute(
        site.engine,
        "UPDATE ingest_dead_letters SET body = substring(body FOR 5), body_sha256 = sha256(body)"
        " WHERE id = (SELECT min(id) FROM ingest_dead_letters)",
    )
    assert len(await replay(site)) == 1
    assert await leave(site) == 1
    (letter,) = await look(site)
    assert not letter.brief.is_whole


async def test_where_no_queue_takes_it_the_letter_stays(site: Site) -> None:
    await site.park(nowhere())
    channel = await site.broker.channel()
    queue = await channel.get_queue(amqp.ATTEMPTS_QUEUE, ensure=False)
    await queue.unbind(amqp.RETURN_EXCHANGE, "")

    await replay(site)
    with pytest.raises(Unconfirmed):
        await leave(site)

    (letter,) = await look(site)
    assert letter.brief.is_leaving
    await queue.bind(amqp.RETURN_EXCHANGE, "")
    assert await leave(site) == 1


async def test_refused_jobs_do_not_hold_a_replay_up(site: Site) -> None:
    await site.park(nowhere())
    for kind in KINDS:
        await site.broker.delete_queue(amqp.followups_queue(kind.routing_key))
    (question,) = await make.publish(site.engine)
    async with site.working() as worker:
        await site.publish(batch(wrong(question)))
        await worker.changed.until(lambda: worker.counts["ingested"] == 1)
        asked = await replay(site)
        outcomes = await replaying.outcomes(site.engine, asked, quietly, 30)
    assert outcomes == {"rejected: nothing_resolved": 1}
    assert await make.count(site.engine, "outbox") > 0


async def test_a_replay_of_a_discarded_letter_is_forgotten(site: Site) -> None:
    await site.park(nowhere(0), nowhere(1))
    await replay(site)
    await make.execute(
        site.engine,
        "DELETE FROM ingest_dead_letters WHERE id = (SELECT min(id) FROM ingest_dead_letters)",
    )
    assert await leave(site) == 1
    assert await make.count(site.engine, "ingest_replays") == 0


async def test_two_relays_do_not_publish_one_letter_twice(site: Site) -> None:
    await site.park(*(nowhere(n) for n in range(10)))
    await replay(site)
    left = await asyncio.gather(*(leave(site) for _ in range(4)))
    assert sum(left) == 10
    assert await site.broker.depth(amqp.ATTEMPTS_QUEUE) == 10


# ----------------------------------------------------------------------------------- rehearsing


async def _rehearsed(site: Site) -> Rehearsal:
    (letter,) = await look(site)
    incoming = replayed(letter, site.settings)
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
        EXPLANATION.routing_key,
        REVIEW.routing_key,
        amqp.result_key(VIEWER),
    ]
    assert await make.contents(site.engine) == before
    assert len(await look(site)) == 1


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
    content = batch_in(letter)
    assert letter.brief.reason == RejectReason.UUID_REUSED and isinstance(content, AttemptBatch)
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
    async with transaction(site.engine) as connection:
        seen = await stored.ids(connection, Wanted(uuids=frozenset({UUID(int=2)})), limit=None)
    # The same batch once more, after the look.
    await site.park(nowhere(1))

    assert await discard(site.engine, seen, BY, quietly) == 1
    left = await look(site)
    assert [each.brief.client_session_uuid for each in left] == [UUID(int=1), UUID(int=2)]
    (line,) = await make.rows(site.engine, "SELECT operation, actor, effect FROM ingest_audit")
    assert line == {"operation": "discard", "actor": "ops", "effect": {"nothing_resolved": 1}}
