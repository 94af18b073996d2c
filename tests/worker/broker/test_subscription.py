"""Acks of a subscription, in any order and grouping, on a real broker: what stays in the queue."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import amqp
from tests.broker_fixtures import PATIENCE, Broker
from worker.broker.subscription import Delivery, Subscription
from worker.errors import BrokerAway

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


async def test_a_result_that_is_not_acked_is_delivered_again(
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


@pytest.mark.parametrize(
    ("places", "is_cancelled", "left"),
    [
        pytest.param([0, 1, 2], False, 5, id="all up to one go at once"),
        pytest.param([2, 3, 4, 5], False, 8, id="those beyond wait"),
        pytest.param([1, 2, 3, 4, 5], False, 3, id="not more than half"),
        pytest.param([2, 3], True, 6, id="not once no more come"),
    ],
)
async def test_acks_wait_for_an_earlier_one_while_deliveries_come(
    broker: Broker,
    hand: _Hand,
    subscription: Subscription,
    places: list[int],
    is_cancelled: bool,
    left: int,
) -> None:
    deliveries = await _fill(broker, hand)
    assert await _ack([deliveries[place] for place in places])
    if is_cancelled:
        await subscription.cancel()
    await subscription.consume(COUNT)  # on the same channel: what was sent before has arrived
    await subscription.close()
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, left)


@pytest.mark.parametrize("how", ["acked", "given back"])
async def test_an_ack_that_waits_goes_when_the_earlier_one_is_settled(
    broker: Broker, hand: _Hand, subscription: Subscription, how: str
) -> None:
    one, *others = await _fill(broker, hand)
    assert await _ack(others[:4])
    assert await (one.ack() if how == "acked" else one.give_back())
    await subscription.consume(COUNT)
    await subscription.close()
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, COUNT - 4 - (how == "acked"))


@given(st.permutations(range(COUNT)), st.lists(st.integers(1, 3), min_size=COUNT))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
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


@pytest.mark.parametrize("step", ["basic_qos", "basic_consume"])
async def test_a_broker_that_does_not_answer_while_consuming_begins_is_away(
    step: str, broker: Broker, hand: _Hand
) -> None:
    subscription = await Subscription.open(
        broker.settings, amqp.ATTEMPTS_QUEUE, hand.take, lambda: None
    )

    async def silence(*_: object, **__: object) -> None:
        raise TimeoutError

    setattr(subscription._channel, step, silence)
    queues = [amqp.ATTEMPTS_QUEUE, amqp.DEAD_QUEUE]
    with pytest.raises(BrokerAway, match=r"study\.attempts, study\.attempts\.dead can't be"):
        await subscription.consume(COUNT, queues)
    assert subscription.is_lost
    await subscription.close()
