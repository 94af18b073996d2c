"""Erase leaves nothing of the user, nothing comes back, and nobody else is affected."""

import asyncio
import secrets
from collections.abc import Callable
from hashlib import sha256
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.ingest_result import IngestResult
from schemas.words import RejectReason, Status
from tests import factories as make
from tests.broker_fixtures import until
from tests.factories import at, batch, right, sent, wrong
from tests.worker.operate.conftest import Site
from worker.domain.dispositions import Duplicate, Ingested
from worker.domain.policy import Policy
from worker.domain.records import DeadLetter
from worker.ingest.transaction import Ingest
from worker.operate.erase import Survey, erase, survey
from worker.operate.repair import verify
from worker.store import dead_letters, schema
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate.erase import Erased

pytestmark = pytest.mark.broker

BY = By("ops", "asked to be forgotten")
EMPTY = bytes(4)
"""A field table without a field."""


def quietly(seen: int, total: int) -> None:
    """No progress bar."""


async def _erase(site: Site, user_id: int) -> tuple[Survey, Erased, int]:
    found = await survey(site.engine, user_id, quietly)
    erased, letters = await erase(site.engine, user_id, found, BY)
    return found, erased, letters


async def _everything(engine: AsyncEngine) -> str:
    """All that is stored but the audit and the study application's own rows, as one text."""
    parts = [repr(await make.rows(engine, f"SELECT * FROM {table}")) for table in make.LOG_TABLES]
    return "\n".join(parts)


async def test_nothing_of_the_user_is_left_and_nobody_else_is_touched(site: Site) -> None:
    ingest = Ingest(site.engine, Policy())
    mine = await make.publish(site.engine, 2, user_id=770_077)
    (yours,) = await make.publish(site.engine, user_id=2)
    await ingest([sent(wrong(yours, at(0)))])
    before = await make.contents(site.engine)
    deliveries = [sent(right(mine[0], at(0)), wrong(mine[1], at(0))), sent(right(mine[0], at(1)))]
    await ingest(deliveries)

    found, erased, letters = await _erase(site, 770_077)

    assert (found.attempts, found.batches, letters) == (3, 2, 0)
    assert erased == Erased(attempts=3, sessions=2, progress=2, batches=2, messages=3)
    after = await make.contents(site.engine)
    tombstones = [row for row in after["inbox"] if row["user_id"] is None]
    after["inbox"] = [row for row in after["inbox"] if row["user_id"] is not None]
    results = [row["body"] for row in after["outbox"] if "erased_at" in row["body"]]
    assert {row["client_session_uuid"] for row in results} == {
        str(delivery.client_session_uuid) for delivery in deliveries
    }
    after["outbox"] = [row for row in after["outbox"] if row["body"] not in results]
    assert after == before
    assert [(row["content_digest"], row["told"]) for row in tombstones] == [(None, None)] * 2
    assert "770077" not in await _everything(site.engine)
    (line,) = await make.rows(site.engine, "SELECT * FROM ingest_audit")
    assert (line["actor"], line["operation"], line["subject"]) == ("ops", "erase", "user 770077")
    assert line["reason"] == BY.reason and line["effect"]["attempts"] == 3
    for user_id in await make.users(site.engine):
        assert await verify(site.engine, user_id, Policy()) == []


async def test_a_redelivery_brings_nothing_back_and_is_told_that_it_was_ingested(
    site: Site,
) -> None:
    ingest = Ingest(site.engine, Policy())
    (question,) = await make.publish(site.engine, user_id=7)
    delivery = sent(wrong(question))
    await ingest([delivery])
    await _erase(site, 7)
    before = await make.contents(site.engine)
    other = sent(right(question), uuid=delivery.client_session_uuid)

    # Whatever its content: to park it as a reused uuid would keep it.
    assert await ingest([delivery, other]) == [Duplicate(), Duplicate()]

    after = await make.contents(site.engine)
    told = [
        IngestResult.model_validate(row.pop("body") | {"received_at": at()})
        for row in after.pop("outbox")
    ]
    before.pop("outbox")
    assert after == before
    # One from the erasure, and one for each delivery.
    assert [(each.status, each.sessions, each.skipped) for each in told] == [
        (Status.ALREADY_INGESTED, (), ())
    ] * 3


async def test_erased_again_only_the_moment_of_it_moves(site: Site) -> None:
    (question,) = await make.publish(site.engine, user_id=7)
    await Ingest(site.engine, Policy())([sent(wrong(question))])
    await _erase(site, 7)
    _, erased, letters = await _erase(site, 7)
    assert (erased, letters) == (Erased(0, 0, 0, 0, 0), 0)
    entries = await make.rows(site.engine, "SELECT effect FROM ingest_audit ORDER BY id")
    assert [each["effect"]["attempts"] for each in entries] == [1, 0]


async def test_dead_letters_about_the_users_questions_go_and_others_stay(site: Site) -> None:
    (mine,) = await make.publish(site.engine, user_id=7)
    (yours,) = await make.publish(site.engine, user_id=2)
    for question in (mine, yours):
        await make.withdraw(site.engine, question)
    gone = batch(right(mine))
    await site.park(gone, batch(right(yours)), batch(right("nowhere")))
    async with site.working():
        # No batch that can be read, and yet about a question of the user's.
        await site.broker.publish(f'{{"question_pub_id": "{mine.pub_id}", "version": 9')
        await until(site.letters, (4).__eq__)

    found, _, letters = await _erase(site, 7)

    assert (len(found.letters), found.unattributed, letters) == (2, 1, 2)
    left = await make.rows(site.engine, "SELECT body FROM ingest_dead_letters")
    assert len(left) == 2 and not any(mine.pub_id.encode() in row["body"] for row in left)
    # A batch that was parked can't come back either.
    await make.execute(site.engine, "UPDATE published SET deleted = false")
    assert await Ingest(site.engine, Policy())([make.incoming(gone)]) == [Duplicate()]
    assert await make.count(site.engine, "study_question_attempts") == 0


async def test_a_letter_that_comes_between_the_survey_and_the_erasure_goes_too(
    site: Site,
) -> None:
    (mine,) = await make.publish(site.engine, user_id=7)
    (yours,) = await make.publish(site.engine, user_id=2)
    for question in (mine, yours):
        await make.withdraw(site.engine, question)
    await site.park(batch(right(mine)))
    found = await survey(site.engine, 7, quietly)
    late = batch(right(mine))
    await site.park(late, batch(right(yours)))

    _, letters = await erase(site.engine, 7, found, BY)

    assert letters == 2
    (left,) = await make.rows(site.engine, "SELECT body FROM ingest_dead_letters")
    assert mine.pub_id.encode() not in left["body"]
    told = await make.rows(site.engine, "SELECT effect FROM ingest_audit ORDER BY id")
    assert [each["effect"]["dead_letters"] for each in told] == [1, 1]
    await make.execute(site.engine, "UPDATE published SET deleted = false")
    assert await Ingest(site.engine, Policy())([make.incoming(late)]) == [Duplicate()]


def _letter(
    reason: RejectReason, body: bytes, uuid: UUID, *, kept: int | None = None
) -> DeadLetter:
    """As ingest keeps it; of the body only the beginning, if `kept` says so."""
    digest = None if kept is None else sha256(body).digest()
    return DeadLetter(
        *(secrets.token_bytes(32), None, reason, "", "phone", b"", uuid, None, EMPTY),
        *(body[:kept], len(body), digest),
    )


BODIES: dict[str, Callable[[str, str], bytes]] = {
    "alone": lambda mine, yours: batch(right(mine)).model_dump_json().encode(),
    "mixed": lambda mine, yours: batch(right(yours), wrong(mine)).model_dump_json().encode(),
    "broken": lambda mine, yours: batch(right(yours), wrong(mine)).model_dump_json()[:-2].encode(),
    "escaped": lambda mine, yours: (
        f'{{"attempts": [{{"question_pub_id" : "\\u{ord(mine[0]):04x}{mine[1:]}"'.encode()
    ),
}


@pytest.mark.parametrize("reason", RejectReason)
async def test_letters_of_every_reason_that_name_the_users_questions_go(
    site: Site, reason: RejectReason
) -> None:
    (mine,), (yours,) = (
        await make.publish(site.engine, user_id=7),
        await make.publish(site.engine, user_id=2),
    )
    bodies = [body(mine.pub_id, yours.pub_id) for body in BODIES.values()]
    # Of this one only the beginning is kept.
    cut = batch(*(right(yours) for _ in range(9)), right(mine), uuid=UUID(int=1))
    letters = [
        *(_letter(reason, body, uuid4()) for body in bodies),
        _letter(reason, cut.model_dump_json().encode() + b" " * 9_000, uuid4(), kept=4_096),
    ]
    stays = _letter(reason, batch(right(yours)).model_dump_json().encode(), uuid4())
    async with transaction(site.engine) as connection:
        await dead_letters.keep(connection, [*letters, stays], Policy())

    found, _, gone = await _erase(site, 7)

    assert (gone, found.unattributed) == (len(letters), 0)
    (left,) = await make.rows(site.engine, "SELECT key, body FROM ingest_dead_letters")
    assert bytes(left["key"]) == stays.key and mine.pub_id.encode() not in bytes(left["body"])
    assert await make.count(site.engine, "ingest_inbox") == len(letters)  # the tombstones


async def test_a_batch_of_two_users_goes_with_either_and_does_not_come_back(site: Site) -> None:
    """As a worker refuses it and keeps it; and its result does not tell of it either."""
    (mine,), (yours,) = (
        await make.publish(site.engine, user_id=7),
        await make.publish(site.engine, user_id=2),
    )
    mixed = batch(right(mine), wrong(yours))
    await site.park(mixed)
    (letter,) = await make.rows(site.engine, "SELECT reason FROM ingest_dead_letters")
    assert letter["reason"] == RejectReason.MIXED_PRINCIPALS

    assert (await _erase(site, 7))[2] == 1

    assert mine.pub_id not in await _everything(site.engine)
    # Even if both questions belong to one user one day.
    await make.execute(site.engine, "UPDATE study_questions SET user_id = 2")
    assert await Ingest(site.engine, Policy())([make.incoming(mixed)]) == [Duplicate()]
    assert await make.count(site.engine, "study_question_attempts") == 0


async def test_a_letter_with_the_uuid_of_somebody_elses_batch_leaves_that_batch_alone(
    site: Site,
) -> None:
    (mine,), (yours,) = (
        await make.publish(site.engine, user_id=7),
        await make.publish(site.engine, user_id=2),
    )
    theirs = sent(right(yours))
    ingest = Ingest(site.engine, Policy())
    reused = make.incoming(batch(right(mine), uuid=theirs.client_session_uuid))
    await ingest([theirs])
    before = await make.contents(site.engine)
    async with transaction(site.engine) as connection:
        body = batch(right(mine), uuid=theirs.client_session_uuid).model_dump_json().encode()
        assert reused.client_session_uuid is not None
        letter = _letter(RejectReason.UUID_REUSED, body, reused.client_session_uuid)
        await dead_letters.keep(connection, [letter], Policy())

    assert (await _erase(site, 7))[2] == 1

    # Its result, which still waits in the outbox, too.
    assert await make.contents(site.engine) == before


async def test_letters_go_with_the_rest_or_not_at_all(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (question,) = await make.publish(site.engine, user_id=7)
    ingest = Ingest(site.engine, Policy())
    await ingest([sent(wrong(question))])
    await make.withdraw(site.engine, question)
    await site.park(batch(right(question)))

    async def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("worker.operate.erase.audit.record", killed)
        with pytest.raises(KeyboardInterrupt):
            await _erase(site, 7)
    assert await site.letters() == 1
    assert await make.count(site.engine, "study_question_attempts") == 1

    _, erased, letters = await _erase(site, 7)

    assert (erased.attempts, letters) == (1, 1)
    assert await site.letters() == 0


async def test_erasing_amid_ingest_leaves_no_half(site: Site) -> None:
    (question,) = await make.publish(site.engine, user_id=7)
    ingest = Ingest(site.engine, Policy())
    await asyncio.gather(
        *(ingest([sent(wrong(question, at(n)))]) for n in range(4)),
        _erase(site, 7),
        *(ingest([sent(right(question, at(n, hours=1)))]) for n in range(4)),
    )
    # What came after the erasure is new; what came before is gone.
    left = await make.rows(
        site.engine,
        "SELECT count(*) FILTER (WHERE inbox.erased_at IS NULL) AS live,"
        " count(session.id) AS sessions FROM ingest_inbox AS inbox"
        " LEFT JOIN study_quiz_sessions AS session USING (client_session_uuid)",
    )
    assert left[0]["live"] == left[0]["sessions"]
    assert await make.count(site.engine, "ingest_inbox") == 8
    assert await verify(site.engine, 7, Policy()) == []


async def test_the_older_schema_keeps_the_erased_from_coming_back(site: Site) -> None:
    (question,) = await make.publish(site.engine, user_id=7)
    await Ingest(site.engine, Policy())([sent(wrong(question))])
    await _erase(site, 7)

    await schema.migrate(site.engine, "0001")

    (row,) = await make.rows(site.engine, "SELECT * FROM ingest_inbox")
    assert (row["user_id"], row["content_digest"]) == (0, bytes(32))
    assert IngestResult.model_validate(row["summary"]).status is Status.ALREADY_INGESTED
    await schema.migrate(site.engine)
    await schema.check(site.engine)


async def test_an_erasure_waits_for_batches_being_ingested_without_deadlock(site: Site) -> None:
    """Also where the same batch lies among the dead letters."""
    (question,) = await make.publish(site.engine, user_id=7)
    delivery = sent(right(question, at(0)))
    assert delivery.client_session_uuid is not None
    found = Survey(attempts=0, batches=0, uuids={delivery.client_session_uuid})
    async with site.engine.begin() as holder:
        # Ingest has its principal's lock then, and no receipt yet.
        await holder.execute(make.text("LOCK TABLE study_question_progress"))
        ingesting = asyncio.create_task(Ingest(site.engine, Policy())([delivery]))
        await make.blocked(site.engine, 1)
        erasing = asyncio.create_task(erase(site.engine, 7, found, BY))
        await make.blocked(site.engine, 2)
    assert isinstance((await ingesting)[0], Ingested)
    erased, _ = await erasing
    assert (erased.attempts, erased.batches) == (1, 1)
    assert await make.count(site.engine, "study_question_attempts") == 0
