"""`batch list` and `batch show`: what an operator finds out about a batch."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from schemas.attempt_batch import AttemptBatch
from tests import factories as make
from tests.broker_fixtures import VIEWER, until
from tests.factories import batch, right, unsure, wrong
from tests.whole_worker import WORKER
from tests.worker.operate.commands import invoke
from tests.worker.operate.conftest import Site
from tests.worker.operate.test_answers import one
from worker.broker.topology import retry_queue
from worker.domain.policy import Policy
from worker.errors import NoBatch
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.operate.rescore import rescore
from worker.operate.void import void
from worker.store.audit import By

pytestmark = pytest.mark.broker

BY = By("somebody", "a test")

NOTED = ("published_at", "published_by", "worker", "group_size", "milliseconds", "told_at")
"""What is noted for a while only."""


def sent(content: AttemptBatch, viewer: str) -> Incoming:
    return make.incoming(content, viewer=viewer)


async def listed(site: Site, *words: str) -> list[dict[str, Any]]:
    result = await invoke(site, "batch", "list", *words, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = one("batch list", result.stdout)["batches"]
    return found


async def shown(site: Site, uuid: UUID) -> dict[str, Any]:
    result = await invoke(site, "batch", "show", str(uuid), "--json")
    assert result.exit_code == 0, result.output
    return one("batch show", result.stdout)


async def test_they_are_listed_by_user_viewer_topic_time_and_status(site: Site) -> None:
    (mine,) = await make.publish(site.engine, user_id=1)
    (other,) = await make.publish(site.engine, user_id=2)
    (gone,) = await make.publish(site.engine, user_id=3)
    ingest = Ingest(site.engine, Policy())
    first, second, third, fourth = (uuid4() for _ in range(4))
    await ingest([sent(batch(right(mine), wrong(mine), uuid=first), "phone")])
    await ingest([sent(batch(right(mine), right("nowhere"), uuid=second), "tablet")])
    await ingest([sent(batch(wrong(other), uuid=third), "phone")])
    await ingest([sent(batch(wrong(gone), uuid=fourth), "phone")])
    await ingest([sent(batch(right("nowhere")), "phone")])
    await void(site.engine, third, Policy(), BY)
    await invoke(site, "erase", "--user", "3", "--yes")

    async def uuids(*words: str) -> list[str | None]:
        return [each["client_session_uuid"] for each in await listed(site, *words)]

    everything = await listed(site)
    assert [each["status"] for each in everything] == [
        *("erased", "rejected", "voided", "ingested", "ingested")
    ]
    assert [(each["answers"], each["skipped"]) for each in everything[-2:]] == [(1, 1), (2, 0)]
    assert everything[1]["reason"] == "nothing_resolved"
    assert everything[-1]["user_id"] == 1 and everything[-1]["topic_ids"] == [mine.topic_id]
    assert await uuids("--user", "1") == [str(second), str(first)]
    assert await uuids("--viewer", "tablet") == [str(second)]
    assert await uuids("--topic", str(other.topic_id)) == [str(third)]
    assert await uuids("--status", "erased", "--status", "voided") == [str(fourth), str(third)]
    assert await uuids("--viewer", "phone", "--status", "ingested") == [str(first)]
    assert len(await uuids("--status", "rejected")) == 1
    assert await uuids("--user", "1", "--status", "rejected") == []
    assert len(await uuids("--limit", "2")) == 2
    assert len(await uuids("--since", "0001-01-01T00:00")) == 5
    soon = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    assert await uuids("--since", soon) == []


async def test_one_is_shown_with_all_that_became_of_it(site: Site) -> None:
    question, other, withdrawn = await make.publish(site.engine, 3, user_id=1)
    await make.withdraw(site.engine, withdrawn)
    uuid = uuid4()
    content = batch(
        *(wrong(question), unsure(other, None), right(withdrawn), right("nowhere")), uuid=uuid
    )
    await Ingest(site.engine, Policy())([sent(content, "phone")])
    # The same uuid again, with other content.
    await Ingest(site.engine, Policy())([sent(batch(right(other), uuid=uuid), "phone")])

    life = await shown(site, uuid)
    assert (life["status"], life["viewer"], life["user_id"]) == ("ingested", "phone", 1)
    assert life["result_waits_since"] is not None
    assert [each["kind"] for each in life["jobs_waiting"]] == ["explanation.requested"] * 2
    attempts = life["attempts"]
    assert [each["outcome"] for each in attempts] == ["wrong", "unsure"]
    assert [each["pub_ids"] for each in attempts] == [[question.pub_id], [other.pub_id]]
    assert attempts[1]["time_was"] == "missing" and attempts[0]["times_corrected"] == 0
    assert life["skipped"] == [
        {"position": 2, "question_pub_id": withdrawn.pub_id, "reason": "withdrawn"},
        {"position": 3, "question_pub_id": "nowhere", "reason": "unknown_publication"},
    ]
    assert [each["reason"] for each in life["dead_letters"]] == ["uuid_reused"]

    chosen = attempts[0]["selected_choice"]
    await rescore(site.engine, question.question_id, chosen, Policy(), BY)
    await void(site.engine, uuid, Policy(), BY)
    life = await shown(site, uuid)
    attempts = life["attempts"]
    assert attempts[0]["outcome"] == "correct" and attempts[0]["times_corrected"] == 1
    assert life["status"] == "voided"

    text = (await invoke(site, "batch", "show", str(uuid))).stdout
    assert "void since" in text and "corrections: 1" in text and "uuid_reused" in text
    assert f"skipped, withdrawn  ({withdrawn.pub_id})" in text

    await invoke(site, "erase", "--user", "1", "--yes")
    life = await shown(site, uuid)
    assert (life["status"], life["user_id"], life["attempts"]) == ("erased", None, [])


async def test_what_only_the_moment_knew_is_told_and_what_is_not_known_too(site: Site) -> None:
    (question,) = await make.publish(site.engine, user_id=1)
    named, bare = (batch(right(question), uuid=uuid4()) for _ in range(2))
    at = datetime(2026, 3, 1, 12, 30, 5, tzinfo=UTC)
    app = "quiz\n3\0" + "x" * 100
    await site.publish(named, timestamp=at, app_id=app)
    await site.publish(bare)

    async def told() -> bool:
        rows = await make.rows(site.engine, "SELECT client_session_uuids FROM ingest_told")
        return len({uuid for row in rows for uuid in row["client_session_uuids"]}) == 2

    async with site.working():
        await until(told, bool)
        life = await shown(site, named.client_session_uuid)
        await site.publish(named)  # again, which is told again
        count = "SELECT count(*) AS n FROM ingest_told"
        await until(lambda: make.rows(site.engine, count), lambda rows: rows[0]["n"] > 2)

    assert (life["published_at"], life["published_by"]) == (at.isoformat(), f"quiz\n3{'x' * 58}")
    assert life["worker"] == WORKER and life["group_size"] in (1, 2)
    assert life["milliseconds"] > 0 and life["told_at"] > life["received_at"]
    assert await shown(site, named.client_session_uuid) == life
    text = (await invoke(site, "batch", "show", str(named.client_session_uuid))).stdout
    assert f"Published: 2026-03-01 12:30:05+00:00 by quiz\\n3{'x' * 58}." in text
    assert f"by worker {WORKER}, in a group of {life['group_size']}" in text
    other = await shown(site, bare.client_session_uuid)
    assert (other["published_at"], other["published_by"], other["worker"]) == (None, None, WORKER)

    # As a worker and a relay of an older version leave it.
    uuid = uuid4()
    await Ingest(site.engine, Policy())([sent(batch(right(question), uuid=uuid), "phone")])
    life = await shown(site, uuid)
    assert {life[name] for name in NOTED} == {None}
    assert (await invoke(site, "batch", "show", str(uuid))).stdout.count("not known.") == 3


async def test_one_that_is_not_stored_may_still_wait_in_the_broker(site: Site) -> None:
    await site.publish(batch(right("a")), viewer=VIEWER)

    async def remedy() -> str:
        result = await invoke(site, "batch", "show", str(uuid4()))
        assert isinstance(result.exception, NoBatch)
        return result.exception.remedy

    # The broker's counts lag by seconds.
    await until(remedy, lambda said: "in the broker wait 1 for a worker" in said)
    retry = await (await site.broker.channel()).declare_queue(retry_queue(3600), durable=True)
    await site.broker.publish("{}", exchange="", routing_key=retry.name)
    said = await until(remedy, lambda said: "for another try" in said)
    until_then = datetime.now(UTC) + timedelta(hours=1)
    (hour,) = re.findall(r"1 for another try \(until (\d\d):\d\d:\d\d UTC at the latest\)", said)
    assert int(hour) in (until_then.hour, (until_then - timedelta(minutes=5)).hour)

    result = await invoke(site, "batch", "show", "no-uuid")
    assert result.exit_code == 2


async def test_texts_of_viewers_are_printed_on_one_line(site: Site) -> None:
    (question,) = await make.publish(site.engine, user_id=1)
    uuid = uuid4()
    content = batch(right(question), right("a\nb\x1b[2J\u202e"), uuid=uuid)
    await Ingest(site.engine, Policy())([sent(content, "phone")])
    text = (await invoke(site, "batch", "show", str(uuid))).stdout
    assert "(a\\nb\\x1b[2J\\u202e)" in text
