"""The law, on the real database: whatever the order, duplication and interleaving in which
batches arrive, over any number of workers, the stored progress is the same.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from tests.factories import Published, answer, at, sent
from tests.worker.domain import naive
from tests.worker.domain.strategies import ANSWERS, MINUTES
from worker.domain import history
from worker.domain.dispositions import Busy, Disposition, Duplicate, Ingested
from worker.domain.policy import Policy
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.operate.repair import verify
from worker.store import principals
from worker.store.engine import transaction

USERS = (1, 2, 3)

SESSIONS = st.lists(
    st.tuples(
        st.sampled_from(USERS),
        st.lists(st.tuples(st.integers(0, 2), ANSWERS, MINUTES), min_size=1, max_size=4),
        st.integers(0, 2**100),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda session: session[2],
)


@pytest.fixture(autouse=True)
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is remembered, almost everything is folded, as of a long history."""
    monkeypatch.setattr(history, "_LATEST_MIN", 1)
    monkeypatch.setattr(history, "_LATEST_MAX", 2)


@pytest.fixture
async def shelves(engine: AsyncEngine) -> dict[int, list[Published]]:
    """Three questions for each user, in two topics."""
    return {
        user_id: [
            *await make.publish(engine, 2, user_id=user_id),
            *await make.publish(engine, 1, user_id=user_id),
        ]
        for user_id in USERS
    }


def _deliveries(drawn: object, shelves: dict[int, list[Published]]) -> list[Incoming]:
    assert isinstance(drawn, list)
    return [
        sent(
            *(
                answer(shelves[user_id][number], choice, at(minutes=minutes), unsure=unsure)
                for number, (choice, unsure), minutes in answers
            ),
            uuid=UUID(int=uuid + 1),
        )
        for user_id, answers, uuid in drawn
    ]


def _first_time(delivery: Incoming) -> datetime:
    attempts = delivery.content.attempts  # type: ignore[union-attr]
    return min(time for attempt in attempts if (time := attempt.sent_at()))


async def _worker(ingest: Ingest, groups: list[list[Incoming]]) -> list[Disposition | Busy]:
    return [each for group in groups for each in await ingest(group)]


async def _agrees_with_the_contract(engine: AsyncEngine) -> None:
    progress = await make.progress(engine)
    log = await make.log(engine)
    assert progress.keys() == log.keys()
    for key, attempts in log.items():
        stability, difficulty, due_at = naive.schedule(attempts)
        row = progress[key]
        expected = naive.counts(attempts) | {"due_at": due_at}
        assert row == row | expected
        assert row["stability"] == pytest.approx(stability, rel=1e-9)
        assert row["difficulty"] == pytest.approx(difficulty, rel=1e-9)
        assert row["pattern"] == naive.pattern(attempts, row["stability"])
    for user_id in await make.users(engine):
        assert await verify(engine, user_id, Policy()) == []


@given(st.data())
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_any_order_any_groups_any_workers_one_progress(
    engine: AsyncEngine, shelves: dict[int, list[Published]], data: st.DataObject
) -> None:
    deliveries = _deliveries(data.draw(SESSIONS), shelves)
    for delivery in sorted(deliveries, key=_first_time):
        await Ingest(engine, Policy())([delivery])
    in_order = await make.progress(engine)
    await _agrees_with_the_contract(engine)
    await make.forget(engine)

    repeats = data.draw(st.lists(st.sampled_from(deliveries), max_size=4))
    arriving = data.draw(st.permutations([*deliveries, *repeats]))
    crew: list[list[list[Incoming]]] = [[] for _ in range(data.draw(st.integers(1, 4)))]
    while arriving:
        size = data.draw(st.integers(1, 4))
        crew[data.draw(st.integers(0, len(crew) - 1))].append(arriving[:size])
        arriving = arriving[size:]
    dispositions = await asyncio.gather(
        *(_worker(Ingest(engine, Policy()), groups) for groups in crew)
    )

    assert await make.progress(engine) == in_order
    await _agrees_with_the_contract(engine)
    kinds = [type(each) for done in dispositions for each in done]
    assert kinds.count(Ingested) == len(deliveries)
    assert kinds.count(Duplicate) == len(repeats)
    await make.forget(engine)


async def test_clocks_ahead_and_no_clocks_are_folded_by_their_receipt(
    engine: AsyncEngine, shelves: dict[int, list[Published]]
) -> None:
    """The times of receipt differ from run to run, so the log itself says what must come of it."""
    ahead = datetime.now(UTC) + timedelta(days=300)
    times = [ahead, None, at(0), ahead + timedelta(days=1), ahead - timedelta(days=1), at(5)]
    groups = [
        [
            sent(
                answer(shelves[user_id][0], 1 + (number + turn) % 2, times[number % 6]),
                answer(shelves[user_id][0], 1, times[(number + turn) % 6], unsure=turn == 2),
            )
            for user_id in USERS[turn % 2 :]
        ]
        for turn in range(4)
        for number in range(6)
    ]
    await asyncio.gather(*(_worker(Ingest(engine, Policy()), groups[lane::4]) for lane in range(4)))
    assert await make.count(engine, "ingest_inbox") == sum(map(len, groups))
    await _agrees_with_the_contract(engine)


async def test_a_batch_that_began_before_another_may_commit_after_it(
    engine: AsyncEngine, shelves: dict[int, list[Published]]
) -> None:
    """Its receipt is the earlier one, so its clamped answers are late to what is folded."""
    (other, *_), (question, *_) = shelves[3], shelves[1]
    async with transaction(engine) as holds_other:
        await principals.lock(holds_other, [3])
        async with transaction(engine) as holds_user:
            await principals.lock(holds_user, [1])
            # Both are held, so it waits for both, and for the other's first.
            early = asyncio.create_task(
                Ingest(engine, Policy())(
                    [sent(make.right(question, None)), sent(make.right(other, None))]
                )
            )
            await make.blocked(engine, 1)
        (late,) = await Ingest(engine, Policy())([sent(make.wrong(question, None))])
    first, _ = await early

    assert isinstance(first, Ingested) and isinstance(late, Ingested)
    assert first.received_at < late.received_at
    row = (await make.progress(engine))[1, question.question_id]
    assert (row["last_outcome"], row["lapse_count"]) == ("wrong", 1)
    await _agrees_with_the_contract(engine)
