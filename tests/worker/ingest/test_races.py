"""Workers at once: one of them ingests a batch, no update is lost, and nothing deadlocks."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.words import RejectReason, Status
from tests import factories as make
from tests.database_fixtures import in_the_usual_schema
from tests.factories import Published, at, right, sent, wrong
from worker.domain.dispositions import Busy, Disposition, Duplicate, Ingested, Rejected
from worker.domain.policy import Policy
from worker.errors import DatabaseAway, TransientFault
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.operate.repair import verify
from worker.settings import Settings
from worker.store import principals
from worker.store.engine import make_engine, transaction

pytestmark = in_the_usual_schema

ROUNDS = 70


@pytest.fixture
async def crew(database_url: str) -> AsyncIterator[list[Ingest]]:
    """Six workers, each with a pool of its own."""
    settings = Settings(database_url=database_url, amqp_url="amqp://unused")  # type: ignore[arg-type]
    engines = [make_engine(settings, connections=1, name=f"worker-{n}") for n in range(6)]
    yield [Ingest(engine, Policy()) for engine in engines]
    for engine in engines:
        await engine.dispose()


@pytest.fixture
async def question(engine: AsyncEngine) -> Published:
    return (await make.publish(engine))[0]


async def _at_once(*calls: tuple[Ingest, list[Incoming]]) -> list[list[Disposition | Busy]]:
    return await asyncio.gather(*(ingest(group) for ingest, group in calls))


async def _healthy(engine: AsyncEngine) -> None:
    for user_id in await make.users(engine):
        assert await verify(engine, user_id, Policy()) == []


async def test_one_of_two_ingests_a_batch_and_the_other_finds_the_duplicate(
    engine: AsyncEngine, crew: list[Ingest]
) -> None:
    (question,) = await make.publish(engine)
    for n in range(ROUNDS):
        delivery = sent(right(question, at(n)))
        (one,), (other,) = await _at_once((crew[0], [delivery]), (crew[1], [delivery]))
        assert {type(one), type(other)} == {Ingested, Duplicate}
    row = (await make.progress(engine))[1, question.question_id]
    assert row["attempts_count"] == row["correct_run"] == ROUNDS
    told = Counter((each.client_session_uuid, each.status) for each in await make.told(engine))
    assert len(told) == 2 * ROUNDS and set(told.values()) == {1}
    await _healthy(engine)


async def test_one_of_two_contents_of_a_uuid_is_ingested_and_the_other_rejected(
    engine: AsyncEngine, crew: list[Ingest]
) -> None:
    (question,) = await make.publish(engine)
    for n in range(ROUNDS):
        uuid = uuid4()
        (one,), (other,) = await _at_once(
            (crew[0], [sent(right(question, at(n)), uuid=uuid)]),
            (crew[1], [sent(wrong(question, at(n)), uuid=uuid)]),
        )
        assert {type(one), type(other)} == {Ingested, Rejected}
        reasons = {each.reason for each in (one, other) if isinstance(each, Rejected)}
        assert reasons == {RejectReason.UUID_REUSED}
    row = (await make.progress(engine))[1, question.question_id]
    assert row["attempts_count"] == ROUNDS
    await _healthy(engine)


async def test_two_batches_of_one_user_are_both_counted(
    engine: AsyncEngine, crew: list[Ingest]
) -> None:
    questions = await make.publish(engine, 2)
    for n in range(ROUNDS):
        dispositions = await _at_once(
            (crew[0], [sent(*(right(each, at(2 * n)) for each in questions))]),
            (crew[1], [sent(*(wrong(each, at(2 * n + 1)) for each in reversed(questions)))]),
        )
        assert all(isinstance(each, Ingested) for (each,) in dispositions)
    for question in questions:
        row = (await make.progress(engine))[1, question.question_id]
        assert (row["attempts_count"], row["correct_count"]) == (2 * ROUNDS, ROUNDS)
        assert row["lapse_count"] == ROUNDS
    await _healthy(engine)


async def test_a_principal_in_use_holds_up_only_its_own_batches(
    engine: AsyncEngine, crew: list[Ingest]
) -> None:
    busy, free = [(await make.publish(engine, user_id=user_id))[0] for user_id in (1, 2)]
    committed = asyncio.Event()
    ingest = Ingest(engine, Policy(), on_commit=committed.set)
    group = [sent(right(each, at(0))) for each in (busy, free)]
    async with transaction(engine) as holder:
        await principals.lock(holder, [1])
        deciding = asyncio.create_task(ingest(group))
        await committed.wait()
        await make.blocked(engine, 1)
        assert [user_id for user_id, _ in await make.progress(engine)] == [2]
        (other,) = await crew[0]([sent(wrong(free, at(1)))])
    assert [type(each) for each in (other, *await deciding)] == [Ingested] * 3
    assert {user_id for user_id, _ in await make.progress(engine)} == {1, 2}
    await _healthy(engine)


async def test_a_batch_that_can_come_again_is_not_waited_for_and_nothing_is_done(
    engine: AsyncEngine, crew: list[Ingest]
) -> None:
    busy, free = [(await make.publish(engine, user_id=user_id))[0] for user_id in (1, 2)]
    group = [replace(sent(right(each, at(0))), can_come_again=True) for each in (busy, free)]
    async with transaction(engine) as holder:
        await principals.lock(holder, [1])
        first, second = await crew[0](group)
        assert (first, type(second)) == (Busy(), Ingested)
        assert [user_id for user_id, _ in await make.progress(engine)] == [2]
        assert await make.count(engine, "ingest_inbox") == len(await make.told(engine)) == 1
    assert [type(each) for each in await crew[0](group)] == [Ingested, Duplicate]
    await _healthy(engine)


async def test_batches_wait_where_all_are_busy_or_one_of_them_can_not_come_again(
    engine: AsyncEngine, crew: list[Ingest]
) -> None:
    questions = [(await make.publish(engine, user_id=user_id))[0] for user_id in (1, 2, 3)]
    for day, (can_come_again, whose) in enumerate([(True, (1, 2)), (False, (1, 3))]):
        group = [
            replace(sent(right(questions[user_id - 1], at(day))), can_come_again=can_come_again)
            for user_id in whose
        ]
        async with transaction(engine) as holder:
            await principals.lock(holder, [1, 2])
            deciding = asyncio.create_task(crew[0](group))
            await make.blocked(engine, 1)
        assert [type(each) for each in await deciding] == [Ingested] * 2
    await _healthy(engine)


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ("correct_choice = 4711", "wrong"),
        ("study_topic_id = :topic_id", "correct"),
        ("deleted_at = now()", None),
    ],
)
async def test_a_question_counts_as_it_stands_once_its_principal_is_free(
    engine: AsyncEngine, crew: list[Ingest], question: Published, change: str, outcome: str | None
) -> None:
    (elsewhere,) = await make.publish(engine)
    async with transaction(engine) as holder:
        await principals.lock(holder, [1])
        ingesting = asyncio.create_task(crew[0]([sent(right(question))]))
        await make.blocked(engine, 1)
        change = change.replace(":topic_id", str(elsewhere.topic_id))
        await holder.execute(
            text(f"UPDATE study_questions SET {change} WHERE id = :id"),
            {"id": question.question_id},
        )
    (disposition,) = await ingesting
    if outcome is None:
        assert isinstance(disposition, Rejected)
        assert disposition.reason is RejectReason.NOTHING_RESOLVED
    stored = await make.rows(
        engine,
        "SELECT outcome, attempt.study_topic_id AS here, session.study_topic_id AS there"
        " FROM study_question_attempts AS attempt JOIN study_quiz_sessions AS session"
        " ON session.id = quiz_session_id",
    )
    topic_id = elsewhere.topic_id if "topic" in change else question.topic_id
    expected = {"outcome": outcome, "here": topic_id, "there": topic_id}
    assert stored == ([] if outcome is None else [expected])
    await _healthy(engine)


async def test_a_question_that_changes_its_owner_meanwhile_is_tried_again(
    engine: AsyncEngine, crew: list[Ingest], question: Published
) -> None:
    (other,) = await make.publish(engine, user_id=2)
    delivery = sent(right(question))
    async with transaction(engine) as holder:
        await principals.lock(holder, [1])
        ingesting = asyncio.create_task(crew[0]([delivery]))
        await make.blocked(engine, 1)
        await holder.execute(
            text("UPDATE study_questions SET user_id = 2, study_topic_id = :topic WHERE id = :id"),
            {"topic": other.topic_id, "id": question.question_id},
        )
    with pytest.raises(TransientFault, match="changed their owner"):
        await ingesting
    assert await make.count(engine, "ingest_inbox") == 0
    (disposition,) = await crew[0]([delivery])
    assert isinstance(disposition, Ingested)
    assert list(await make.progress(engine)) == [(2, question.question_id)]
    await _healthy(engine)


async def test_six_workers_with_the_same_users_in_turned_orders_do_not_deadlock(
    engine: AsyncEngine, crew: list[Ingest]
) -> None:
    shelves = [(await make.publish(engine, user_id=user_id))[0] for user_id in range(1, 6)]
    rounds = 12
    for n in range(rounds):
        shared = [sent(right(question, at(n, hours=23))) for question in shelves]
        groups = []
        for lane in range(6):
            own = [sent(right(question, at(n, hours=lane))) for question in shelves]
            group = [*own, *shared]
            groups.append(group[::-1] if lane % 2 else group[lane:] + group[:lane])
        done = await _at_once(*zip(crew, groups, strict=True))
        kinds = Counter(type(each) for dispositions in done for each in dispositions)
        assert kinds == {Ingested: 6 * 5 + 5, Duplicate: 5 * 5}
    for question in shelves:
        row = (await make.progress(engine))[question.user_id, question.question_id]
        assert row["attempts_count"] == row["correct_run"] == rounds * 7
    (stats,) = await make.rows(
        engine, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    assert stats["deadlocks"] == 0
    await _healthy(engine)


@asynccontextmanager
async def _nobody_writes_a_session(engine: AsyncEngine) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.execute(text("LOCK TABLE study_quiz_sessions IN EXCLUSIVE MODE"))
        yield


async def test_a_duplicate_in_the_middle_of_the_first_waits_and_is_told_what_it_was(
    engine: AsyncEngine, crew: list[Ingest], question: Published
) -> None:
    delivery = sent(right(question))
    async with _nobody_writes_a_session(engine):
        first = asyncio.create_task(crew[0]([delivery]))
        await make.blocked(engine, 1)
        second = asyncio.create_task(crew[1]([delivery]))
        await make.blocked(engine, 2)

    assert isinstance((await first)[0], Ingested)
    assert await second == [Duplicate()]
    told, again = await make.told(engine)
    assert again == told.model_copy(update={"status": Status.ALREADY_INGESTED})


async def test_if_the_first_worker_dies_the_waiting_one_ingests_the_batch(
    engine: AsyncEngine, crew: list[Ingest], question: Published
) -> None:
    delivery = sent(right(question))
    async with _nobody_writes_a_session(engine):
        first = asyncio.create_task(crew[0]([delivery]))
        await make.blocked(engine, 1)
        second = asyncio.create_task(crew[1]([delivery]))
        await make.blocked(engine, 2)
        await make.execute(
            engine,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'worker-0'",
        )
        with pytest.raises(DatabaseAway):
            await first

    assert isinstance((await second)[0], Ingested)
    assert await crew[0]([delivery]) == [Duplicate()]
    row = (await make.progress(engine))[1, question.question_id]
    assert row["attempts_count"] == 1


async def test_one_of_two_users_sessions_with_one_uuid_is_ingested_and_the_other_rejected(
    engine: AsyncEngine, crew: list[Ingest]
) -> None:
    shelves = [(await make.publish(engine, user_id=user_id))[0] for user_id in (1, 2)]
    for n in range(ROUNDS):
        groups = [[sent(right(each, at(n)), uuid=UUID(int=n + 1))] for each in shelves]
        (one,), (other,) = await _at_once(*zip(crew, groups, strict=False))
        assert {type(one), type(other)} == {Ingested, Rejected}
        reasons = {each.reason for each in (one, other) if isinstance(each, Rejected)}
        assert reasons == {RejectReason.UUID_REUSED}
    assert await make.count(engine, "study_question_attempts") == ROUNDS
    await _healthy(engine)


@pytest.mark.parametrize("commits", [True, False])
async def test_a_uuid_that_somebody_else_receives_meanwhile_is_waited_for(
    engine: AsyncEngine, crew: list[Ingest], question: Published, *, commits: bool
) -> None:
    group = [sent(right(question, at(n)), uuid=UUID(int=n)) for n in (1, 2)]
    async with engine.connect() as third:
        await _receives(third, UUID(int=2))
        ingesting = asyncio.create_task(crew[0](group))
        await make.blocked(engine, 1)
        await (third.commit() if commits else third.rollback())
    neighbor, contested = await ingesting
    assert isinstance(neighbor, Ingested)
    assert isinstance(contested, Rejected if commits else Ingested)
    if isinstance(contested, Rejected):
        assert contested.reason is RejectReason.UUID_REUSED
    assert await make.count(engine, "study_question_attempts") == 1 + (not commits)
    await _healthy(engine)


async def _receives(connection: AsyncConnection, uuid: UUID) -> None:
    await connection.execute(
        text(
            "INSERT INTO ingest_inbox (client_session_uuid, content_digest, user_id)"
            " VALUES (:uuid, sha256(''), 9)"
        ),
        {"uuid": uuid},
    )


async def test_groups_that_share_batches_wait_for_each_other_and_never_crosswise(
    engine: AsyncEngine, crew: list[Ingest], question: Published
) -> None:
    """Each stops at the middle batch, which a third holds, with what came before it in hand."""
    group = [sent(right(question, at(n)), uuid=UUID(int=n)) for n in (1, 2, 3)]
    async with engine.connect() as third:
        await _receives(third, UUID(int=2))
        one = asyncio.create_task(crew[0](group))
        await make.blocked(engine, 1)
        other = asyncio.create_task(crew[1](group[::-1]))
        await make.blocked(engine, 2)
        await third.rollback()
    kinds = [type(each) for each in [*await one, *await other]]
    assert Counter(kinds) == {Ingested: 3, Duplicate: 3}
