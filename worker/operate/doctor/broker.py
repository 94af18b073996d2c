"""The findings about the broker: topology, limits, dead-lettering, timeouts, alarms, rights,
clock.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from schemas import amqp
from schemas.followups import KINDS
from worker.broker import topology
from worker.broker.inspection import Inspection
from worker.broker.management import Json
from worker.broker.message_size import MAX_MESSAGE_SIZE, accepts
from worker.errors import BrokerAway, TopologyError
from worker.operate.doctor.finding import Finding, of_error
from worker.settings import Settings

_OLDEST, _NEWEST = (3, 10), (4, 3)
"""The versions that the tests run with; docs/versions.md names them all."""
_ACK_TIMEOUT = 1_800.0
"""The broker's default, in seconds. If an operator has changed it, the broker does not say so."""
_SKEW = 5.0
_POLICY = "effective_policy_definition"
"""The effective policy of a queue, including the policies of the broker's operator."""
_STATISTICS_COME_WITHIN = 12
"""Seconds. The broker gathers statistics every 5 seconds, and may be busy."""
_PUBLISHES_TO = (
    amqp.RESULTS_EXCHANGE,
    amqp.FOLLOWUPS_EXCHANGE,
    amqp.RETURN_EXCHANGE,
    "amq.default",
)
"""The exchanges to which a worker, or an operator's replay, publishes."""


async def examine(settings: Settings, inspection: Inspection) -> list[Finding]:
    """The findings."""
    found = _version(await inspection.version())
    try:
        partitions = await topology.check(inspection, settings)
        found.append(Finding("topology", "ok", "Exchanges, queues and policies are right."))
        ways = await topology.second_ways(inspection, settings)
        found += _partitions(partitions, settings, ways)
    except TopologyError as error:
        found.append(of_error("topology", error))
    queues = await _queues(inspection)
    if (attempts := queues.get(amqp.ATTEMPTS_QUEUE)) is not None:
        found += [
            *_delivery_limit(attempts, settings),
            *_dead_lettering(attempts),
            *_ack_timeout(attempts, settings),
        ]
    found += _followups(queues)
    found += _members([*queues.values()])
    found += await _nodes(inspection)
    found.append(await _message_size(settings))
    found += await _rights(inspection, sorted(filter(amqp.is_partition, queues)))
    found += _clock(await inspection.clock(), datetime.now(UTC))
    return found


def _partitions(in_use: int, settings: Settings, ways: Sequence[str]) -> Iterator[Finding]:
    if ways:
        yield Finding(
            "partitions",
            "warning",
            f"Batches also reach workers by the {ways[0]}, so that each is ingested once and found"
            " to be a duplicate once.",
            "Run `study-ingest topology` of this version.",
        )
    elif in_use != settings.partitions:
        yield Finding(
            "partitions",
            "note",
            f"INGEST_PARTITIONS is {settings.partitions} here, and the broker has {in_use}.",
            "`study-ingest topology` changes the broker to what its settings say.",
        )
    else:
        number = f"{in_use} partitions" if in_use > 1 else "no partitions"
        yield Finding("partitions", "ok", f"The queue has {number}.")


async def _queues(inspection: Inspection) -> dict[str, Json]:
    """The queues by name. A new queue is complete only after the broker's next statistics."""
    for _ in range(_STATISTICS_COME_WITHIN):
        queues = {queue["name"]: queue for queue in await inspection.queues(topology.QUEUES)}
        attempts = queues.get(amqp.ATTEMPTS_QUEUE)
        if attempts is None or attempts.get(_POLICY):
            break
        await asyncio.sleep(1)
    return queues


def _version(version: str) -> list[Finding]:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers >= (4, 3):
        counts = "counts a return if a worker dies or rejects, but not if it returns messages"
    else:
        counts = "counts every return, even if a worker returns messages or loses its connection"
    found = [Finding("returns", "ok", f"RabbitMQ {version} {counts}.")]
    if numbers < _OLDEST:
        found.append(
            Finding(
                "version",
                "danger",
                f"RabbitMQ {version} is not supported: 3.10 is the oldest version that is.",
                "Upgrade it to 4.x.",
            )
        )
    elif numbers[:2] > _NEWEST:
        found.append(
            Finding(
                "version",
                "note",
                f"This program is not tested with RabbitMQ {version}, which is newer than 4.3.",
                "Try it before you rely on it, or use a version that docs/versions.md names.",
            )
        )
    elif (4, 3) <= numbers < (4, 3, 3):
        found.append(
            Finding(
                "version",
                "warning",
                f"RabbitMQ {version} can lose messages that a leader treated as committed.",
                "Upgrade it to 4.3.3 or later.",
            )
        )
    elif numbers < (3, 13):
        found.append(
            Finding(
                "version",
                "note",
                f"RabbitMQ {version} is no longer supported by its makers.",
                "Upgrade it to 4.x when you can. This program is tested with both.",
            )
        )
    return found


def _delivery_limit(queue: Json, settings: Settings) -> Iterator[Finding]:
    limits = [
        limit
        for limit in (
            queue["arguments"].get("x-delivery-limit"),
            (queue.get(_POLICY) or {}).get("delivery-limit"),
        )
        if isinstance(limit, int)
    ]
    limit = min(limits, default=None)
    if limit is None:
        yield Finding(
            "delivery limit",
            "danger",
            f"{queue['name']} has no delivery limit, so a batch that kills workers is delivered"
            " for ever.",
            "Delete the queue when it is empty, and run `study-ingest topology`.",
        )
    elif limit <= settings.alone_after:
        yield Finding(
            "delivery limit",
            "danger",
            f"{queue['name']} gives a batch up after {limit} returns, before it would be processed"
            f" alone (after {settings.alone_after}). Good batches are given up with it.",
            "Remove the policy that sets delivery-limit, or lower INGEST_ALONE_AFTER.",
        )
    else:
        yield Finding("delivery limit", "ok", f"The broker gives a batch up after {limit} returns.")


def _dead_lettering(queue: Json) -> Iterator[Finding]:
    policy = queue.get(_POLICY) or {}
    must = {"dead-letter-strategy": "at-least-once", "overflow": "reject-publish"}
    wrong = [f"{key} {policy.get(key) or 'none'}" for key in must if policy.get(key) != must[key]]
    if wrong or "dead-letter-exchange" not in policy:
        yield Finding(
            "dead letters",
            "danger",
            f"{queue['name']} has {', '.join(wrong) or 'no dead-letter exchange'}. Batches that"
            " the broker gives up can be lost.",
            "Run `study-ingest topology`, and remove operator policies that override its policy.",
        )
    else:
        yield Finding(
            "dead letters",
            "ok",
            "Batches that the broker gives up become dead letters, at least once.",
        )


def _ack_timeout(queue: Json, settings: Settings) -> Iterator[Finding]:
    policy = queue.get(_POLICY) or {}
    said = queue["arguments"].get("x-consumer-timeout") or policy.get("consumer-timeout")
    timeout = said / 1000 if isinstance(said, int) else _ACK_TIMEOUT
    longest = settings.hold_timeout + settings.transaction_timeout + settings.publish_timeout
    whose = "the queue's" if said else "the broker's usual"
    if longest >= timeout:
        yield Finding(
            "ack timeout",
            "danger",
            f"A worker may hold a batch for {longest:g} s, but {whose} ack timeout is"
            f" {timeout:g} s. The broker then closes its channel and delivers everything again.",
            "Lower INGEST_HOLD_TIMEOUT, or raise consumer_timeout in the broker.",
        )
    else:
        yield Finding(
            "ack timeout",
            "ok",
            f"A worker holds a batch for at most {longest:g} s, and {whose} ack timeout is"
            f" {timeout:g} s.",
        )


def _followups(queues: Mapping[str, Json]) -> Iterator[Finding]:
    left = [
        (kind.routing_key, queue)
        for kind in KINDS
        if (queue := queues.get(amqp.followups_queue(kind.routing_key))) is not None
        and queue.get("messages_ready")
        and not queue.get("consumers")
    ]
    for kind, queue in left:
        yield Finding(
            "follow-up jobs",
            "warning",
            f"{queue['messages_ready']} jobs wait in {queue['name']}, and nobody consumes it.",
            f"Start the service that takes them. If nobody wants them, leave {kind} out of"
            " INGEST_FOLLOWUPS, and purge the queue.",
        )
    if not left:
        yield Finding("follow-up jobs", "ok", "No jobs wait without a consumer.")


def _members(queues: Sequence[Json]) -> Iterator[Finding]:
    for queue in queues:
        missing = set(queue.get("members") or ()) - set(queue.get("online") or ())
        if missing:
            yield Finding(
                "replicas",
                "warning",
                f"{queue['name']} lacks these members: {', '.join(sorted(missing))}.",
                "Bring the node back, or remove it from the cluster.",
            )


async def _nodes(inspection: Inspection) -> list[Finding]:
    try:
        nodes = await inspection.nodes()
    except TopologyError:
        return [
            Finding(
                "alarms",
                "note",
                "This login may not read the broker's nodes and alarms, so they are not checked.",
                "Give it the tag monitoring.",
            )
        ]
    found = []
    for node in nodes:
        for alarm, what in (("mem_alarm", "memory"), ("disk_free_alarm", "disk space")):
            if node.get(alarm):
                found.append(
                    Finding(
                        "alarms",
                        "danger",
                        f"{node['name']} is short of {what}, and blocks all publishers.",
                        f"Free {what} on that node. Viewers keep their batches until then.",
                    )
                )
        if not node.get("running", True):
            found.append(
                Finding(
                    "nodes",
                    "warning",
                    f"{node['name']} does not run.",
                    "Start it, because queues need a majority of their members.",
                )
            )
    if not found:
        found.append(Finding("alarms", "ok", f"None of the {len(nodes)} nodes has an alarm."))
    if len(nodes) == 1:
        found.append(
            Finding(
                "nodes",
                "note",
                "The broker has one node, so its messages are as safe as its disk.",
                "Run three nodes if batches must survive the loss of a disk.",
            )
        )
    return found


async def _message_size(settings: Settings) -> Finding:
    what = "message size"
    megabytes = MAX_MESSAGE_SIZE // 1024**2
    try:
        accepted = await accepts(settings, MAX_MESSAGE_SIZE + 1)
    except BrokerAway as error:
        return Finding(
            what,
            "note",
            f"The largest message that the broker accepts can't be found out: {error}",
            "Run the doctor again when the broker accepts messages.",
        )
    if accepted:
        return Finding(
            what,
            "warning",
            f"The broker accepts messages of more than {megabytes} MiB: each takes that much memory"
            " of a worker, only to be rejected.",
            f"Set max_message_size = {MAX_MESSAGE_SIZE} in rabbitmq.conf.",
        )
    return Finding(what, "ok", f"The broker accepts messages of at most {megabytes} MiB.")


async def _rights(inspection: Inspection, partitions: Sequence[str] = ()) -> list[Finding]:
    login = await inspection.login()
    found = []
    if "impersonator" in login["tags"]:
        found.append(
            Finding(
                "rights",
                "danger",
                f"Login {login['name']!r} has the tag impersonator, so it can publish as any"
                " viewer.",
                "Take the tag away.",
            )
        )
    try:
        rights = (await inspection.permissions()).get(login["name"])
    except TopologyError:
        return [
            *found,
            Finding(
                "rights",
                "note",
                f"Login {login['name']!r} may not read permissions, so its own are not checked.",
                "Run the doctor once with an administrator's login in INGEST_MANAGEMENT_URL.",
            ),
        ]
    if rights is None:
        return [
            *found,
            Finding(
                "rights",
                "danger",
                f"Login {login['name']!r} has no permissions in vhost {inspection.vhost!r}.",
                "Give it read on the queues and write on the exchanges of study-ingest.",
            ),
        ]
    copies = (amqp.NEWER_QUEUE, f"{amqp.RETRY_QUEUE_PREFIX}1000") if partitions else ()
    writes = (*_PUBLISHES_TO, *copies)
    missing = [f"write to {name}" for name in writes if not _allows(rights["write"], name)]
    for queue in (amqp.ATTEMPTS_QUEUE, amqp.DEAD_QUEUE, amqp.PROGRESS_QUEUE, *partitions):
        if not _allows(rights["read"], queue):
            missing.append(f"read from {queue}")
    if missing:
        found.append(
            Finding(
                "rights",
                "danger",
                f"Login {login['name']!r} may not {', nor '.join(missing)}.",
                "Add that to its permissions.",
            )
        )
    elif "administrator" in login["tags"] or _allows(rights["configure"], "anything-else"):
        found.append(
            Finding(
                "rights",
                "note",
                f"Login {login['name']!r} has more rights than a worker needs.",
                "Give workers a login with the tag monitoring and without the right to configure.",
            )
        )
    else:
        found.append(Finding("rights", "ok", "The login has the rights of a worker and no others."))
    return found


def _allows(pattern: str, name: str) -> bool:
    try:
        return bool(pattern) and re.search(pattern, name) is not None
    except re.error:
        return True


def _clock(theirs: datetime | None, ours: datetime) -> Iterator[Finding]:
    if theirs is not None:
        # The broker's time has no fraction of a second.
        skew = (ours - theirs).total_seconds() - 0.5
        if abs(skew) > _SKEW:
            yield Finding(
                "clock",
                "warning",
                f"The clocks of the broker and of this machine differ by {abs(skew):.0f} s.",
                "Synchronize both machines' clocks.",
            )
        else:
            yield Finding("clock", "ok", "The clocks of the broker and of this machine agree.")
