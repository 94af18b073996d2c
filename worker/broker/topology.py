"""The topology that the broker must have: exchanges, queues, bindings and policies, as data.

`study-ingest topology` applies it. Workers only check it, so that a difference is one clear error
at start, and never an endless reconnect. It is the same on RabbitMQ 3.10 and 4.x.

    study.ingest --attempts.v1.#--> study.attempts --limit--> study.attempts.dlx --> ...dead
                                      ^        |
              study.attempts.return --+        +--worker--> study.attempts.retry.<ms>, ...newer
                        ^                                            |
                        +---------------- time is up ----------------+
    study.ingest --progress.v1.*--> study.progress
    study.results (the queues of viewers are bound when a viewer is created)
    <MQTT's exchange> --attempts.#--> study.attempts; --progress.v1.*--> study.progress
    study.results --result.*, progress.*--> <MQTT's exchange>
    study.followups --explanation.requested, review.requested--> a durable queue for each

With partitions, everything that leads to study.attempts leads to study.attempts.partitions instead,
which deals it out by a hash of the routing key, and so of the viewer:

    study.ingest, ...return, <MQTT's> --> study.attempts.partitions --hash--> study.attempts.1, 2...

A copy that waits keeps its first routing key then, so that it comes back to its partition. Workers
go on to consume study.attempts: what was there before, or comes from an older worker, is not lost.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

from schemas import amqp
from schemas.followups import KINDS
from worker.broker.management import Json, Management
from worker.errors import TopologyError
from worker.settings import Settings

ATTEMPTS_POLICY: Final = amqp.ATTEMPTS_QUEUE

_REMEDY: Final = "run `study-ingest topology`"
_OLDEST: Final = (3, 10)
"""The first version whose quorum queues support at-least-once dead-lettering."""
_STREAMS_ALWAYS: Final = (3, 12)
"""From this version on the feature that it needs is always on. An upgraded older broker may lack
it.
"""

_QUORUM: Final[Json] = {"x-queue-type": "quorum"}
_SAFE_OVERFLOW: Final = "reject-publish"
"""Without this, the broker silently dead-letters at most once."""

_NO_DELIVERY_LIMIT: Final = 1_000_000
"""For queues that keep messages. From 4.0 on the default limit is 20, and without a dead-letter
exchange the 21st look at a message would drop it. (3.10 does not accept -1 for "no limit".)
"""

_DAY_MS: Final = 24 * 60 * 60 * 1000
_RESULTS_EXPIRE_DAYS: Final = 90
"""A viewer that does not come back for so long has been thrown away, as a rule. `viewer import`
makes the queue of one that does come back.
"""
_RESULTS_MAX: Final = 10_000
"""Results that wait for one viewer: 10 MB. A learner has a few each day."""

_HARMLESS_ARGUMENTS: Final = {
    "x-queue-leader-locator",
    "x-quorum-initial-group-size",
    "x-quorum-target-group-size",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
}
"""The operator of a cluster decides where it keeps a queue."""

_LET_GO: Final = "remove that policy, or change its pattern so that it matches no queue of ours"
"""A higher priority of our own policy would not do: not all of our queues have one."""

_LIMIT_KEYS: Final = ("max-length", "max-length-bytes")
"""Policy keys that drop the oldest messages, unless the queue refuses new ones instead."""

_DEADLY_KEYS: Final = ("message-ttl", "expires")
"""Policy keys that delete waiting batches, whoever set them."""

_HASH: Final = "x-consistent-hash"
_ONE_POINT: Final = "1"
"""The binding key of a partition: its weight in the hash."""
_ENABLE_HASH: Final = (
    "run `rabbitmq-plugins enable rabbitmq_consistent_hash_exchange` on every node of the broker,"
    " or set INGEST_PARTITIONS to 1."
)
QUEUES: Final = r"^study\.(attempts|followups)|^study\.progress$"
"""The names of the queues that `wanted` may have, and never of a viewer's."""
_PARTITIONS: Final = rf"^{re.escape(amqp.ATTEMPTS_QUEUE)}\.[0-9]+$"
_RESULTS_QUEUE: Final = re.compile(r"study\.results\.(.+)|mqtt-subscription-(.+)qos[01]")
_COUNTED_WITHIN: Final = 12.0
"""Seconds after which the broker's count of a queue shows what was there before. It counts every 5
seconds, and its management API asks every 5 seconds."""

_PASSING_MS: Final = 60_000
"""How long requests for progress, and their answers, live at most."""

_APPLIES_TO_QUORUM: Final = ("all", "queues", "quorum_queues")


@dataclass(frozen=True, slots=True)
class Exchange:
    name: str
    kind: Literal["topic", "fanout", "x-consistent-hash"]


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue. Its `arguments` can't be changed once it exists."""

    name: str
    arguments: Mapping[str, str | int]
    is_kept: bool = True
    """Whether no message in it may ever be lost."""


@dataclass(frozen=True, slots=True)
class Binding:
    exchange: str
    queue: str
    routing_key: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """A binding of one exchange to another."""

    source: str
    exchange: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class Policy:
    """Settings of one named queue, or of all with a prefix, that can be changed while messages
    flow.
    """

    name: str
    queue: str
    """The queue's name, or the prefix."""
    definition: Mapping[str, str | int]
    is_required: bool = True
    """Whether nobody may replace it by a policy of their own that loses no messages either."""
    is_prefix: bool = False

    @property
    def pattern(self) -> str:
        return f"^{re.escape(self.queue)}" + ("" if self.is_prefix else "$")


@dataclass(frozen=True, slots=True)
class Topology:
    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]
    links: tuple[Link, ...]
    policies: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """What `apply` did to one object. `left` means that it found the object and did not change
    it.
    """

    verb: Literal["created", "changed", "unchanged", "left", "removed"]
    what: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.what}" + (f": {self.detail}" if self.detail else "")


def retry_queue(delay: float) -> str:
    """The name of the queue in which a deferred message waits `delay` seconds."""
    return f"{amqp.RETRY_QUEUE_PREFIX}{_milliseconds(delay)}"


def delay_of(queue: str) -> float | None:
    """The seconds that a deferred message waits in this queue; None if it is no retry queue."""
    milliseconds = queue.removeprefix(amqp.RETRY_QUEUE_PREFIX)
    return int(milliseconds) / 1000 if milliseconds != queue and milliseconds.isdigit() else None


def viewer_of_results(queue: str) -> str | None:
    """The viewer for whose results a queue is: by AMQP, or a subscription by MQTT. None for any
    other queue.
    """
    found = _RESULTS_QUEUE.fullmatch(queue)
    return None if found is None else found[1] or found[2]


def wanted(settings: Settings) -> Topology:
    """Everything that must exist for these `settings`."""
    whole = _whole(settings)
    return whole if settings.partitions == 1 else _partitioned(whole, settings)


def _both(settings: Settings) -> tuple[Topology, Topology]:
    """The wanted topology, and the other one, with partitions or without."""
    others = 1 if settings.partitions > 1 else 2
    return wanted(settings), wanted(settings.model_copy(update={"partitions": others}))


def _whole(settings: Settings) -> Topology:
    """The topology without partitions."""
    # One queue for each delay, because only the head of a queue expires.
    ladder = (
        *(_waiting(retry_queue(delay), delay) for delay in sorted(set(settings.retry_delays))),
        _waiting(amqp.NEWER_QUEUE, settings.newer_version_delay),
    )
    mqtt = settings.mqtt_exchange
    kept = _QUORUM | {"x-delivery-limit": _NO_DELIVERY_LIMIT}
    followups = tuple(kind.routing_key for kind in KINDS)
    return Topology(
        exchanges=(
            Exchange(amqp.INGEST_EXCHANGE, "topic"),
            Exchange(amqp.RETURN_EXCHANGE, "fanout"),
            Exchange(amqp.DEAD_EXCHANGE, "fanout"),
            Exchange(amqp.RESULTS_EXCHANGE, "topic"),
            Exchange(amqp.FOLLOWUPS_EXCHANGE, "topic"),
        ),
        queues=(
            # The limit is an argument: 3.10 has no default, and before 4.3 a policy takes effect
            # too late.
            Queue(amqp.ATTEMPTS_QUEUE, _QUORUM | {"x-delivery-limit": settings.delivery_limit}),
            Queue(amqp.DEAD_QUEUE, kept),
            *ladder,
            *(Queue(amqp.followups_queue(key), kept) for key in followups),
            Queue(amqp.PROGRESS_QUEUE, {"x-queue-type": "classic"}, is_kept=False),
        ),
        bindings=(
            Binding(amqp.INGEST_EXCHANGE, amqp.ATTEMPTS_QUEUE, amqp.ATTEMPTS_BINDING),
            Binding(amqp.INGEST_EXCHANGE, amqp.ATTEMPTS_QUEUE, amqp.NEWER_BINDING),
            Binding(amqp.RETURN_EXCHANGE, amqp.ATTEMPTS_QUEUE),
            Binding(amqp.DEAD_EXCHANGE, amqp.DEAD_QUEUE),
            *(
                Binding(amqp.FOLLOWUPS_EXCHANGE, amqp.followups_queue(key), key)
                for key in followups
            ),
            Binding(amqp.INGEST_EXCHANGE, amqp.PROGRESS_QUEUE, amqp.PROGRESS_REQUESTS_BINDING),
            # The MQTT plugin publishes there what viewers in a browser send.
            *(
                Binding(each, queue, key)
                for each in [mqtt]
                if each
                for queue, key in (
                    (amqp.ATTEMPTS_QUEUE, amqp.NEWER_BINDING),
                    (amqp.PROGRESS_QUEUE, amqp.PROGRESS_REQUESTS_BINDING),
                )
            ),
        ),
        # The MQTT plugin binds their subscriptions there.
        links=tuple(
            Link(amqp.RESULTS_EXCHANGE, each, key)
            for each in [mqtt]
            if each
            for key in (amqp.RESULTS_BINDING, amqp.PROGRESS_BINDING)
        ),
        policies=(
            Policy(
                ATTEMPTS_POLICY,
                amqp.ATTEMPTS_QUEUE,
                {
                    "dead-letter-exchange": amqp.DEAD_EXCHANGE,
                    "dead-letter-strategy": "at-least-once",
                    "overflow": _SAFE_OVERFLOW,
                    "max-length-bytes": settings.max_queue_bytes,
                },
            ),
            # Not as arguments, which would differ from those of queues that exist already.
            *(
                Policy(
                    amqp.followups_queue(key),
                    amqp.followups_queue(key),
                    {"max-length": settings.max_followups, "overflow": _SAFE_OVERFLOW},
                    is_required=False,
                )
                for key in followups
            ),
            # Viewers' own queues. The oldest results go first: a batch that has no result is sent
            # again.
            Policy(
                amqp.RESULTS_EXCHANGE,
                f"{amqp.RESULTS_EXCHANGE}.",
                {
                    "expires": _RESULTS_EXPIRE_DAYS * _DAY_MS,
                    "max-length": _RESULTS_MAX,
                    "overflow": "drop-head",
                },
                is_required=False,
                is_prefix=True,
            ),
            # Requests, pages and nudges that nobody takes must not pile up.
            Policy(
                amqp.PROGRESS_QUEUE,
                amqp.PROGRESS_QUEUE,
                {"message-ttl": _PASSING_MS, "max-length": 10_000, "max-length-bytes": 2**26},
                is_required=False,
            ),
            Policy(
                f"{amqp.PROGRESS_QUEUE}.viewers",
                f"{amqp.PROGRESS_QUEUE}.",
                {
                    "expires": _RESULTS_EXPIRE_DAYS * _DAY_MS,
                    "message-ttl": _PASSING_MS,
                    "max-length": 200,
                    "max-length-bytes": 2**24,
                },
                is_required=False,
                is_prefix=True,
            ),
        ),
    )


def _partitioned(whole: Topology, settings: Settings) -> Topology:
    """The same, but what leads to the queue of batches leads to partitions of it."""
    names = [amqp.partition_queue(number) for number in range(1, settings.partitions + 1)]
    [common] = (queue for queue in whole.queues if queue.name == amqp.ATTEMPTS_QUEUE)
    [policy] = (policy for policy in whole.policies if policy.queue == common.name)
    # Copies are published to an exchange for each, and so need not have its name as routing key.
    waiting = [queue.name for queue in whole.queues if "x-message-ttl" in queue.arguments]
    direct = [binding for binding in whole.bindings if binding.queue == common.name]
    share = {"max-length-bytes": settings.max_queue_bytes // len(names)}
    return Topology(
        exchanges=(
            *whole.exchanges,
            Exchange(amqp.PARTITIONS_EXCHANGE, _HASH),
            *(Exchange(name, "fanout") for name in waiting),
        ),
        queues=(*whole.queues, *(replace(common, name=name) for name in names)),
        bindings=(
            *(binding for binding in whole.bindings if binding not in direct),
            *(Binding(amqp.PARTITIONS_EXCHANGE, name, _ONE_POINT) for name in names),
            *(Binding(name, name) for name in waiting),
        ),
        links=(
            *whole.links,
            *(Link(b.exchange, amqp.PARTITIONS_EXCHANGE, b.routing_key) for b in direct),
        ),
        policies=(
            *whole.policies,
            *(Policy(name, name, {**policy.definition, **share}) for name in names),
        ),
    )


def _waiting(name: str, delay: float) -> Queue:
    """A queue in which each message waits `delay` seconds and then returns to the workers."""
    return Queue(
        name,
        _QUORUM
        | {
            "x-message-ttl": _milliseconds(delay),
            "x-dead-letter-exchange": amqp.RETURN_EXCHANGE,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": _SAFE_OVERFLOW,
        },
    )


async def apply(management: Management, settings: Settings) -> list[Step]:
    """Creates what is missing and updates policies. Returns what it did, in order.

    It removes only what another number of partitions needed: the other way to the workers at once,
    and a partition once it is empty, which takes 12 seconds to find out.

    Call `check` afterwards, because another policy may still override what was applied.

    Raises `TopologyError` if the broker is too old, or if an exchange or queue exists with other
    properties (before anything is changed), and `BrokerAway` if the management API is unreachable.
    """
    must, other = _both(settings)
    await _check_broker(management)
    await _check_hash(management, must)
    found = await _Found.read(management, settings)
    _check_immutable(must, found)

    changes = await _create(
        (
            f"exchange {e.name}",
            e.name in found.exchanges,
            partial(management.declare_exchange, e.name, e.kind),
        )
        for e in must.exchanges
    )
    # Before the queues, so that no queue exists without its policy, even for a moment.
    changes += [await _apply_policy(management, found, policy) for policy in must.policies]
    changes += await _create(
        (
            f"queue {q.name}",
            q.name in found.queues,
            partial(management.declare_queue, q.name, dict(q.arguments)),
        )
        for q in must.queues
    )
    changes += await _create(
        (
            _describe(b),
            b in found.bindings,
            partial(management.bind, b.exchange, b.queue, b.routing_key),
        )
        for b in must.bindings
    )
    changes += await _create(
        (
            _describe(each),
            each in found.links,
            partial(management.bind_exchange, each.source, each.exchange, each.routing_key),
        )
        for each in must.links
    )
    known = {queue.name for queue in must.queues}
    changes += [
        Step("left", f"queue {name}", "no retry delay uses it; delete it once it is empty")
        for name in sorted(found.queues)
        if name.startswith(amqp.RETRY_QUEUE_PREFIX) and name not in known
    ]
    # Last, so that there is a way to the workers at every moment: a batch that takes both is a
    # duplicate, and one that finds none would be lost.
    changes += [await _unbind(management, way) for way in _replaced(must, other, found)]
    changes += await _remove_partitions(management, settings, found)
    return changes


def _replaced(must: Topology, other: Topology, found: "_Found") -> list[Link | Binding]:
    """The ways of batches that exist for another number of partitions."""
    links = [link for link in other.links if link in found.links and link not in must.links]
    bindings = [
        binding
        for binding in sorted(found.bindings, key=str)
        if binding not in must.bindings
        and (
            binding.exchange == amqp.PARTITIONS_EXCHANGE
            or (binding.queue == amqp.ATTEMPTS_QUEUE and binding in other.bindings)
        )
    ]
    return [*links, *bindings]


async def _unbind(management: Management, way: Link | Binding) -> Step:
    if isinstance(way, Link):
        await management.unbind(way.source, "e", way.exchange, way.routing_key)
    else:
        await management.unbind(way.exchange, "q", way.queue, way.routing_key)
    return Step("removed", _describe(way))


async def _remove_partitions(
    management: Management, settings: Settings, found: "_Found"
) -> list[Step]:
    """Deletes partitions that are not wanted any more and empty, and after the last one what they
    needed.

    A quorum queue can't be deleted on the condition that it is empty. So a partition is deleted
    only if nothing has led to it since before it was counted, and nothing can be taken from it:
    some brokers count more seldom than others.
    """
    must, other = _both(settings)
    known = {queue.name for queue in must.queues}
    old = {name for name in found.queues if amqp.is_partition(name) and name not in known}
    bound = {binding.queue for binding in found.bindings if binding.exchange}
    if any(not found.queues[name].get("messages") for name in old - bound):
        await asyncio.sleep(_COUNTED_WITHIN)
        found = await _Found.read(management, settings)
    gone, steps = [], []
    for name in sorted(old & found.queues.keys()):
        left = found.queues[name].get("messages")
        if name not in bound and left == 0 and not await management.has_message(name):
            gone.append(("queue", "queues", name))
            gone += [("policy", "policies", p["name"]) for p in found.policies if p["name"] == name]
        else:
            waits = f"{left} messages wait in it" if left else "messages may wait in it"
            steps.append(Step("left", f"queue {name}", f"{waits}; run this again in a minute"))
    if not steps and not any(map(amqp.is_partition, known)):
        unused = {exchange.name for exchange in other.exchanges if exchange not in must.exchanges}
        gone += [
            ("exchange", "exchanges", name) for name in sorted(unused & found.exchanges.keys())
        ]
    for what, kind, name in gone:
        await management.delete(kind, name)
        steps.append(Step("removed", f"{what} {name}"))
    return steps


async def check(management: Management, settings: Settings) -> int:
    """Returns the number of partitions in use, if it is safe to consume from the broker. It changes
    nothing.

    Any number of partitions is safe, whatever the settings say: workers consume those that exist.
    So the number can be changed while they run.

    Raises `TopologyError` with one sentence about the first problem and its fix, and `BrokerAway`
    if the management API is unreachable.
    """
    await _check_broker(management)
    found = await _Found.read(management, settings)
    must = wanted(settings.model_copy(update={"partitions": found.partitions}))
    await _check_hash(management, must)
    _check_immutable(must, found)
    for exchange in must.exchanges:
        if exchange.name not in found.exchanges:
            raise TopologyError(f"Exchange {exchange.name} is missing", f"{_REMEDY}.")
    for queue in must.queues:
        if queue.name not in found.queues:
            raise TopologyError(f"Queue {queue.name} is missing", f"{_REMEDY}.")
    wanted_bindings: tuple[Binding | Link, ...] = (*must.bindings, *must.links)
    for binding in wanted_bindings:
        if binding not in (found.links if isinstance(binding, Link) else found.bindings):
            raise TopologyError(f"The {_describe(binding)} is missing", f"{_REMEDY}.")
    for policy in must.policies:
        if policy.is_required:
            _check_policy(policy, found)
    for queue in must.queues:
        if queue.is_kept:
            _check_kept(queue, found)
    return found.partitions


async def is_partitioned(management: Management) -> bool:
    """Whether batches are dealt out to partitions. Raises what `check` raises."""
    return await management.leads_somewhere(amqp.PARTITIONS_EXCHANGE)


async def partitions(management: Management) -> frozenset[str]:
    """The queues of the partitions that exist, with those that are not wanted any more but may have
    messages. The broker looks through all its queues for that. Raises what `check` raises.
    """
    return frozenset(queue["name"] for queue in await management.queues(_PARTITIONS))


async def second_ways(management: Management, settings: Settings) -> list[str]:
    """The bindings by which batches reach workers a second time, as a program that knows no
    partitions leaves them. Raises what `check` raises.
    """
    found = await _Found.read(management, settings)
    must, other = _both(settings.model_copy(update={"partitions": found.partitions}))
    return [_describe(way) for way in _replaced(must, other, found)]


@dataclass(frozen=True, slots=True)
class _Found:
    """What exists in the vhost now, without the queues of viewers and what leads to them."""

    exchanges: dict[str, Json]
    queues: dict[str, Json]
    bindings: frozenset[Binding]
    links: frozenset[Link]
    policies: tuple[Json, ...]
    operator_policies: tuple[Json, ...]

    @property
    def partitions(self) -> int:
        """The number of partitions among which batches are dealt out; 1 if there are none."""
        way = Link(amqp.INGEST_EXCHANGE, amqp.PARTITIONS_EXCHANGE, amqp.ATTEMPTS_BINDING)
        if way not in self.links:
            return 1
        # Not fewer than 2: whoever has one partition only has lost the others.
        return max(2, sum(each.exchange == amqp.PARTITIONS_EXCHANGE for each in self.bindings))

    @classmethod
    async def read(cls, management: Management, settings: Settings) -> "_Found":
        exchanges, queues, policies, operator_policies = await asyncio.gather(
            management.exchanges(),
            management.queues(QUEUES),
            management.policies(),
            management.operator_policies(),
        )
        there = {exchange["name"]: exchange for exchange in exchanges}
        linked = {link.exchange for topology in _both(settings) for link in topology.links}
        ends = [("exchanges", name) for name in sorted(linked & there.keys())]
        ends += [("queues", queue["name"]) for queue in queues]
        # Not all bindings of the vhost, because each viewer has some.
        found = await asyncio.gather(*(management.bindings_to(*end) for end in ends))
        bindings = [binding for some in found for binding in some]
        return cls(
            there,
            {queue["name"]: queue for queue in queues},
            frozenset(
                Binding(binding["source"], binding["destination"], binding["routing_key"])
                for binding in bindings
                if binding["destination_type"] == "queue"
            ),
            frozenset(
                Link(binding["source"], binding["destination"], binding["routing_key"])
                for binding in bindings
                if binding["destination_type"] == "exchange"
            ),
            tuple(policies),
            tuple(operator_policies),
        )


async def _check_broker(management: Management) -> None:
    version = await management.version()
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < _OLDEST:
        raise TopologyError(
            f"RabbitMQ {version} can't dead-letter at least once",
            "upgrade it to 3.10 or later.",
        )
    if numbers >= _STREAMS_ALWAYS:
        return
    try:
        flags = await management.feature_flags()
    except TopologyError:
        return  # only an administrator may see it, and a worker is none; `apply` has checked it
    for flag in flags:
        if flag["name"] == "stream_queue" and flag["state"] == "disabled":
            raise TopologyError(
                "The broker's feature flag stream_queue is off, so it can't dead-letter at least"
                " once",
                "run `rabbitmqctl enable_feature_flag stream_queue`.",
            )


async def _check_hash(management: Management, must: Topology) -> None:
    is_needed = any(exchange.kind == _HASH for exchange in must.exchanges)
    if is_needed and _HASH not in await management.exchange_types():
        raise TopologyError(
            "The broker has no exchanges that deal messages out by a hash, which partitions need",
            _ENABLE_HASH,
        )


def _check_immutable(must: Topology, found: _Found) -> None:
    for exchange in must.exchanges:
        there = found.exchanges.get(exchange.name)
        if there is not None:
            _same(f"Exchange {exchange.name}", "type", there["type"], exchange.kind)
            _same(f"Exchange {exchange.name}", "durable", there["durable"], True)
    for queue in must.queues:
        there = found.queues.get(queue.name)
        if there is not None:
            has = there["arguments"]
            for key in sorted({*queue.arguments, *has} - _HARMLESS_ARGUMENTS):
                _same(f"Queue {queue.name}", key, has.get(key), queue.arguments.get(key))
            _same(f"Queue {queue.name}", "durable", there["durable"], True)


def _same(what: str, key: str, has: object, must: object) -> None:
    if has != must:
        instead = (
            f"set INGEST_DELIVERY_LIMIT to {has}, or"
            if key == "x-delivery-limit" and has is not None
            else "once nothing waits in it,"
        )
        raise TopologyError(
            f"{what} has {key} {_shown(has)} where it must be {_shown(must)}, which can't be"
            " changed while it exists",
            f"{instead} delete it and {_REMEDY}.",
        )


def _shown(value: object) -> str:
    return "none" if value is None else str(value)[:100]


async def _apply_policy(management: Management, found: _Found, policy: Policy) -> Step:
    what = f"policy {policy.name}"
    there = next((p for p in found.policies if p["name"] == policy.name), None)
    same_place = there is not None and (there["pattern"], there["apply-to"]) == (
        policy.pattern,
        "queues",
    )
    if there is not None and same_place and there["definition"] == policy.definition:
        return Step("unchanged", what)
    await management.set_policy(
        policy.name,
        pattern=policy.pattern,
        apply_to="queues",  # 3.10 does not know quorum_queues
        priority=there["priority"] if there is not None else 0,
        definition=dict(policy.definition),
    )
    if there is None:
        return Step("created", what)
    before = there["definition"]
    differences = [
        f"{key} {_shown(before.get(key))} -> {_shown(policy.definition.get(key))}"
        for key in sorted({*before, *policy.definition})
        if before.get(key) != policy.definition.get(key)
    ]
    return Step("changed", what, ", ".join(differences) or "pattern")


def _check_policy(policy: Policy, found: _Found) -> None:
    """Checks the policy of a queue. Of all that match, only the one with the highest priority
    applies.
    """
    matching = _matching(policy.queue, found.policies)
    if not any(p["name"] == policy.name for p in matching):
        raise TopologyError(f"Policy {policy.name} is missing", f"{_REMEDY}.")
    highest = max(p["priority"] for p in matching)
    # If two have the same priority, the broker's choice is undefined, so all must be right.
    for winner in (p for p in matching if p["priority"] == highest):
        definition = winner["definition"]
        remedy = _REMEDY if winner["name"] == policy.name else _LET_GO
        for key, must in policy.definition.items():
            if definition.get(key) != must:
                raise TopologyError(
                    f"Policy {winner['name']} rules queue {policy.queue} and gives it"
                    f" {key} {_shown(definition.get(key))} where it must be {_shown(must)}",
                    f"{remedy}.",
                )


def _check_kept(queue: Queue, found: _Found) -> None:
    """Checks that no policy, of a user or of the broker's operator, lets a queue lose messages."""
    for kind, policies in (
        ("Policy", found.policies),
        ("Operator policy", found.operator_policies),
    ):
        matching = _matching(queue.name, policies)
        highest = max((p["priority"] for p in matching), default=0)
        for policy in (p for p in matching if p["priority"] == highest):
            for key in _deadly(queue, policy["definition"]):
                remedy = _REMEDY if policy["name"] == queue.name else _LET_GO
                raise TopologyError(
                    f"{kind} {policy['name']} gives queue {queue.name} {key}"
                    f" {_shown(policy['definition'][key])}, which takes waiting messages away",
                    f"{remedy}.",
                )


def _deadly(queue: Queue, definition: Json) -> Iterator[str]:
    """The keys of a policy by which this queue loses messages."""
    for key in _DEADLY_KEYS:
        # A queue in which messages wait for their time returns them to the workers.
        if key in definition and not (key == "message-ttl" and "x-message-ttl" in queue.arguments):
            yield key
    overflow = queue.arguments.get("x-overflow") or definition.get("overflow")
    if overflow != _SAFE_OVERFLOW:
        yield from (key for key in _LIMIT_KEYS if key in definition)


def _matching(queue: str, policies: Iterable[Json]) -> list[Json]:
    return [
        p for p in policies if p["apply-to"] in _APPLIES_TO_QUORUM and _matches(p["pattern"], queue)
    ]


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return True  # The broker's regular expressions may differ: do not miss it.


async def _create(
    objects: Iterable[tuple[str, bool, Callable[[], Awaitable[None]]]],
) -> list[Step]:
    """Creates the missing ones of these (object, whether it exists, how to create it), all at
    once.
    """
    objects = tuple(objects)
    await asyncio.gather(*(create() for _, exists, create in objects if not exists))
    return [Step("unchanged" if exists else "created", what) for what, exists, _ in objects]


def _describe(binding: Binding | Link) -> str:
    key = f" by {binding.routing_key}" if binding.routing_key else ""
    if isinstance(binding, Link):
        return f"binding of exchange {binding.exchange} to {binding.source}{key}"
    return f"binding of {binding.queue} to {binding.exchange}{key}"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
