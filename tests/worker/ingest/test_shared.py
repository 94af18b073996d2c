"""Questions that many users share: each user has a history, a schedule and a pattern of it."""

import asyncio
import itertools
from dataclasses import replace
from random import Random

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.amqp import attempts_key
from schemas.attempt_batch import AttemptBatch
from schemas.words import RejectReason, SkipReason
from tests import factories as make
from tests.database_fixtures import on_either_content
from tests.factories import RIGHT, VIEWER, WRONG, Sent, at, incoming, right, sent, wrong
from worker.domain.dispositions import Duplicate, Ingested, Rejected
from worker.domain.policy import Policy
from worker.domain.records import Original
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.operate import erase
from worker.operate.repair import rebuild, verify
from worker.operate.rescore import rescore
from worker.store import keys
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.publications import GRANTS_READ

pytestmark = on_either_content

POLICY = Policy()
BY = By("ops", "a test")


@pytest.fixture
def ingest(engine: AsyncEngine) -> Ingest:
    return Ingest(engine, POLICY)


def named(delivery: Incoming, user_id: int) -> Incoming:
    """The delivery with a header that names the user."""
    return incoming(delivery.content, delivery.viewer, principal=user_id)


def as_json(delivery: Incoming) -> Incoming:
    """The delivery with a body that can be read again."""
    assert isinstance(delivery.content, AttemptBatch)
    body = Sent(delivery.content.model_dump_json().encode())
    return replace(delivery, original=Original(body, attempts_key(str(delivery.viewer))))


async def _reason(ingest: Ingest, delivery: Incoming) -> RejectReason | None:
    (done,) = await ingest([delivery])
    return done.reason if isinstance(done, Rejected) else None


async def test_two_users_of_one_question_in_one_group_have_a_history_each(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine, user_id=None)
    await make.grant(engine, "tom", 1)
    await make.grant(engine, "ann", 2)
    group = [
        sent(wrong(question, at(10)), viewer="tom"),
        sent(right(question, at(5)), viewer="ann"),
        sent(right(question, at(1)), viewer="tom"),  # late
        sent(right(question, at(9)), viewer="ann"),
    ]
    assert all(isinstance(done, Ingested) for done in await ingest(group))
    progress = await make.progress(engine)
    assert {key: row["attempts_count"] for key, row in progress.items()} == {
        (1, question.question_id): 2,
        (2, question.question_id): 2,
    }
    tom, ann = (progress[user, question.question_id] for user in (1, 2))
    assert (tom["last_outcome"], tom["lapse_count"], tom["correct_run"]) == ("wrong", 1, 0)
    assert (ann["last_outcome"], ann["lapse_count"], ann["correct_run"]) == ("correct", 0, 2)
    assert (tom["explanation_requested"], ann["explanation_requested"]) == (True, False)
    # The second user's wrong answer is as new as the first one's.
    await ingest([sent(wrong(question, at(20)), viewer="ann")])
    jobs = [
        row for row in await make.outbox(engine) if row["routing_key"] == "explanation.requested"
    ]
    assert len(jobs) == 2
    for user_id in (1, 2):
        assert await verify(engine, user_id, POLICY) == []


async def test_the_principal_is_the_user_that_the_viewer_is_granted_or_names(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (shared,) = await make.publish(engine, user_id=None)
    (owned,) = await make.publish(engine, user_id=2)

    assert await _reason(ingest, sent(right(shared))) is RejectReason.PRINCIPAL_AMBIGUOUS
    assert (
        await _reason(ingest, named(sent(right(shared)), 2)) is RejectReason.PRINCIPAL_NOT_GRANTED
    ), "a header adds no grant"
    await make.grant(engine, VIEWER, 2)
    assert await _reason(ingest, sent(right(shared))) is None
    assert await _reason(ingest, named(sent(right(shared)), 2)) is None
    assert (
        await _reason(ingest, named(sent(right(shared)), 3)) is RejectReason.PRINCIPAL_NOT_GRANTED
    )
    await make.grant(engine, VIEWER, 3)
    assert await _reason(ingest, sent(right(shared))) is RejectReason.PRINCIPAL_AMBIGUOUS
    assert await _reason(ingest, named(sent(right(shared)), 3)) is None
    assert (
        await _reason(ingest, named(sent(right(shared)), 4)) is RejectReason.PRINCIPAL_NOT_GRANTED
    )
    counted = {key[0]: row["attempts_count"] for key, row in (await make.progress(engine)).items()}
    assert counted == {2: 2, 3: 1}

    # Mixed: the owner is the principal.
    for mixed in ((shared, owned), (owned, shared)):
        answers = [right(each) for each in mixed]
        assert await _reason(ingest, sent(*answers)) is None
        assert await _reason(ingest, named(sent(*answers), 2)) is None
        assert await _reason(ingest, named(sent(*answers), 3)) is RejectReason.MIXED_PRINCIPALS
    progress = await make.progress(engine)
    assert progress[2, shared.question_id]["attempts_count"] == 6
    assert progress[3, shared.question_id]["attempts_count"] == 1
    for user_id in (2, 3):
        assert await verify(engine, user_id, POLICY) == []


async def test_a_header_that_agrees_with_the_owner_changes_nothing(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (owned,) = await make.publish(engine, user_id=2)
    assert await _reason(ingest, named(sent(right(owned)), 2)) is None
    assert await _reason(ingest, named(sent(right(owned)), 1)) is RejectReason.MIXED_PRINCIPALS


async def test_eight_workers_leave_every_user_the_same_progress(engine: AsyncEngine) -> None:
    users = range(1, 7)
    questions = await make.publish(engine, 4, user_id=None)
    (mine,) = await make.publish(engine, user_id=1)
    for user in users:
        await make.grant(engine, f"viewer-{user}", user)
    random = Random(7)
    deliveries = [
        sent(
            *[
                random.choice((right, wrong))(question, at(random.randrange(60), minutes=number))
                for question in random.sample([*questions, mine] if user == 1 else questions, 3)
            ],
            viewer=f"viewer-{user}",
        )
        for user, number in itertools.product(users, range(12))
    ]
    random.shuffle(deliveries)
    groups = [deliveries[start : start + 6] for start in range(0, len(deliveries), 6)]
    workers = [Ingest(engine, POLICY) for _ in range(8)]

    async def work(worker: Ingest) -> None:
        while groups:
            for done in await worker(groups.pop()):
                assert isinstance(done, Ingested | Duplicate)

    async with asyncio.TaskGroup() as all_of_them:
        for worker in workers:
            all_of_them.create_task(work(worker))
    stored = await make.progress(engine)
    for user in users:
        assert await verify(engine, user, POLICY) == []

    await make.forget(engine)
    for delivery in sorted(deliveries, key=lambda each: str(each.client_session_uuid)):
        await workers[0]([delivery])
    assert await make.progress(engine) == stored


async def test_rescore_goes_through_all_users_and_shows_how_far_it_is(
    engine: AsyncEngine, ingest: Ingest, content: str
) -> None:
    (question,) = await make.publish(engine, user_id=None)
    for user in (1, 2, 3):
        await make.grant(engine, f"viewer-{user}", user)
        await ingest([sent(right(question, at(user)), viewer=f"viewer-{user}")])
    theirs = "app.questions" if "applications" in content else None
    if theirs:
        await make.execute(engine, f"UPDATE {theirs} SET answer = {WRONG}")
    seen: list[tuple[int, int]] = []
    done = await rescore(
        engine, question.question_id, WRONG, POLICY, BY, lambda *each: seen.append(each)
    )
    assert (done.attempts, done.progress) == (3, 3)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    outcomes = await make.rows(
        engine, "SELECT outcome, correct_choice FROM study_question_attempts"
    )
    assert outcomes == [{"outcome": "wrong", "correct_choice": WRONG}] * 3
    for user in (1, 2, 3):
        assert await verify(engine, user, POLICY) == []
    again = await rescore(engine, question.question_id, None, POLICY, BY)
    assert again.attempts == 0
    subjects = {row["subject"] for row in await make.rows(engine, "SELECT * FROM ingest_audit")}
    named = {f"question {question.question_id}, user {user}" for user in (1, 2, 3)}
    assert subjects == (named if theirs else named | {f"question {question.question_id}"})


async def test_rescore_waits_for_ingest_that_has_read_the_older_key(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine, user_id=None)
    await make.grant(engine, VIEWER, 1)
    async with transaction(engine) as in_flight:
        await keys.hold(in_flight)
        rescoring = asyncio.create_task(rescore(engine, question.question_id, None, POLICY, BY))
        await make.blocked(engine, 1)
        late = asyncio.create_task(ingest([sent(right(question))]))
        await make.blocked(engine, 2)
        assert not rescoring.done()
    await rescoring
    (done,) = await late
    assert isinstance(done, Ingested)


async def test_rescore_and_ingest_at_once_leave_no_attempt_with_the_older_key(
    engine: AsyncEngine, ingest: Ingest, content: str
) -> None:
    (question,) = await make.publish(engine, user_id=None)
    table = "study_questions" if "applications" not in content else "app.questions"
    column = "correct_choice" if "applications" not in content else "answer"
    users = range(1, 9)
    for user in users:
        await make.grant(engine, f"viewer-{user}", user)
    over = asyncio.Event()

    async def answer(user: int) -> None:
        for day in itertools.count():
            await ingest([sent(right(question, at(day)), viewer=f"viewer-{user}")])
            if over.is_set():
                return

    async with asyncio.TaskGroup() as group:
        for user in users:
            group.create_task(answer(user))
        for choice in (WRONG, RIGHT, WRONG):
            await make.execute(engine, f"UPDATE {table} SET {column} = {choice}")
            await rescore(engine, question.question_id, None, POLICY, BY)
            found = await make.rows(
                engine, "SELECT DISTINCT correct_choice FROM study_question_attempts"
            )
            assert [row["correct_choice"] for row in found] in ([], [choice])
        over.set()
    for user in users:
        assert await verify(engine, user, POLICY) == []
        assert (await rebuild(engine, user, POLICY)).progress == 0


async def test_an_erased_user_s_answers_to_shared_questions_stay_erased(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    kept, withdrawn = await make.publish(engine, 2, user_id=None)
    for user in (1, 2):
        await make.grant(engine, f"viewer-{user}", user)
    await make.withdraw(engine, withdrawn)
    dead, others = (
        as_json(sent(right(withdrawn), viewer=viewer)) for viewer in ("viewer-1", "viewer-2")
    )
    await ingest([sent(right(kept), viewer="viewer-1"), sent(right(kept), viewer="viewer-2")])
    assert await _reason(ingest, dead) is RejectReason.NOTHING_RESOLVED
    assert await _reason(ingest, others) is RejectReason.NOTHING_RESOLVED

    found = await erase.survey(engine, 1, lambda *_: None)
    await erase.erase(engine, 1, found, BY)
    assert {user for user, _ in await make.progress(engine)} == {2}
    (letter,) = await make.rows(engine, "SELECT viewer FROM ingest_dead_letters")
    assert letter["viewer"] == "viewer-2"

    (again,) = await ingest([sent(right(kept, at(1)), viewer="viewer-1")])
    assert isinstance(again, Duplicate)
    (again,) = await ingest([sent(right(withdrawn, at(1)), viewer="viewer-1")])
    assert isinstance(again, Duplicate), "a dead letter would keep what was erased"
    await ingest([sent(right(kept, at(1)), right(withdrawn, at(1)), viewer="viewer-2")])
    (told,) = [each for each in await make.told(engine, "viewer-2") if each.skipped]
    assert [each.reason for each in told.skipped] == [SkipReason.WITHDRAWN]


async def test_a_viewer_may_have_more_users_than_are_looked_up_at_once(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    """Like the server of an application, which writes for everybody who has signed up."""
    (shared,) = await make.publish(engine, user_id=None)
    known, stranger = GRANTS_READ * 3, GRANTS_READ * 3 + 1
    (last,) = await make.publish(engine, user_id=known)
    (foreign,) = await make.publish(engine, user_id=stranger)
    await make.execute(
        engine,
        "INSERT INTO viewer_grants (viewer, user_id)"
        f" SELECT '{make.VIEWER}', n FROM generate_series(1, {known}) AS n",
    )
    group = [
        *[named(sent(right(shared)), user) for user in (1, known, stranger)],
        sent(right(last)),
        sent(right(foreign)),
        # The owner is known only from the second question.
        sent(right("unknown"), right(last), right(shared)),
        sent(right(shared), right(foreign)),
        sent(right(shared)),
    ]
    became = [getattr(each, "reason", "ingested") for each in await ingest(group)]
    assert became == [
        *("ingested", "ingested", RejectReason.PRINCIPAL_NOT_GRANTED),
        *("ingested", RejectReason.PRINCIPAL_NOT_GRANTED),
        "ingested",
        *(RejectReason.PRINCIPAL_NOT_GRANTED, RejectReason.PRINCIPAL_AMBIGUOUS),
    ]
    assert {user for user, _ in await make.progress(engine)} == {1, known}
