"""Partitions on a real broker: one viewer's batches find one of them, and none is lost by changing
their number.
"""

import asyncio
from collections import Counter
from itertools import chain

import pytest

from devtools.rabbitmq import MANAGEMENT, RabbitMQ
from schemas import amqp
from tests.broker_fixtures import Broker, make_settings, until
from worker.broker import copies, topology
from worker.broker.copies import Envelope
from worker.broker.management import Management
from worker.broker.publisher import Publisher
from worker.errors import TopologyError

pytestmark = pytest.mark.broker

VIEWERS = [f"viewer-{number}" for number in range(12)]


async def apply(management: Management, broker: Broker, partitions: int) -> list[str]:
    settings = broker.settings.model_copy(update={"partitions": partitions})
    steps = await topology.apply(management, settings)
    await topology.check(management, settings)
    return [str(step) for step in steps if step.verb != "unchanged"]


async def layout(management: Management, broker: Broker) -> tuple[object, ...]:
    """Everything that the vhost has of ours."""
    return (
        {exchange["name"] for exchange in await management.exchanges()},
        await management.queue_names(),
        {
            (each["source"], each["destination"], each["routing_key"])
            for each in (await broker.api.get(f"bindings/{broker.vhost}")).json()
        },
        {policy["name"]: policy["definition"] for policy in await management.policies()},
    )


async def publish(broker: Broker, *viewers: str) -> None:
    for viewer in viewers:
        await broker.publish(viewer, routing_key=amqp.attempts_key(viewer))


async def drain(broker: Broker, *queues: str) -> dict[str, list[str]]:
    """Takes everything out of the queues: bodies by queue."""
    found: dict[str, list[str]] = {}
    for queue in queues:
        source = await (await broker.channel()).get_queue(queue, ensure=False)
        while (message := await source.get(no_ack=True, fail=False)) is not None:
            found.setdefault(queue, []).append(message.body.decode())
    return found


QUEUES = [amqp.partition_queue(number) for number in range(1, 5)]


async def test_one_partition_is_exactly_the_topology_without(
    bare_broker: Broker, management: Management
) -> None:
    await apply(management, bare_broker, 1)
    exchanges, queues, _, _ = await layout(management, bare_broker)
    assert not any("partition" in name or "retry" in name for name in exchanges)  # type: ignore[attr-defined]
    assert not any(map(amqp.is_partition, queues))  # type: ignore[call-overload]


async def test_all_batches_of_a_viewer_go_to_one_partition(
    broker: Broker, management: Management
) -> None:
    await apply(management, broker, 4)
    await publish(broker, *VIEWERS, *VIEWERS, *VIEWERS)
    found = await drain(broker, amqp.ATTEMPTS_QUEUE, *QUEUES)
    assert set(found) <= {*QUEUES}
    assert len(found) > 1
    of_viewer = [viewer for bodies in found.values() for viewer in set(bodies)]
    assert sorted(of_viewer) == sorted(VIEWERS)
    assert Counter(chain(*found.values())) == dict.fromkeys(VIEWERS, 3)


async def test_what_comes_back_finds_the_partition_of_its_viewer(
    broker: Broker, management: Management, publisher: Publisher
) -> None:
    await apply(management, broker, 4)
    await publish(broker, *VIEWERS)
    first = await drain(broker, *QUEUES)
    settings = broker.settings
    for viewer in VIEWERS:
        envelope = Envelope(viewer, amqp.attempts_key(viewer), version=(1, 0))
        body = viewer.encode()
        await copies.defer(publisher, body, envelope, settings.retry_delays[0], to_partition=True)
        await copies.postpone(publisher, body, envelope, to_partition=True)
        replay = copies.replay_copy(body, envelope)
        assert await publisher.publish_all([replay]) == [None]
    await broker.until_depth(topology.retry_queue(settings.retry_delays[0]), 0)
    back = await drain(broker, *QUEUES)
    assert await broker.depth(amqp.NEWER_QUEUE) == len(VIEWERS)
    assert {queue: sorted(bodies) for queue, bodies in back.items()} == {
        queue: sorted(bodies * 2) for queue, bodies in first.items()
    }
    assert await broker.depth(amqp.ATTEMPTS_QUEUE) == 0


@pytest.mark.parametrize("partitions", [1, 4])
async def test_a_copy_of_a_worker_that_has_not_seen_the_change_comes_back_as_well(
    partitions: int, broker: Broker, management: Management, publisher: Publisher
) -> None:
    """It publishes as was right before."""
    await apply(management, broker, partitions)
    envelope = Envelope("ada", amqp.attempts_key("ada"), version=(1, 0))
    delay = broker.settings.retry_delays[0]
    await copies.defer(publisher, b"{}", envelope, delay, to_partition=partitions == 1)
    places = [amqp.ATTEMPTS_QUEUE] if partitions == 1 else QUEUES
    await until(lambda: _depth(broker, places), (1).__eq__)


async def _depth(broker: Broker, queues: list[str]) -> int:
    return sum([await broker.depth(queue) for queue in queues])


async def test_changing_the_number_loses_nothing_and_says_what_it_removed(
    broker: Broker, management: Management, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "_COUNTED_WITHIN", 2.5)  # this broker counts every second
    before = await layout(management, broker)
    published: list[str] = []
    stop = asyncio.Event()

    async def viewers() -> None:
        while not stop.is_set():
            body = f"{len(published)}"
            await broker.publish(body, routing_key=amqp.attempts_key(VIEWERS[len(published) % 12]))
            published.append(body)

    publishing = asyncio.create_task(viewers())
    steps = {}
    for number in (4, 2, 3, 1):
        steps[number] = await apply(management, broker, number)
    stop.set()
    await publishing

    removed = "removed binding of exchange study.attempts.partitions to study.ingest by attempts.#"
    assert removed in steps[1]
    assert "removed binding of study.attempts to study.ingest by attempts.v1.#" in steps[4]
    assert "removed binding of study.attempts.3 to study.attempts.partitions by 1" in steps[2]
    waiting = [step for step in steps[1] if step.startswith("left queue study.attempts.")]
    assert len(waiting) == 4  # the fourth one waits since the second change

    found = await drain(broker, amqp.ATTEMPTS_QUEUE, *QUEUES)
    assert {*chain(*found.values())} == {*published}
    assert len(found) == 5
    await until(lambda: _counted(management), (0).__eq__)
    last = await apply(management, broker, 1)
    assert "removed queue study.attempts.3" in last
    assert await layout(management, broker) == before


async def _counted(management: Management) -> int:
    """What the broker's own count says, which lags."""
    return sum([queue.get("messages", 1) for queue in await management.queues(topology.QUEUES)])


async def test_a_broker_that_does_not_know_the_hash_is_refused_with_the_command() -> None:
    with RabbitMQ(plugins=(MANAGEMENT,)) as node:
        settings = make_settings(node.url, management_url=node.management_url, partitions=2)
        async with Management(settings) as management:
            with pytest.raises(TopologyError) as raised:
                await topology.apply(management, settings)
            assert await management.queue_names() == set()  # before anything was changed
    assert str(raised.value) == (
        "The broker has no exchanges that deal messages out by a hash, which partitions need: run"
        " `rabbitmq-plugins enable rabbitmq_consistent_hash_exchange` on every node of the broker,"
        " or set INGEST_PARTITIONS to 1."
    )
