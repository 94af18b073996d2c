"""One transaction does a bounded amount of work, and waiting for another is no batch's fault."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tests import factories as make
from tests.factories import Published, at, right, sent, wrong
from worker.domain.dispositions import Busy, Ingested
from worker.domain.policy import Policy
from worker.errors import PrincipalInUse
from worker.ingest import transaction as module
from worker.ingest.finalize import finalize
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.operate.repair import verify
from worker.settings import Settings
from worker.store import principals
from worker.store.engine import make_engine, transaction

HISTORY = 8


@pytest.fixture
async def shelf(engine: AsyncEngine) -> list[Published]:
    """Two questions of one user and one of another, each with a history."""
    questions = [*await make.publish(engine, 2, user_id=1), *await make.publish(engine, user_id=2)]
    for question in questions:
        await Ingest(engine, Policy())(
            [sent(*(right(question, at(10 + day)) for day in range(HISTORY)))]
        )
    return questions


def _again(*group: Incoming) -> list[Incoming]:
    return [replace(each, can_come_again=True) for each in group]


async def _received(engine: AsyncEngine) -> int:
    """The number of transactions that ingested something."""
    return len({row["received_at"] for row in await make.rows(engine, "TABLE ingest_inbox")})


async def _agrees(engine: AsyncEngine) -> None:
    for user_id in await make.users(engine):
        assert await verify(engine, user_id, Policy()) == []


async def test_a_group_is_cut_where_its_late_questions_have_too_many_attempts(
    engine: AsyncEngine, shelf: list[Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FOLDED_AT_ONCE", HISTORY)
    first, second, other = shelf
    before = await _received(engine)

    found = await Ingest(engine, Policy())(
        [sent(wrong(each, at(day))) for day in (1, 2) for each in (first, second, other)]
    )

    assert all(isinstance(each, Ingested) for each in found)
    assert await _received(engine) - before == 3, "one for each question"
    await _agrees(engine)


async def test_what_was_cut_off_comes_again_and_the_rest_is_not_held_up(
    engine: AsyncEngine, shelf: list[Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FOLDED_AT_ONCE", HISTORY)
    first, second, other = shelf
    group = _again(
        sent(wrong(first, at(1))),
        sent(wrong(second, at(1))),
        sent(wrong(first, at(2))),  # costs nothing more
        sent(right(second, at(90))),  # is not late, but what was left out would be on it
        sent(wrong(other, at(90))),
    )

    assert await _types(engine, group) == [Ingested, Busy, Ingested, Busy, Ingested]
    assert await _types(engine, [group[1], group[3]]) == [Ingested, Ingested]
    await _agrees(engine)


async def _types(engine: AsyncEngine, group: list[Incoming]) -> list[Any]:
    return [type(each) for each in await Ingest(engine, Policy())(group)]


async def test_a_batch_that_is_over_the_bound_by_itself_is_ingested(
    engine: AsyncEngine, shelf: list[Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FOLDED_AT_ONCE", 1)
    assert await _types(engine, [sent(*(wrong(each, at(1)) for each in shelf[:2]))]) == [Ingested]
    await _agrees(engine)


@pytest.mark.parametrize("days", [[1], [*range(90, 90 + HISTORY)]], ids=["late", "many"])
async def test_a_long_fold_leaves_the_event_loop_free(
    engine: AsyncEngine,
    shelf: list[Published],
    monkeypatch: pytest.MonkeyPatch,
    days: list[int],
) -> None:
    monkeypatch.setattr(module, "_FOLDED_INLINE", HISTORY - 1)
    real, ran_in = finalize, list[threading.Thread]()
    turned = asyncio.Event()
    loop = asyncio.get_running_loop()

    def waits_for_the_loop(*arguments: Any) -> Any:
        ran_in.append(threading.current_thread())
        if ran_in[-1] is not threading.main_thread():
            asyncio.run_coroutine_threadsafe(_set(turned), loop).result(60)
        return real(*arguments)

    monkeypatch.setattr(module, "finalize", waits_for_the_loop)
    await Ingest(engine, Policy())([sent(right(shelf[0], at(80)))])
    await Ingest(engine, Policy())([sent(*(wrong(shelf[0], at(day)) for day in days))])

    assert [each is threading.main_thread() for each in ran_in] == [True, False]
    assert turned.is_set()
    await _agrees(engine)


async def _set(event: asyncio.Event) -> None:
    event.set()


@pytest.fixture
async def impatient(database_url: str) -> AsyncIterator[AsyncEngine]:
    """A pool whose sessions hardly wait for a lock."""
    settings = Settings(database_url=database_url, amqp_url="amqp://unused", lock_timeout=0.05)  # type: ignore[arg-type]
    engine = make_engine(settings, connections=2, name="impatient")
    yield engine
    await engine.dispose()


async def test_a_principal_that_is_in_use_for_long_is_busy_and_no_fault(
    engine: AsyncEngine, impatient: AsyncEngine, shelf: list[Published]
) -> None:
    async with transaction(engine) as holds:
        await principals.lock(holds, [1])
        found = await Ingest(impatient, Policy())(
            [sent(right(shelf[0], at(30))), sent(right(shelf[2], at(30)))]
        )
    assert [type(each) for each in found] == [Busy, Ingested]


async def test_batches_of_principals_that_are_all_in_use_for_long_are_told_so(
    engine: AsyncEngine, impatient: AsyncEngine, shelf: list[Published]
) -> None:
    for some in (shelf[:1], shelf[:2]):
        async with transaction(engine) as holds:
            await principals.lock(holds, [1])
            with pytest.raises(PrincipalInUse, match="INGEST_LOCK_TIMEOUT"):
                await Ingest(impatient, Policy())([sent(right(each, at(30))) for each in some])


async def _hold_turn(connection: AsyncConnection, turn: int) -> None:
    taken = await principals.lock_free(connection, [10_000 + turn], turns=turn)
    assert len(taken) == 1


async def test_a_group_takes_a_turn_that_is_free(
    engine: AsyncEngine, shelf: list[Published]
) -> None:
    async with transaction(engine) as holds:
        await _hold_turn(holds, 1)
        found = await Ingest(engine, Policy(), turns=2)([sent(right(each)) for each in shelf[:2]])
    assert [type(each) for each in found] == [Ingested] * 2


async def test_a_group_waits_for_a_turn_and_is_then_ingested_whole(
    engine: AsyncEngine, shelf: list[Published]
) -> None:
    async with transaction(engine) as holds:
        await _hold_turn(holds, 1)
        ingesting = asyncio.create_task(
            Ingest(engine, Policy(), turns=1)([sent(right(each)) for each in shelf[:2]])
        )
        await make.blocked(engine, 1)
        assert await make.count(engine, "ingest_inbox") == len(shelf)
        # One that takes no turns, as in workers of an earlier version, and one batch alone.
        await Ingest(engine, Policy())([sent(right(each)) for each in shelf[:2]])
        await Ingest(engine, Policy(), turns=1)([sent(right(shelf[0]))])
    assert [type(each) for each in await ingesting] == [Ingested] * 2
    await _agrees(engine)


async def test_a_group_whose_turn_never_comes_is_ingested_without_one(
    engine: AsyncEngine, impatient: AsyncEngine, shelf: list[Published]
) -> None:
    async with transaction(engine) as holds:
        await _hold_turn(holds, 1)
        found = await Ingest(impatient, Policy(), turns=1)(
            [sent(right(each, at(30))) for each in shelf[:2]]
        )
    assert [type(each) for each in found] == [Ingested] * 2


async def test_all_turns_are_free_again_after_the_transactions(
    engine: AsyncEngine, impatient: AsyncEngine, shelf: list[Published]
) -> None:
    for number in range(3):
        await Ingest(engine, Policy(), turns=1)(
            [sent(right(each, at(number))) for each in shelf[:2]]
        )
    async with transaction(impatient) as holds:
        await _hold_turn(holds, 1)
