"""The publisher confirms each message or raises an error."""

import asyncio
from collections.abc import Sequence

import pytest
from aiormq.channel import Channel
from pydantic import SecretStr
from structlog.testing import capture_logs

from schemas import amqp
from tests.broker_fixtures import VIEWER, Broker, publish, until
from worker.broker import topology
from worker.broker.burst import Outgoing
from worker.broker.management import Management
from worker.broker.publisher import Publisher, Unroutable, outgoing
from worker.errors import Unconfirmed

pytestmark = pytest.mark.broker

KEY = amqp.attempts_key(VIEWER)


def _message(message_id: str, key: str = KEY, body: bytes = b"x") -> Outgoing:
    return outgoing(amqp.INGEST_EXCHANGE, key, body, message_id=message_id, type="t.v1", headers={})


async def test_a_confirmed_message_is_in_the_queue_with_its_properties(
    broker: Broker, publisher: Publisher
) -> None:
    message = outgoing(
        amqp.INGEST_EXCHANGE, KEY, b"{}", message_id="m-1", type="t.v1", headers={"a": "1"}
    )
    assert await publisher.publish_all([message]) == [None]
    found = await broker.take(amqp.ATTEMPTS_QUEUE)

    assert (found.body, found.routing_key, found.headers) == (b"{}", KEY, {"a": "1"})
    kept = {name: found.properties[name] for name in ("message_id", "type", "content_type")}
    assert kept == {"message_id": "m-1", "type": "t.v1", "content_type": "application/json"}
    assert found.properties["delivery_mode"] == 2


async def test_many_are_in_flight_at_once(broker: Broker, publisher: Publisher) -> None:
    await asyncio.gather(
        *(publish(publisher, amqp.INGEST_EXCHANGE, KEY, b"x") for _ in range(1_200))
    )
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 1_200)


async def test_among_many_only_the_unroutable_fail(broker: Broker, publisher: Publisher) -> None:
    keys = [KEY if n % 3 else "nobody.is.bound" for n in range(150)]
    fates = await asyncio.gather(
        *(publish(publisher, amqp.INGEST_EXCHANGE, key, b"x") for key in keys),
        return_exceptions=True,
    )
    assert [isinstance(fate, Unroutable) for fate in fates] == [key != KEY for key in keys]
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 100)


async def test_all_of_many_are_answered_in_their_order(
    broker: Broker, publisher: Publisher
) -> None:
    keys = [KEY if n % 3 else "nobody.is.bound" for n in range(250)]
    for _ in range(2):  # the same ids: once they are answered, they are nobody's
        fates = await publisher.publish_all([_message(f"m-{n}", key) for n, key in enumerate(keys)])
        assert [isinstance(fate, Unroutable) for fate in fates] == [key != KEY for key in keys]
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 2 * keys.count(KEY))
    first = [(await broker.take(amqp.ATTEMPTS_QUEUE)).properties["message_id"] for _ in range(3)]
    assert first == ["m-1", "m-2", "m-4"]
    assert await publisher.publish_all([]) == []

    # The client keeps nothing of what was answered.
    assert publisher._wire is not None
    channel = await publisher._wire._channel.get_underlay_channel()
    assert isinstance(channel, Channel)
    assert len(channel.confirmations) == len(channel.message_id_delivery_tag) == 0


async def test_a_message_of_many_frames_arrives_as_it_is(
    broker: Broker, publisher: Publisher
) -> None:
    body = bytes(range(256)) * 2_000  # frames have 128 KiB at most
    assert await publisher.publish_all([_message("m-1", body=body), _message("m-2")]) == [None] * 2
    assert (await broker.take(amqp.ATTEMPTS_QUEUE)).body == body
    assert (await broker.take(amqp.ATTEMPTS_QUEUE)).body == b"x"


async def test_a_full_queue_refuses(
    broker: Broker, publisher: Publisher, management: Management
) -> None:
    small = broker.settings.model_copy(update={"max_queue_bytes": 1})
    await topology.apply(management, small)

    async def refused() -> Sequence[BaseException | None]:
        return await asyncio.gather(
            *(publish(publisher, amqp.INGEST_EXCHANGE, KEY, b"x" * 500) for _ in range(5)),
            return_exceptions=True,
        )

    # The queue learns of its bound a moment after the policy is set.
    fates = await until(refused, lambda fates: any(fates))
    assert "refused a message" in str(next(fate for fate in fates if fate))
    some = await publisher.publish_all([_message("m-1"), _message("m-2", "nobody.is.bound")])
    assert "refused a message" in str(some[0])
    assert isinstance(some[1], Unroutable)


async def test_one_id_is_never_twice_in_flight(broker: Broker, publisher: Publisher) -> None:
    twice = await asyncio.gather(
        *(publish(publisher, amqp.INGEST_EXCHANGE, KEY, b"x", message_id="same") for _ in range(2)),
        return_exceptions=True,
    )
    await publish(publisher, amqp.INGEST_EXCHANGE, KEY, b"x", message_id="same")
    with pytest.raises(ValueError, match="'same' is empty, repeated or still in flight"):
        await publisher.publish_all([_message("other"), _message("same"), _message("same")])

    assert [type(fate) for fate in twice] == [type(None), ValueError]
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 2)


async def test_a_lost_connection_fails_what_was_in_flight_and_the_next_works(
    broker: Broker, publisher: Publisher
) -> None:
    with capture_logs() as lines:
        await publish(publisher, amqp.INGEST_EXCHANGE, KEY, b"x")
        await broker.cut("publisher")

        async def published() -> bool:
            try:
                await publish(publisher, amqp.INGEST_EXCHANGE, KEY, b"x")
            except Unconfirmed:
                return False
            return True

        await until(lambda: broker.connections("publisher"), lambda names: not names)
        await until(published, bool)

    events = [line["event"] for line in lines]
    assert events == ["publisher.lost", "publisher.restored"]


async def test_a_connection_lost_between_publishes_costs_none_of_them(
    broker: Broker, publisher: Publisher
) -> None:
    await publish(publisher, amqp.INGEST_EXCHANGE, KEY, b"x")
    await until(lambda: broker.connections("publisher"), bool)
    await broker.cut("publisher")

    async def noticed() -> bool:
        return publisher._wire is not None and not publisher._wire.is_open

    await until(noticed, bool)
    await publish(publisher, amqp.INGEST_EXCHANGE, KEY, b"x")
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 2)


async def test_a_late_confirm_counts_as_unknown(broker: Broker) -> None:
    impatient = broker.settings.model_copy(update={"publish_timeout": 0.000_1})
    async with Publisher(impatient) as publisher:
        with pytest.raises(Unconfirmed, match="not confirmed"):
            await publish(publisher, amqp.INGEST_EXCHANGE, KEY, b"x")
    async with Publisher(impatient) as publisher:
        fates = await publisher.publish_all([_message(f"m-{n}") for n in range(300)])
        assert len(fates) == 300
        assert all("not confirmed" in str(fate) for fate in fates)


async def test_an_exchange_that_is_missing_costs_nobody_else(
    broker: Broker, publisher: Publisher
) -> None:
    with pytest.raises(Unconfirmed, match="no exchange 'nowhere'"):
        await publish(publisher, "nowhere", KEY, b"x")

    async def published() -> bool:
        try:
            await publish(publisher, amqp.INGEST_EXCHANGE, KEY, b"x")
        except Unconfirmed:
            return False
        return True

    await until(published, bool)


async def test_a_broker_that_is_away_is_told_at_once_without_the_password(broker: Broker) -> None:
    nobody = "amqp://worker:s3cret@127.0.0.1:1/"
    away = broker.settings.model_copy(update={"amqp_url": SecretStr(nobody)})
    async with Publisher(away) as publisher:
        with pytest.raises(Unconfirmed) as raised:
            await publish(publisher, amqp.INGEST_EXCHANGE, KEY, b"x")
    assert "RabbitMQ at 127.0.0.1:1 can't be reached" in str(raised.value)
    assert "s3cret" not in str(raised.value)


async def test_a_wrong_login_is_told_without_the_password(broker: Broker) -> None:
    url = broker.settings.amqp_url.get_secret_value()
    wrong = url.replace(url.split("@")[0], "amqp://nobody:s3cret")
    stranger = broker.settings.model_copy(update={"amqp_url": SecretStr(wrong)})
    async with Publisher(stranger) as publisher:
        with pytest.raises(Unconfirmed) as raised:
            await publish(publisher, amqp.INGEST_EXCHANGE, KEY, b"x")
    assert "refuses user 'nobody'" in str(raised.value)
    assert "s3cret" not in str(raised.value)
