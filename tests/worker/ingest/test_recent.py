"""What a worker remembers of histories: it saves reading them, and never changes a result."""

import random
from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tests import factories as make
from tests.factories import RIGHT, Published, answer, at, right, scored, sent, wrong
from worker.domain.history import History
from worker.domain.policy import Policy
from worker.domain.records import Mark, Standing, UserQuestion
from worker.domain.scoring import ScoredAttempt
from worker.ingest.recent import Recent
from worker.ingest.transaction import Ingest
from worker.operate.erase import erase, survey
from worker.operate.repair import rebuild, verify
from worker.operate.rescore import rescore
from worker.operate.void import void
from worker.store import attempts
from worker.store.audit import By

BY = By("tester", "to try it")
EPOCH = "epoch"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[UserQuestion]:
    """The histories that were read from the database."""
    found: list[UserQuestion] = []
    histories = attempts.histories

    async def noted(
        connection: AsyncConnection, wanted: Collection[UserQuestion]
    ) -> dict[UserQuestion, list[ScoredAttempt]]:
        found.extend(sorted(wanted))
        return await histories(connection, wanted)

    monkeypatch.setattr(attempts, "histories", noted)
    return found


@pytest.fixture
async def question(engine: AsyncEngine) -> AsyncIterator[Published]:
    """A question with a long history, of which a worker has read all and remembers the end."""
    (question,) = await make.publish(engine)
    yield question
    assert await verify(engine, 1, Policy()) == []


async def long_history(ingest: Ingest, question: Published) -> None:
    """Attempts on a hundred days, and a late one."""
    await ingest([sent(*[right(question, at(day)) for day in range(100)])])
    await ingest([sent(wrong(question, at(98.5)))])


async def test_late_batches_in_a_row_read_the_history_once(
    engine: AsyncEngine, question: Published, read: list[UserQuestion]
) -> None:
    ingest = Ingest(engine, Policy())
    await long_history(ingest, question)
    for days in (98.4, 100, 98.3, 99.5, 101, 90):
        await ingest([sent(wrong(question, at(days)))])
    assert read == [(1, question.question_id)]

    await ingest([sent(wrong(question, at(3)))])
    assert len(read) == 2, "of the early attempts only the fold is remembered"
    await ingest([sent(wrong(question, at(90.5)))])
    assert len(read) == 2


async def test_what_others_have_changed_is_read_again(
    engine: AsyncEngine, question: Published, read: list[UserQuestion]
) -> None:
    ingest, other = Ingest(engine, Policy()), Ingest(engine, Policy())
    await long_history(ingest, question)
    late = uuid4()
    await other([sent(right(question, at(98.6)), uuid=late)])
    await ingest([sent(right(question, at(98.7)))])
    await void(engine, late, Policy(), BY)
    await ingest([sent(right(question, at(98.8)))])
    await rescore(engine, question.question_id, RIGHT + 1, Policy(), BY)
    await ingest([sent(right(question, at(98.9)))])
    assert len(read) == 6, "the rescore itself reads it once"


async def test_nor_does_a_transaction_that_was_rolled_back_mislead(
    engine: AsyncEngine,
    question: Published,
    read: list[UserQuestion],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ingest = Ingest(engine, Policy())
    await long_history(ingest, question)
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "inserting", lambda rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await ingest([sent(wrong(question, at(98.6)))])
    await ingest([sent(right(question, at(98.7)))])
    assert len(read) == 2


async def test_nor_do_times_that_are_replaced_and_leave_progress_as_it_was(
    engine: AsyncEngine, question: Published, read: list[UserQuestion]
) -> None:
    """Two attempts on one day change their places: the counts and the schedule stay."""
    ingest = Ingest(engine, Policy())
    await ingest([sent(*[right(question, at(day)) for day in range(9)])])
    await ingest([sent(right(question, at(6, hours=1)))])
    before = await make.progress(engine)
    # As if it had been stored before the rule about times, with one that nobody could read.
    await make.execute(
        engine,
        "UPDATE study_question_attempts SET answered_at_sent = NULL WHERE answered_at = :at",
        at=at(6, hours=1),
    )
    await make.execute(
        engine, "UPDATE study_quiz_sessions SET finalized_at = :at", at=at(6, hours=2)
    )
    done = await rebuild(engine, 1, Policy())
    assert done.times > 0 and done.progress == 0 and await make.progress(engine) == before
    await ingest([sent(wrong(question, at(6, hours=1.5)))])
    assert len(read) == 2


async def test_after_an_erasure_nothing_is_remembered(
    engine: AsyncEngine, question: Published
) -> None:
    ingest = Ingest(engine, Policy())
    await long_history(ingest, question)
    await erase(engine, 1, await survey(engine, 1, lambda *_: None), BY)
    later = datetime.now(UTC)
    for moment in (later, later - timedelta(microseconds=1)):
        await ingest([sent(wrong(question, moment))])
    ((_, row),) = (await make.progress(engine)).items()
    assert row["attempts_count"] == 2


async def test_two_workers_and_an_operator_in_any_order(engine: AsyncEngine) -> None:
    chance = random.Random(7)
    questions = await make.publish(engine, 3)
    workers = [Ingest(engine, Policy()), Ingest(engine, Policy())]
    days = [day + hours for day in range(80) for hours in (0, 0.25, 0.5)]
    # Mostly in order, as two devices are that were offline for a while.
    days.sort(key=lambda day: day + chance.uniform(0, 15))
    done = []
    for start in range(0, len(days), 6):
        group = []
        for day in days[start : start + 6]:
            done.append(uuid4())
            asked = chance.sample(questions, 2)
            answers = [answer(each, chance.randint(0, 2), at(day)) for each in asked]
            group.append(sent(*answers, uuid=done[-1]))
        await chance.choice(workers)(group)
        if chance.random() < 0.1:
            await void(engine, chance.choice(done), Policy(), BY)
        assert await verify(engine, 1, Policy()) == []


def test_only_so_much_is_remembered_and_the_last_change_longest() -> None:
    def standing(version: int) -> Standing:
        return Standing(1, 1, 1, RIGHT, None, False, None, version)

    recent = Recent(attempts_max=3 * (5 + 10))
    history = History(None, [scored(answered_at=at(day)) for day in range(10)])
    for question_id in (1, 2, 3):
        recent.keep({(1, question_id): history}, Mark(EPOCH, question_id))
    recent.keep({(1, 1): history}, Mark(EPOCH, 4))
    recent.keep({(1, 4): history}, Mark(EPOCH, 5))
    now = {
        (1, 1): standing(4),
        (1, 2): standing(2),
        (1, 3): standing(3),
        (1, 4): standing(5),
        (2, 1): standing(4),
        (None, 1): standing(4),
    }
    assert recent.among(now, EPOCH).keys() == {(1, 1), (1, 3), (1, 4)}
    assert recent.among({(1, 1): standing(1), (1, 3): standing(0)}, EPOCH) == {}
    assert recent.among(now, "another server") == {}
