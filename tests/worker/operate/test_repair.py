"""Verify finds every way in which progress can be wrong, and rebuild corrects it."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from tests.factories import Published, at, right, sent, unsure, wrong
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.operate.repair import Difference, rebuild, users, verify
from worker.store.operate.repair import Part

TAMPERED = {
    "attempts_count": "attempts_count = attempts_count + 1, wrong_count = wrong_count + 1",
    "correct_count": "correct_count = correct_count + 1, wrong_count = wrong_count - 1",
    "wrong_count": "wrong_count = wrong_count - 1, unsure_count = unsure_count + 1",
    "unsure_count": "unsure_count = unsure_count - 1, wrong_count = wrong_count + 1",
    "correct_run": "correct_run = correct_run + 1",
    "best_run": "best_run = best_run + 1",
    "spaced_run": "spaced_run = spaced_run - 1",
    "recent_unsure": "recent_unsure = 15",
    "lapse_count": "lapse_count = lapse_count - 1",
    "first_correct_at": "first_correct_at = first_correct_at + interval '1 microsecond'",
    "last_outcome": "last_outcome = 'wrong'",
    "last_answered_at": "last_answered_at = last_answered_at - interval '1 microsecond'",
    "stability": "stability = stability + 1e-12",
    "difficulty": "difficulty = difficulty - 1e-12",
    "due_at": "due_at = due_at + interval '1 day'",
    "pattern": "pattern = 'mastered'",
    "explanation_requested": "explanation_requested = false",
    "scheduler": "scheduler = 'fsrs-5/1.0/abc'",
}


@pytest.fixture
async def questions(engine: AsyncEngine) -> list[Published]:
    """Three questions of one user with a history, and one of another user's."""
    mine = await make.publish(engine, 3, user_id=1)
    (yours,) = await make.publish(engine, user_id=2)
    ingest = Ingest(engine, Policy())
    first, second, third = mine
    await ingest([sent(right(first, at(0)), right(first, at(1)), wrong(second, at(0)))])
    await ingest([sent(wrong(first, at(2)), unsure(first, at(3)), right(third, at(1)))])
    await ingest([sent(right(first, at(5))), sent(wrong(yours, at(0)))])
    return [*mine, yours]


async def _verify(engine: AsyncEngine, user_id: int = 1) -> list[Difference]:
    return await verify(engine, user_id, Policy())


async def _rebuild(engine: AsyncEngine, user_id: int = 1) -> int:
    return (await rebuild(engine, user_id, Policy())).progress


async def _versions(engine: AsyncEngine) -> list[dict[str, object]]:
    return await make.rows(
        engine,
        "SELECT user_id, study_question_id, xmin::text, ctid::text FROM study_question_progress"
        " ORDER BY user_id, study_question_id",
    )


async def test_verify_finds_no_difference_after_ingest_and_rebuild_changes_nothing(
    engine: AsyncEngine, questions: list[Published]
) -> None:
    before = await _versions(engine)
    assert await make.users(engine) == [1, 2]
    for user_id in await make.users(engine):
        assert await _verify(engine, user_id) == []
        assert await _rebuild(engine, user_id) == 0
    assert await _versions(engine) == before


@pytest.mark.parametrize("column", TAMPERED)
async def test_a_wrong_column_is_found_named_and_corrected(
    engine: AsyncEngine, questions: list[Published], column: str
) -> None:
    before = await make.progress(engine)
    await make.execute(
        engine,
        f"UPDATE study_question_progress SET {TAMPERED[column]} WHERE study_question_id = :id",
        id=questions[0].question_id,
    )

    (difference,) = await _verify(engine)

    assert difference.describe().startswith(f"user 1, question {questions[0].question_id}: ")
    assert f"{column} is " in difference.describe()
    assert await _rebuild(engine) == 1
    assert await make.progress(engine) == before
    assert await _verify(engine) == []


async def test_every_column_is_tampered_with_above(engine: AsyncEngine) -> None:
    columns = await make.rows(
        engine,
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_name = 'study_question_progress'",
    )
    assert {row["column_name"] for row in columns} - TAMPERED.keys() == {
        "user_id",
        "study_question_id",
        "study_topic_id",  # which is the question's, and no difference: see below
        "version",  # which says when the row was written, and not what the attempts give
    }


async def test_a_missing_row_is_found_and_made(
    engine: AsyncEngine, questions: list[Published]
) -> None:
    before = await make.progress(engine)
    await make.execute(
        engine,
        "DELETE FROM study_question_progress WHERE study_question_id = :id",
        id=questions[1].question_id,
    )
    (difference,) = await _verify(engine)
    assert difference.describe().endswith("progress is missing")
    assert await _rebuild(engine) == 1
    assert await make.progress(engine) == before


async def test_progress_without_attempts_is_found_and_removed(
    engine: AsyncEngine, questions: list[Published]
) -> None:
    await make.execute(
        engine,
        "DELETE FROM study_question_attempts WHERE study_question_id = :id",
        id=questions[2].question_id,
    )
    (difference,) = await _verify(engine)
    assert difference.describe().endswith("progress without any attempt")
    assert await _rebuild(engine) == 1
    assert (1, questions[2].question_id) not in await make.progress(engine)


async def test_progress_of_somebody_without_any_attempt_is_found(
    engine: AsyncEngine, questions: list[Published]
) -> None:
    await make.execute(
        engine,
        "UPDATE study_question_progress SET user_id = 77 WHERE study_question_id = :id",
        id=questions[2].question_id,
    )
    assert await make.users(engine) == [1, 2, 77]
    assert len(await _verify(engine, 77)) == len(await _verify(engine, 1)) == 1
    assert await _rebuild(engine, 77) == await _rebuild(engine, 1) == 1
    assert await make.users(engine) == [1, 2]


async def test_all_progress_comes_back_from_the_log_alone(
    engine: AsyncEngine, questions: list[Published]
) -> None:
    before = await make.progress(engine)
    await make.execute(engine, "DELETE FROM study_question_progress")
    assert await _rebuild(engine, 1) == 3
    assert await _rebuild(engine, 2) == 1
    assert await make.progress(engine) == before


async def test_only_the_user_asked_for_is_touched(
    engine: AsyncEngine, questions: list[Published]
) -> None:
    await make.execute(engine, "UPDATE study_question_progress SET due_at = now()")
    assert await _rebuild(engine, 2) == 1
    assert len(await _verify(engine, 1)) == 3
    assert await _verify(engine, 2) == []


async def test_an_explanation_once_requested_stays_requested(
    engine: AsyncEngine, questions: list[Published]
) -> None:
    """It went out, whatever has become of the attempts behind it since."""
    await make.execute(engine, "UPDATE study_question_progress SET explanation_requested = true")
    assert await _verify(engine) == []
    await make.execute(engine, "UPDATE study_question_progress SET due_at = now()")
    await _rebuild(engine)
    rows = await make.progress(engine)
    assert all(row["explanation_requested"] for row in rows.values())


async def test_other_thresholds_are_another_pattern(
    engine: AsyncEngine, questions: list[Published]
) -> None:
    strict = Policy(leech_lapses=1)
    differences = await verify(engine, 1, strict)
    assert [each.question_id for each in differences] == [questions[0].question_id]
    assert (await rebuild(engine, 1, strict)).progress == 1
    row = (await make.progress(engine))[1, questions[0].question_id]
    assert row["pattern"] == "leech"


async def test_a_moved_question_moves_in_the_view_is_no_difference_and_follows_in_a_rebuild(
    engine: AsyncEngine, questions: list[Published]
) -> None:
    first, second, _, _ = questions
    (elsewhere,) = await make.publish(engine, user_id=1)
    for question in (first, second):
        await make.execute(
            engine,
            "UPDATE study_questions SET study_topic_id = :topic WHERE id = :id",
            topic=elsewhere.topic_id,
            id=question.question_id,
        )
    await Ingest(engine, Policy())([sent(right(first, at(9)))])

    assert await _verify(engine) == []
    seen = await make.rows(
        engine,
        "SELECT questions_seen AS n FROM study_topic_progress WHERE study_topic_id = :topic",
        topic=elsewhere.topic_id,
    )
    assert seen == [{"n": 2}]
    await _rebuild(engine)
    progress = await make.progress(engine)
    for question in (first, second):
        assert progress[1, question.question_id]["study_topic_id"] == elsewhere.topic_id
    assert await _verify(engine) == []


async def test_rebuild_and_verify_are_safe_while_batches_come_in(
    engine: AsyncEngine, questions: list[Published]
) -> None:
    ingest = Ingest(engine, Policy())
    done = asyncio.Event()

    async def batches(lane: int) -> None:
        for n in range(20):
            day = 10 + (n * 7 + lane * 3) % 31
            await ingest([sent(right(questions[0], at(day)), wrong(questions[1], at(day)))])

    async def repairs() -> int:
        found = 0
        while not done.is_set():
            found += len(await _verify(engine)) + await _rebuild(engine)
        return found

    repairing = asyncio.create_task(repairs())
    await asyncio.gather(batches(0), batches(1))
    done.set()

    assert await repairing == 0, "no batch is ever seen half"
    assert await _verify(engine) == []
    row = (await make.progress(engine))[1, questions[0].question_id]
    assert row["attempts_count"] == 5 + 40


# ------------------------------------------------------------------------------- by part


@pytest.fixture
async def crowd(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """More users than one statement walks over; one of them has progress and nothing else."""
    monkeypatch.setattr("worker.store.operate.repair.AT_ONCE", 3)
    user_ids = [-7, 1, 2, 5, 2**40, 2**62]
    for user_id in user_ids:
        (question,) = await make.publish(engine, user_id=user_id)
        await Ingest(engine, Policy())([sent(right(question))])
    await make.execute(engine, "UPDATE study_question_progress SET user_id = 3 WHERE user_id = 2")
    return sorted([*user_ids, 3])


async def _of(engine: AsyncEngine, part: Part, **more: int) -> list[int]:
    return [user_id async for user_id in users(engine, part, **more)]


async def test_every_user_is_in_one_shard(engine: AsyncEngine, crowd: list[int]) -> None:
    assert await _of(engine, Part()) == crowd
    shards = [await _of(engine, Part(shard=number, shards=4)) for number in range(1, 5)]
    assert sorted(user_id for shard in shards for user_id in shard) == crowd
    assert all(shard == sorted(shard) for shard in shards)


@pytest.mark.parametrize("after", [-8, -7, 0, 3, 2**62])
async def test_a_walk_continues_after_a_user(
    engine: AsyncEngine, crowd: list[int], after: int
) -> None:
    assert await _of(engine, Part(), after=after) == [each for each in crowd if each > after]


async def test_since_selects_sessions_ingested_or_corrected_after_it(
    engine: AsyncEngine, crowd: list[int]
) -> None:
    hour = timedelta(hours=1)
    assert await _of(engine, Part(datetime.now(UTC) + hour)) == []
    assert await _of(engine, Part(datetime.now(UTC) - hour)) == [
        each for each in crowd if each != 3
    ], "who has no session has nothing since"
    await make.execute(
        engine,
        "UPDATE study_quiz_sessions SET updated_at = now() + interval '2 h' WHERE user_id = 5",
    )
    assert await _of(engine, Part(datetime.now(UTC) + hour)) == [5]
