"""Versions: what gives a new one, in which order they are seen, and what an older worker leaves."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from tests.database_fixtures import on_either_content
from tests.factories import RIGHT, Published, at, right, sent, wrong
from worker.domain.cursor import BEFORE_ALL
from worker.domain.policy import Policy
from worker.domain.records import ChangedQuestion, Mark
from worker.ingest.transaction import Ingest, transact
from worker.operate import erase as erasing
from worker.operate.content import change
from worker.operate.repair import rebuild
from worker.operate.rescore import rescore
from worker.operate.void import void
from worker.store import changed, principals, versions
from worker.store.audit import By
from worker.store.engine import transaction

POLICY = Policy()
BY = By("tests", "")
USER = 7


@pytest.fixture
def ingest(engine: AsyncEngine) -> Ingest:
    return Ingest(engine, POLICY)


async def seen(engine: AsyncEngine, since: int = -1, user_id: int = USER) -> list[ChangedQuestion]:
    """What a page would have, in its order."""
    position = BEFORE_ALL if since < 0 else (since, 2**63 - 1)
    async with transaction(engine, isolation="repeatable_read") as connection:
        return await changed.since(connection, user_id, position, 1_000)


async def versions_of(engine: AsyncEngine, user_id: int = USER) -> dict[int, int]:
    return {each.question_id: each.version for each in await seen(engine, user_id=user_id)}


async def state(engine: AsyncEngine, user_id: int = USER) -> Any:
    async with transaction(engine, isolation="repeatable_read") as connection:
        return await changed.state(connection, user_id)


@on_either_content
async def test_a_batch_gives_its_questions_a_version_and_tells_it(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    first, second = await make.publish(engine, 2, user_id=USER)
    await ingest([sent(right(first), right(second))])
    before = await versions_of(engine)
    await ingest([sent(wrong(first, at(1)))])

    after = await versions_of(engine)
    assert len({*before.values()}) == 1
    assert after[second.question_id] == before[second.question_id] < after[first.question_id]
    told = [each.progress for each in await make.told(engine)]
    epoch = (await state(engine)).newest.epoch
    assert [(each.user_id, each.epoch, each.version) for each in told if each] == [
        (str(USER), epoch, before[first.question_id]),
        (str(USER), epoch, after[first.question_id]),
    ]
    # A duplicate gets the result of the first time.
    assert (await state(engine)).newest.version == after[first.question_id]


async def test_one_version_serves_a_group(engine: AsyncEngine, ingest: Ingest) -> None:
    (mine,), (theirs,) = [await make.publish(engine, user_id=user) for user in (USER, 8)]
    await ingest([sent(right(mine)), sent(right(theirs)), sent(wrong(mine, at(1)))])
    found = [*(await versions_of(engine)).values(), *(await versions_of(engine, 8)).values()]
    assert len(found) == 2
    assert len({*found}) == 1


async def test_a_change_is_not_seen_before_an_earlier_one_of_the_user(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    first, second = await make.publish(engine, 2, user_id=USER)
    others = (await make.publish(engine, user_id=8))[0]
    async with transaction(engine) as connection:
        await transact(connection, {0: sent(right(first))}, POLICY)
        late = asyncio.create_task(ingest([sent(right(second))]))
        await make.blocked(engine, 1)
        # Another user's commits later versions meanwhile, and this one sees nothing.
        await ingest([sent(right(others))])
        assert await seen(engine) == []
    await late
    (one, other) = await seen(engine)
    assert (one.question_id, other.question_id) == (first.question_id, second.question_id)
    assert one.version < (await versions_of(engine, 8))[others.question_id] < other.version


async def test_void_rescore_and_rebuild_give_new_versions(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    kept, other = await make.publish(engine, 2, user_id=USER)
    uuid = uuid4()
    await ingest([sent(right(kept), right(other))])
    await ingest([sent(wrong(kept, at(1)), uuid=uuid)])
    newest = max((await versions_of(engine)).values())

    await void(engine, uuid, POLICY, BY)
    (only,) = await seen(engine, newest)
    assert (only.question_id, only.wrong) == (kept.question_id, 0)
    voided = [each for each in await make.told(engine) if each.voided_at]
    assert [each.progress.version for each in voided if each.progress] == [only.version]

    await rescore(engine, other.question_id, RIGHT + 1, POLICY, BY)
    (only,) = await seen(engine, only.version)
    assert (only.question_id, only.wrong) == (other.question_id, 1)
    assert (await make.told(engine))[-1].progress is not None

    await make.execute(engine, "UPDATE study_question_progress SET stability = 9, version = 1")
    await rebuild(engine, USER, POLICY)
    assert len(await seen(engine, only.version)) == 2


async def test_what_has_no_answer_left_is_to_be_forgotten(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine, user_id=USER)
    uuid = uuid4()
    await ingest([sent(right(question), uuid=uuid)])
    ((_, version),) = (await versions_of(engine)).items()
    await void(engine, uuid, POLICY, BY)

    (gone,) = await seen(engine, version)
    assert (gone.question_id, gone.last_answered_at) == (question.question_id, None)
    await ingest([sent(right(question, at(3)))])
    (back,) = await seen(engine)
    assert back.last_answered_at == at(3)
    assert back.version > gone.version


@on_either_content
async def test_an_erasure_has_a_version_and_leaves_no_list_of_questions(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    one, other = await make.publish(engine, 2, user_id=USER)
    uuid = uuid4()
    await ingest([sent(right(one)), sent(right(other), uuid=uuid)])
    await void(engine, uuid, POLICY, BY)
    newest = max((await versions_of(engine)).values())
    survey = await erasing.survey(engine, USER, lambda *_: None)
    await erasing.erase(engine, USER, survey, BY)

    assert await seen(engine) == []
    assert await make.count(engine, "ingest_forgotten") == 0
    found = await state(engine)
    assert found.erased > newest
    assert found.erased_at is not None

    await make.execute(engine, "DELETE FROM study_question_progress")  # nothing is left to list
    assert await make.count(engine, "ingest_forgotten") == 0


async def test_a_change_of_publications_gives_a_new_version_to_who_answered(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    shared, other = await make.publish(engine, 2, user_id=None)
    for user in (USER, 8):
        await make.grant(engine, f"phone-{user}", user)
        await ingest([sent(right(shared), right(other), viewer=f"phone-{user}")])
    for withdrawn in (True, False):
        before = {user: max((await versions_of(engine, user)).values()) for user in (USER, 8)}
        await change.set_withdrawn(engine, [shared.pub_id], BY, withdrawn=withdrawn)
        for user in (USER, 8):
            (only,) = await seen(engine, before[user], user)
            assert only.question_id == shared.question_id
            async with transaction(engine) as connection:
                ids = await changed.live_ids(connection, [shared.question_id])
            assert ids == ({} if withdrawn else {shared.question_id: [shared.pub_id]})
    # Once more: who was interrupted before can run it again.
    newest = max((await versions_of(engine)).values())
    assert await change.set_withdrawn(engine, [shared.pub_id], BY, withdrawn=False) == 0
    assert len(await seen(engine, newest)) == 1


@pytest.mark.parametrize("named", [True, False])
@on_either_content
async def test_touched_content_gives_a_new_version(
    engine: AsyncEngine, ingest: Ingest, named: bool
) -> None:
    one, other = await make.publish(engine, 2, user_id=USER)
    await ingest([sent(right(one), right(other))])
    newest = max((await versions_of(engine)).values())
    await change.touched(engine, [one.pub_id] if named else [], [], BY)
    assert {each.question_id for each in await seen(engine, newest)} == (
        {one.question_id} if named else {one.question_id, other.question_id}
    )


async def test_an_older_worker_s_rows_get_versions_without_any_right_to_the_sequence(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine, user_id=USER)
    await ingest([sent(right(question))])
    before = (await versions_of(engine))[question.question_id]
    role = f"tests_{uuid4().hex}"
    columns = (
        "user_id, study_question_id, study_topic_id, attempts_count, correct_count, wrong_count,"
        " unsure_count, correct_run, best_run, spaced_run, recent_unsure, lapse_count,"
        " first_correct_at, last_outcome, last_answered_at, pattern, stability, difficulty, due_at,"
        " scheduler"
    )
    rest = columns.partition("study_question_id, ")[2]
    save = (
        f"INSERT INTO study_question_progress ({columns})"
        f" SELECT user_id, study_question_id + :more, {rest} FROM study_question_progress"
        " WHERE study_question_id = :question_id ON CONFLICT (user_id, study_question_id)"
        " DO UPDATE SET stability = excluded.stability + 1"
    )
    await make.execute(engine, f"CREATE ROLE {role}")
    await make.execute(engine, f"GRANT SELECT, INSERT, UPDATE ON study_question_progress TO {role}")
    try:
        for more in (0, 1):  # a row that was there, and a new one
            async with engine.begin() as connection:
                await connection.execute(text(f"SET LOCAL ROLE {role}"))
                await connection.execute(
                    text(save), {"more": more, "question_id": question.question_id}
                )
            newest = (await seen(engine, before))[-1]
            assert newest.question_id == question.question_id + more
            before = newest.version
    finally:
        await make.execute(engine, f"DROP OWNED BY {role}")
        await make.execute(engine, f"DROP ROLE {role}")


async def test_a_worker_s_own_version_is_not_replaced(engine: AsyncEngine, ingest: Ingest) -> None:
    questions = await make.publish(engine, 5, user_id=USER)
    for day in range(2):  # inserted, then updated
        before = (await state(engine)).newest.version
        await ingest([sent(*(right(each, at(day)) for each in questions))])
        newest = (await state(engine)).newest.version
        assert {*(await versions_of(engine)).values()} == {newest}
        assert newest <= before + 1


async def _draw(engine: AsyncEngine) -> Mark:
    async with transaction(engine) as connection:
        await principals.lock(connection, [USER])
        return await versions.draw(connection)


async def test_a_dump_that_is_restored_is_another_epoch(engine: AsyncEngine) -> None:
    first, second = await _draw(engine), await _draw(engine)
    assert first.epoch == second.epoch
    assert first.version < second.version
    # As pg_restore --clean does.
    await make.execute(engine, "DROP SEQUENCE ingest_versions")
    await make.execute(engine, "CREATE SEQUENCE ingest_versions START 2")
    restored = await _draw(engine)
    assert restored.epoch != first.epoch
    assert restored.version == 2


async def test_questions_of_others_are_not_seen(engine: AsyncEngine, ingest: Ingest) -> None:
    mine: Published = (await make.publish(engine, user_id=USER))[0]
    other: Published = (await make.publish(engine, user_id=8))[0]
    await ingest([sent(right(mine)), sent(right(other))])
    assert [each.question_id for each in await seen(engine)] == [mine.question_id]
