"""Wrong clocks and calendars: what is stored, told and counted, and that the schedule is sane."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.attempt_batch import Attempt
from schemas.words import TimeWas
from tests import factories as make
from tests.factories import Published, right, sent, told, wrong
from worker.domain.dispositions import Ingested
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.operate.repair import rebuild, verify

WEEK = timedelta(days=7)


@pytest.fixture
def ingest(engine: AsyncEngine) -> Ingest:
    return Ingest(engine, Policy())


async def _one(ingest: Ingest, *attempts: Attempt) -> Ingested:
    (disposition,) = await ingest([sent(*attempts)])
    assert isinstance(disposition, Ingested)
    return disposition


async def _attempts(engine: AsyncEngine) -> list[dict[str, Any]]:
    return await make.rows(engine, "SELECT * FROM study_question_attempts ORDER BY id")


async def _schedule(engine: AsyncEngine, question: Published) -> tuple[float, datetime, str]:
    row = (await make.progress(engine))[question.user_id, question.question_id]
    return row["stability"], row["due_at"], row["pattern"]


def _of_another_year(at: datetime, year: int) -> datetime:
    return at.replace(year=year, day=min(at.day, 28))


WRONG_CLOCKS: dict[str, Callable[[datetime], datetime | str | None]] = {
    "reset": lambda at: _of_another_year(at, 1970),
    "reset_to_its_first_second": lambda at: datetime(1970, 1, 1, tzinfo=UTC),
    "japanese_era": lambda at: _of_another_year(at, 8),
    "hebrew_or_else": lambda at: _of_another_year(at, 1483),
    "min_value": lambda at: datetime(1, 1, 1, tzinfo=UTC),
    "three_years_ahead": lambda at: at + 3 * timedelta(days=365),
    "buddhist": lambda at: _of_another_year(at, at.year + 543),
    "zero_date": lambda at: "0000-00-00T00:00:00Z",
    "null": lambda at: None,
}


@pytest.mark.parametrize("offline", [timedelta(), WEEK], ids=["at_once", "after_a_week"])
@pytest.mark.parametrize("clock", WRONG_CLOCKS)
async def test_three_right_answers_in_half_an_hour_of_which_the_first_has_a_wrong_time(
    engine: AsyncEngine, ingest: Ingest, clock: str, offline: timedelta
) -> None:
    as_it_was, with_wrong_clock = await make.publish(engine, 2)
    now = datetime.now(UTC) - offline - timedelta(hours=1)
    times = [now, now + timedelta(minutes=15), now + timedelta(minutes=30)]
    await _one(ingest, *(right(as_it_was, at) for at in times))
    shifted = [WRONG_CLOCKS[clock](times[0]), *times[1:]]
    await _one(ingest, *(right(with_wrong_clock, at) for at in shifted))

    stability, due_at, pattern = await _schedule(engine, as_it_was)
    same_stability, same_due_at, same_pattern = await _schedule(engine, with_wrong_clock)
    assert same_stability == pytest.approx(stability)
    assert abs(same_due_at - due_at) <= timedelta(days=1)
    assert same_pattern == pattern
    assert await verify(engine, 1, Policy()) == []


async def test_sessions_of_other_days_are_not_far_apart_because_a_clock_was(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    for at in ("0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", datetime.now(UTC)):
        await _one(ingest, right(question, at))
    stability, due_at, pattern = await _schedule(engine, question)
    assert stability < 3
    assert due_at < datetime.now(UTC) + timedelta(days=4)
    assert pattern == "known"


async def test_it_is_stored_told_and_counted_why_a_time_was_replaced(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    questions = await make.publish(engine, 6)
    at = datetime(2024, 3, 4, 9, 0, tzinfo=UTC)
    times = (
        "1970-01-01T00:00:00Z",
        None,
        "2024-03-04T14:30:00+05:30",
        "noon",
        "2999-01-01T00:00:00",
        "2024-03-04T08:00:00Z",
    )
    done = await _one(ingest, *(right(q, text) for q, text in zip(questions, times, strict=True)))
    reasons = ["too_early", "missing", None, "unreadable", "in_the_future", None]
    stored = await _attempts(engine)
    assert [row["time_was"] for row in stored] == reasons
    assert [row["utc_offset"] for row in stored] == [0, None, 330, None, None, 0]
    assert [row["answered_at"] for row in stored] == [at] * 5 + [at - timedelta(hours=1)]
    (result,) = await told(engine)
    assert [(each.position, each.time_was, each.answered_at) for each in result.replaced_times] == [
        (position, reason, at) for position, reason in enumerate(reasons) if reason
    ]
    assert done.replaced_times == [reason for reason in reasons if reason]
    assert done.last_answered_at == at - timedelta(hours=1)


async def test_a_neighbor_that_is_skipped_tells_the_time_all_the_same(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    at = datetime(2024, 3, 4, 9, 0, tzinfo=UTC)
    await _one(ingest, right("unknown", at), right(question, None))
    (row,) = await _attempts(engine)
    assert (row["answered_at"], row["time_was"]) == (at, "missing")


async def test_the_earliest_time_is_a_setting(engine: AsyncEngine) -> None:
    (question,) = await make.publish(engine)
    at = datetime(2024, 3, 4, 9, 0, tzinfo=UTC)
    strict = Ingest(engine, Policy(earliest_answer=at + timedelta(seconds=1)))
    done = await _one(strict, right(question, at))
    (row,) = await _attempts(engine)
    assert (row["answered_at"], row["time_was"]) == (done.received_at, "too_early")


@pytest.mark.parametrize(
    "change",
    [
        "time_was = 'too_early'",
        "time_was = 'in_the_future'",
        "time_was = 'missing'",
        "time_was = 'unreadable'",
        "time_was = 'a whim'",
        "answered_at = answered_at + interval '1 second'",
        "answered_at_sent = NULL, time_was = 'too_early'",
    ],
)
async def test_the_reason_is_tied_to_the_two_times(
    engine: AsyncEngine, ingest: Ingest, change: str
) -> None:
    (question,) = await make.publish(engine)
    await _one(ingest, right(question))
    with pytest.raises(DBAPIError, match="time_was_check"):
        await make.execute(engine, f"UPDATE study_question_attempts SET {change}")


# ---- rows of 0.1.0 ---------------------------------------------------------------------------

AS_0_1_0 = (
    "UPDATE study_question_attempts AS attempt SET time_was = NULL, utc_offset = NULL,"
    " answered_at = least(coalesce(answered_at_sent, session.finalized_at), session.finalized_at)"
    " FROM study_quiz_sessions AS session WHERE session.id = attempt.quiz_session_id"
)
"""A worker of 0.1.0 knew no earliest time, no neighbor and no reason."""
FINISHED = "SELECT id, finished_at FROM study_quiz_sessions ORDER BY id"


async def test_rebuild_applies_the_rule_to_the_rows_of_an_older_worker(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    first, other = [*await make.publish(engine), *await make.publish(engine)]
    at = datetime(2024, 3, 4, 9, 0, tzinfo=UTC)
    batches = (
        [right(first, "0001-01-01T00:00:00Z")],
        [right(other, at), wrong(first, "1970-01-01T00:00:00Z"), right(first, None)],
        [right(first, "2999-01-01T00:00:00Z"), right(first, at + timedelta(days=1))],
        [right(first, at + timedelta(days=2))],
    )
    for attempts in batches:
        await _one(ingest, *attempts)
    whole, progress = await _attempts(engine), await make.progress(engine)
    finished = await make.rows(
        engine, "SELECT id, finished_at FROM study_quiz_sessions ORDER BY id"
    )

    await make.execute(engine, AS_0_1_0)
    await rebuild(engine, 1, Policy(earliest_answer=datetime(1, 1, 1, tzinfo=UTC)))
    await make.execute(engine, AS_0_1_0)
    assert (await rebuild(engine, 1, Policy())).times == 4
    again = await _attempts(engine)
    kept = [row.pop("replaced") for row in again]
    assert [each is not None for each in kept] == [row["time_was"] is not None for row in whole]
    for row in whole:
        row.pop("replaced")
    for row in (*whole, *again):
        row.pop("utc_offset")
    assert again == whole
    assert await make.progress(engine) == progress
    assert await make.rows(engine, FINISHED) == finished
    assert await rebuild(engine, 1, Policy()) == (0, 0)


async def test_rebuild_leaves_what_was_judged_when_it_came(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    at = datetime(2024, 3, 4, 9, 0, tzinfo=UTC)
    # Its neighbor is not stored: judged again, it would get the time of receipt.
    await _one(ingest, right("unknown", at), right(question, "soon"))
    before = await _attempts(engine)
    assert before[0]["time_was"] == TimeWas.UNREADABLE
    assert await rebuild(engine, 1, Policy()) == (0, 0)
    assert await _attempts(engine) == before
