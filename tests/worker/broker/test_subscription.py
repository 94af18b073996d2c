"""Acks of a subscription, in any order and grouping, on a real broker: what stays in the queue."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import amqp
from tests.broker_fixtures import PATIENCE, Broker
from worker.broker.subscription import Delivery, Subscription

pytestmark = pytest.mark.broker

COUNT = 8


class _Hand:
    """What has arrived, in order."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.is_full = asyncio.Event()

    def take(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        if len(self.deliveries) == COUNT:
            self.is_full.set()


@pytest.fixture
def hand() -> _Hand:
    return _Hand()


@pytest.fixture
async def subscription(broker: Broker, hand: _Hand) -> AsyncIterator[Subscription]:
    subscription = await Subscription.open(
        broker.settings, amqp.ATTEMPTS_QUEUE, hand.take, lambda: None
    )
    await subscription.consume(COUNT)
    yield subscription
    await subscription.close()


async def _ack(deliveries: Sequence[Delivery]) -> bool:
    first, *others = deliveries
    return await first.ack_with(others)


async def _fill(broker: Broker, hand: _Hand) -> list[Delivery]:
    hand.deliveries, hand.is_full = [], asyncio.Event()
    for number in range(COUNT):
        await broker.publish(f"{number}")
    await asyncio.wait_for(hand.is_full.wait(), PATIENCE)
    return hand.deliveries


async def test_what_is_not_acked_comes_back(
    broker: Broker, hand: _Hand, subscription: Subscription
) -> None:
    one, two, three, four, five, *rest = await _fill(broker, hand)
    assert await _ack([three, four])
    assert await _ack([one])
    assert await five.give_back()
    assert await _ack([two])  # all up to the fifth is settled now, the last of it not by an ack
    await subscription.cancel()
    await subscription.close()
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 1 + len(rest))
    left = [(await broker.take(amqp.ATTEMPTS_QUEUE)).body for _ in range(1 + len(rest))]
    assert sorted(left) == sorted(each.body for each in (five, *rest))


@given(st.permutations(range(COUNT)), st.lists(st.integers(1, 3), min_size=COUNT))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_any_order_and_grouping_of_acks_settles_everything_and_is_no_fault(
    broker: Broker,
    hand: _Hand,
    subscription: Subscription,
    order: list[int],
    sizes: list[int],
) -> None:
    deliveries = await _fill(broker, hand)
    left = [deliveries[place] for place in order]
    for size in sizes:
        if left:
            assert await _ack(left[:size])
            left = left[size:]
    # A broker that is told of a tag twice closes the channel, and one that was not told of a tag
    # sends so many fewer: as many again can only come where neither happened.
    assert await _ack(await _fill(broker, hand))
    assert not subscription.is_lost
