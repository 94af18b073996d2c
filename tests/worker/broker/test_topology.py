"""The topology can be applied twice, and each unsafe difference is refused in one sentence."""

from typing import Any

import pytest

from schemas import amqp
from schemas.followups import KINDS
from tests.broker_fixtures import VIEWER, Broker, publish
from worker.broker import topology
from worker.broker.management import Management
from worker.broker.publisher import Publisher
from worker.errors import TopologyError
from worker.settings import Settings

pytestmark = pytest.mark.broker

REMEDY = "run `study-ingest topology`"


async def refusal(management: Management, settings: Settings) -> str:
    """The sentence with which `check` refuses the broker."""
    with pytest.raises(TopologyError) as raised:
        await topology.check(management, settings)
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def changed(settings: Settings, **update: Any) -> Settings:
    return settings.model_copy(update=update)


def verbs(changes: list[topology.Step]) -> dict[str, str]:
    return {change.what: change.verb for change in changes}


# Applying


async def test_applying_creates_everything_and_again_changes_nothing(
    bare_broker: Broker, management: Management
) -> None:
    first = await topology.apply(management, bare_broker.settings)
    await topology.check(management, bare_broker.settings)
    again = await topology.apply(management, bare_broker.settings)

    assert {change.verb for change in first} == {"created"}
    assert {change.verb for change in again} == {"unchanged"}
    assert [change.what for change in again] == [change.what for change in first]
    assert "created queue study.attempts" in [str(change) for change in first]


async def test_a_policy_follows_its_setting_and_says_what_changed(
    broker: Broker, management: Management
) -> None:
    smaller = changed(broker.settings, max_queue_bytes=1_000_000)
    changes = await topology.apply(management, smaller)
    await topology.check(management, smaller)

    [policy] = [change for change in changes if change.verb != "unchanged"]
    before = broker.settings.max_queue_bytes
    assert str(policy) == f"changed policy study.attempts: max-length-bytes {before} -> 1000000"


async def test_the_queues_of_jobs_are_bounded_and_their_bound_can_be_another(
    broker: Broker, management: Management
) -> None:
    queue = amqp.followups_queue("review.requested")
    smaller = changed(broker.settings, max_followups=7)
    await topology.apply(management, smaller)
    (policy,) = (each for each in await management.policies() if each["name"] == queue)
    assert policy["definition"] == {"max-length": 7, "overflow": "reject-publish"}
    # Workers of the version before and a house with a policy of its own go on.
    await broker.delete("policies", queue)
    await topology.check(management, broker.settings)
    await broker.put_policy(
        "house",
        pattern=queue,
        apply_to="queues",
        definition={"max-length-bytes": 9_000, "overflow": "reject-publish"},
    )
    await topology.check(management, broker.settings)


async def test_a_retry_queue_without_a_delay_is_left_and_told(
    broker: Broker, management: Management
) -> None:
    slower = changed(broker.settings, retry_delays=(0.1, 9.0))
    changes = verbs(await topology.apply(management, slower))
    await topology.check(management, slower)

    assert changes["queue study.attempts.retry.100"] == "unchanged"
    assert changes["queue study.attempts.retry.9000"] == "created"
    assert changes["queue study.attempts.retry.200"] == "left"
    assert await broker.depth("study.attempts.retry.200") == 0  # it is still there


async def test_only_what_is_missing_is_created(broker: Broker, management: Management) -> None:
    await broker.delete_queue(amqp.DEAD_QUEUE)
    changes = verbs(await topology.apply(management, broker.settings))

    assert {what for what, verb in changes.items() if verb == "created"} == {
        "queue study.attempts.dead",
        "binding of study.attempts.dead to study.attempts.dlx",
    }


async def test_apply_changes_nothing_if_an_object_can_not_be_changed(
    bare_broker: Broker, management: Management
) -> None:
    await management.declare_queue(amqp.ATTEMPTS_QUEUE, {"x-queue-type": "classic"})
    with pytest.raises(TopologyError, match="has x-delivery-limit none"):
        await topology.apply(management, bare_broker.settings)

    names = {exchange["name"] for exchange in await management.exchanges()}
    assert amqp.INGEST_EXCHANGE not in names


# Checking


async def test_an_empty_broker_is_refused(bare_broker: Broker, management: Management) -> None:
    assert await refusal(management, bare_broker.settings) == (
        f"Exchange study.ingest is missing: {REMEDY}."
    )


@pytest.mark.parametrize(
    "queue",
    ["study.attempts", "study.attempts.dead", "study.attempts.retry.100"],
)
async def test_a_missing_queue_is_refused(
    queue: str, broker: Broker, management: Management
) -> None:
    await broker.delete_queue(queue)
    assert await refusal(management, broker.settings) == f"Queue {queue} is missing: {REMEDY}."


async def test_a_missing_exchange_is_refused(broker: Broker, management: Management) -> None:
    await broker.delete("exchanges", amqp.DEAD_EXCHANGE)
    assert await refusal(management, broker.settings) == (
        f"Exchange study.attempts.dlx is missing: {REMEDY}."
    )


async def test_a_missing_binding_is_refused(broker: Broker, management: Management) -> None:
    source, queue = amqp.RETURN_EXCHANGE, amqp.ATTEMPTS_QUEUE
    await broker.delete("bindings", f"e/{source}/q/{queue}/~")
    assert await refusal(management, broker.settings) == (
        f"The binding of study.attempts to study.attempts.return is missing: {REMEDY}."
    )


async def test_another_delivery_limit_is_refused_and_named(
    broker: Broker, management: Management
) -> None:
    sentence = await refusal(management, changed(broker.settings, delivery_limit=7))
    assert sentence == (
        "Queue study.attempts has x-delivery-limit 20 where it must be 7, which can't be changed"
        f" while it exists: set INGEST_DELIVERY_LIMIT to 20, or delete it and {REMEDY}."
    )


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("study.attempts", {"x-queue-type": "classic"}, "x-delivery-limit none"),
        ("study.attempts.dead", {"x-queue-type": "quorum"}, "x-delivery-limit none"),
        (
            "study.attempts.dead",
            {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000, "x-message-ttl": 5000},
            "x-message-ttl 5000 where it must be none",
        ),
    ],
)
async def test_other_arguments_are_refused_and_named(
    name: str, arguments: dict[str, Any], named: str, broker: Broker, management: Management
) -> None:
    await broker.delete_queue(name)
    await management.declare_queue(name, arguments)
    assert f"Queue {name} has {named}" in await refusal(management, broker.settings)


async def test_where_a_cluster_keeps_a_queue_is_its_operators_choice(
    broker: Broker, management: Management
) -> None:
    await broker.delete_queue(amqp.DEAD_QUEUE)
    wanted = next(
        queue for queue in topology.wanted(broker.settings).queues if queue.name == amqp.DEAD_QUEUE
    )
    await management.declare_queue(
        wanted.name, dict(wanted.arguments) | {"x-quorum-initial-group-size": 1}
    )
    await topology.apply(management, broker.settings)
    await topology.check(management, broker.settings)


async def test_another_type_of_exchange_is_refused(broker: Broker, management: Management) -> None:
    await broker.delete("exchanges", amqp.RETURN_EXCHANGE)
    await management.declare_exchange(amqp.RETURN_EXCHANGE, "direct")
    assert "has type direct where it must be fanout" in await refusal(management, broker.settings)


async def test_a_missing_policy_is_refused(broker: Broker, management: Management) -> None:
    await broker.delete("policies", "study.attempts")
    assert await refusal(management, broker.settings) == (
        f"Policy study.attempts is missing: {REMEDY}."
    )


async def test_a_policy_that_drops_is_refused(broker: Broker, management: Management) -> None:
    definition = dict(topology.wanted(broker.settings).policies[0].definition)
    await broker.put_policy(
        "study.attempts",
        pattern=r"^study\.attempts$",
        apply_to="queues",
        definition=definition | {"overflow": "drop-head"},
    )
    assert await refusal(management, broker.settings) == (
        "Policy study.attempts rules queue study.attempts and gives it overflow drop-head where"
        f" it must be reject-publish: {REMEDY}."
    )


async def test_a_stronger_policy_that_wins_is_refused_by_name(
    broker: Broker, management: Management
) -> None:
    await broker.put_policy(
        "everything", pattern=".*", apply_to="all", priority=5, definition={"max-length": 9}
    )
    await topology.apply(management, broker.settings)  # which can't help it
    assert await refusal(management, broker.settings) == (
        "Policy everything rules queue study.attempts and gives it dead-letter-exchange none where"
        " it must be study.attempts.dlx: remove that policy, or change its pattern so that it"
        " matches no queue of ours."
    )


@pytest.mark.parametrize(
    "definition",
    [
        {"message-ttl": 5_000},
        {"expires": 60_000},
        {"max-length": 9},
        {"max-length-bytes": 9, "overflow": "drop-head"},
    ],
    ids=str,
)
async def test_a_weaker_policy_that_empties_another_queue_is_refused(
    definition: dict[str, Any], broker: Broker, management: Management
) -> None:
    await broker.put_policy(
        "house", pattern=".*", apply_to="all", priority=-1, definition=definition
    )
    key = next(iter(definition))
    assert await refusal(management, broker.settings) == (
        f"Policy house gives queue study.attempts.dead {key} {definition[key]}, which takes waiting"
        " messages away: remove that policy, or change its pattern so that it matches no queue of"
        " ours."
    )


@pytest.mark.parametrize("queue", ["study.attempts.newer", "study.followups.review.requested"])
async def test_a_policy_for_one_queue_that_keeps_messages_is_refused(
    queue: str, broker: Broker, management: Management
) -> None:
    await broker.put_policy(
        "house", pattern=f"^{queue}$", apply_to="queues", definition={"expires": 9_000_000}
    )
    assert f"Policy house gives queue {queue} expires" in await refusal(management, broker.settings)


async def test_a_policy_of_the_broker_s_operator_is_refused(
    broker: Broker, management: Management
) -> None:
    body = {"pattern": ".*", "apply-to": "queues", "definition": {"message-ttl": 5_000}}
    path = f"operator-policies/{broker.vhost}/house"
    (await broker.api.put(path, json=body)).raise_for_status()
    sentence = await refusal(management, broker.settings)
    assert sentence.startswith("Operator policy house gives queue study.attempts message-ttl 5000")


async def test_a_policy_that_loses_nothing_is_no_concern(
    broker: Broker, management: Management
) -> None:
    for name, definition in {
        "waits": {"message-ttl": 60_000},  # of a queue that returns its messages in time anyway
        "full": {"max-length": 9},
    }.items():
        await broker.put_policy(
            name, pattern=r"^study\.attempts\.newer$", apply_to="queues", definition=definition
        )
    await broker.put_policy(
        "others", pattern="^elsewhere", apply_to="all", priority=9, definition={"expires": 9_000}
    )
    await topology.check(management, broker.settings)


async def test_a_policy_that_lets_batches_expire_is_refused(
    broker: Broker, management: Management
) -> None:
    definition = dict(topology.wanted(broker.settings).policies[0].definition)
    await broker.put_policy(
        "study.attempts",
        pattern=r"^study\.attempts$",
        apply_to="queues",
        definition=definition | {"message-ttl": 60_000},
    )
    sentence = await refusal(management, broker.settings)
    assert sentence == (
        "Policy study.attempts gives queue study.attempts message-ttl 60000, which takes waiting"
        f" messages away: {REMEDY}."
    )


async def test_an_old_broker_is_refused(broker: Broker) -> None:
    class Old(Management):
        async def version(self) -> str:
            return "3.9.29"

    async with Old(broker.settings) as management:
        assert await refusal(management, broker.settings) == (
            "RabbitMQ 3.9.29 can't dead-letter at least once: upgrade it to 3.10 or later."
        )


# What it does


async def test_a_message_that_kills_its_workers_is_parked_by_the_broker(
    bare_broker: Broker, management: Management
) -> None:
    settings = changed(bare_broker.settings, delivery_limit=5)
    await topology.apply(management, settings)
    await bare_broker.publish(b"poison")
    queue = await (await bare_broker.channel()).get_queue(amqp.ATTEMPTS_QUEUE, ensure=False)
    for _ in range(6):
        message = await queue.get(timeout=60)
        assert message is not None
        await message.reject(requeue=True)
    parked = await bare_broker.take(amqp.DEAD_QUEUE)

    assert parked.body == b"poison"
    assert parked.routing_key == amqp.attempts_key(VIEWER)
    assert parked.headers["x-first-death-reason"] == "delivery_limit"


async def test_a_message_returns_through_the_return_exchange_after_its_delay(
    broker: Broker, publisher: Publisher
) -> None:
    await publish(publisher, "", topology.retry_queue(0.1), b"again")
    returned = await broker.take(amqp.ATTEMPTS_QUEUE)

    assert (returned.body, returned.exchange) == (b"again", amqp.RETURN_EXCHANGE)


async def test_followups_wait_for_their_service(broker: Broker, publisher: Publisher) -> None:
    for key in [kind.routing_key for kind in KINDS]:
        await publish(publisher, amqp.FOLLOWUPS_EXCHANGE, key, key.encode())
        assert (await broker.take(amqp.followups_queue(key))).body == key.encode()
