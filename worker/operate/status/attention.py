"""What somebody should see to. Each item has a stable code, how bad it is, what was found and what
to do.

Pure: it judges what `look.py` has read. A cause is named once: while ingest is paused, or the
database is away, nobody is told to start a worker.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from schemas import amqp
from schemas.followups import KINDS
from worker.errors import BrokerAway, DatabaseAway, IngestError
from worker.operate.status.facts import BrokerStatus, DatabaseStatus, QueueStatus
from worker.store.operate.dead import COUNTED_MAX
from worker.store.outbox import KindBacklog

Severity = Literal["note", "warning", "danger"]
"""`danger`: ingest stands still, or data is at risk. `warning`: somebody should look today. `note`:
worth knowing; all is well."""

_OUTBOX_LAG: Final = 60.0
"""Seconds that a result may wait in the outbox before somebody should look."""
_LONG_BACKLOG: Final = 300.0
"""Seconds of work, at the rate at which it is done now, from which a backlog is worth a look."""
_NAMED: Final = 5
"""How many viewers or queues a sentence names."""


class Attention(NamedTuple):
    """One thing to see to."""

    code: str
    severity: Severity
    found: str
    remedy: str


def of_error(error: IngestError) -> Attention:
    """A server that could not be asked, or is not set up."""
    code = {DatabaseAway: "database_away", BrokerAway: "broker_away"}.get(type(error), "not_set_up")
    found = error.found.rstrip(".")
    return Attention(code, "danger", f"{found}.", _sentence(error.remedy))


def of_servers(
    broker: BrokerStatus | None,
    database: DatabaseStatus | None,
    *,
    expected: Collection[str],
    enabled: bool,
    max_followups: int,
    partitions: int = 1,
) -> list[Attention]:
    """Everything to see to, the worst first. None stands for a server that could not be asked.

    `expected` names the queues that the topology has, `max_followups` is the bound of those for
    follow-up jobs, and `partitions` is the number that the settings want.
    """
    stands_still = (
        database is None
        or database.pause is not None
        or database.refusal is not None
        or not enabled
    )
    found = [
        *(_disabled() if not enabled else ()),
        *(() if database is None else _of_the_database(database, broker, max_followups)),
        *(() if broker is None else _of_the_broker(broker, expected, stands_still)),
        *(() if broker is None else _of_the_partitions(broker, partitions)),
        *(() if broker is None or database is None else _of_the_viewers(broker, database)),
    ]
    order: dict[Severity, int] = {"danger": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda each: order[each.severity])


def _disabled() -> Iterator[Attention]:
    yield Attention(
        "disabled",
        "warning",
        "INGEST_ENABLED is false here: workers with this setting do not ingest.",
        "Set it to true, or unset it.",
    )


def _of_the_broker(
    broker: BrokerStatus, expected: Collection[str], stands_still: bool
) -> Iterator[Attention]:
    missing = sorted(name for name in expected if broker.queue(name) is None)
    if missing:
        yield Attention(
            "queues_missing",
            "danger",
            f"{_count(len(missing), 'queue is', 'queues are')} missing: {', '.join(missing)}.",
            "Run `study-ingest topology`.",
        )
    if not stands_still:
        yield from _of_the_backlog(broker.attempts)
    yield from _of_those_that_wait(broker)
    yield from _of_the_followups(broker)


def _of_the_backlog(attempts: Sequence[QueueStatus]) -> Iterator[Attention]:
    # While a partition passes from one worker to another, nobody consumes it for a moment.
    alone = [
        queue
        for queue in attempts
        if not queue.consumers and (queue.ready or queue.name == amqp.ATTEMPTS_QUEUE)
    ]
    if alone:
        yield Attention(
            "no_consumer",
            "danger",
            f"Nobody consumes {_named([queue.name for queue in alone])}, where"
            f" {sum(queue.ready for queue in alone)} batches wait.",
            "Start a worker, or ask the /ready of those that run why they are not.",
        )
        return
    ready = sum(queue.ready for queue in attempts)
    rate = sum(queue.acknowledged_per_second or 0.0 for queue in attempts)
    if rate and ready / rate > _LONG_BACKLOG:
        yield Attention(
            "backlog",
            "warning",
            f"{ready} batches wait, which is {ready / rate / 60:.0f} minutes of work at"
            f" {rate:.0f} a second.",
            "Start more workers, or let them work it off. They do not ingest one user's backlog"
            " faster.",
        )


def _of_the_partitions(broker: BrokerStatus, wanted: int) -> Iterator[Attention]:
    if broker.partitions != wanted:
        yield Attention(
            "partitions_differ",
            "note",
            f"INGEST_PARTITIONS is {wanted} here, and the broker has {broker.partitions}.",
            "`study-ingest topology` changes the broker to what its settings say.",
        )
    in_use = {amqp.partition_queue(each) for each in range(1, broker.partitions + 1)}
    old = [
        queue
        for queue in broker.attempts
        if amqp.is_partition(queue.name) and (broker.partitions == 1 or queue.name not in in_use)
    ]
    if old:
        yield Attention(
            "old_partitions",
            "note",
            f"{_count(len(old), 'partition is', 'partitions are')} not used any more, with"
            f" {sum(queue.ready for queue in old)} batches: {_named([each.name for each in old])}.",
            "Workers take what is left. Then run `study-ingest topology`, which deletes them.",
        )


def _of_those_that_wait(broker: BrokerStatus) -> Iterator[Attention]:
    collected = broker.queue(amqp.DEAD_QUEUE)
    if collected is not None and collected.ready:
        yield Attention(
            "uncollected",
            "warning",
            f"{collected.ready} messages wait in {collected.name} to be kept as dead letters.",
            "A worker takes them within seconds; for one that AMQP 0-9-1 can't carry, it needs"
            " INGEST_MANAGEMENT_URL.",
        )
    retrying = sum(
        queue.ready for queue in broker.queues if queue.name.startswith(amqp.RETRY_QUEUE_PREFIX)
    )
    if retrying:
        yield Attention(
            "retrying",
            "note",
            f"{retrying} batches failed and wait to be tried again.",
            "Look for delivery.failed in the workers' logs.",
        )
    newer = broker.queue(amqp.NEWER_QUEUE)
    if newer is not None and newer.ready:
        yield Attention(
            "newer_version",
            "warning",
            f"{newer.ready} batches wait for a newer worker.",
            "Upgrade, and they are taken.",
        )


def _of_the_followups(broker: BrokerStatus) -> Iterator[Attention]:
    for kind in KINDS:
        queue = broker.queue(amqp.followups_queue(kind.routing_key))
        if queue is not None and queue.ready and not queue.consumers:
            yield Attention(
                "followups_unconsumed",
                "warning",
                f"{queue.ready} jobs wait in {queue.name}, and nobody consumes it.",
                "Start the service that takes them. If nobody wants them, leave"
                f" {kind.routing_key} out of INGEST_FOLLOWUPS, and purge the queue.",
            )


def _is_full(kind: KindBacklog, broker: BrokerStatus | None, max_followups: int) -> bool:
    queue = None if broker is None else broker.queue(amqp.followups_queue(kind.kind))
    return queue is not None and queue.ready + queue.unacknowledged >= max_followups


def _of_a_full_queue(kind: KindBacklog, max_followups: int) -> Attention:
    since = kind.since.isoformat(sep=" ", timespec="seconds")
    return Attention(
        "followups_full",
        "warning",
        f"Queue {amqp.followups_queue(kind.kind)} has {max_followups} jobs and is full, so"
        f" {kind.jobs} more have been waiting in the outbox since {since}.",
        "Start more of the service that takes them, or raise INGEST_MAX_FOLLOWUPS and run"
        " `study-ingest topology`.",
    )


def _of_the_viewers(broker: BrokerStatus, database: DatabaseStatus) -> Iterator[Attention]:
    if database.schema != database.schema_wanted:
        return  # nobody's grants are known
    if deaf := sorted(database.granted - broker.listening):
        yield Attention(
            "viewer_without_queue",
            "note",
            f"{_count(len(deaf), 'viewer has', 'viewers have')} a grant and no results queue,"
            f" which expires if nobody reads it for 90 days: {_named(deaf)}.",
            "Run `study-ingest viewer import` for one that comes back, which creates the queue, or"
            " `viewer revoke` where it is not in use.",
        )
    if older := sorted(database.granted & broker.older):
        yield Attention(
            "viewer_without_progress",
            "note",
            f"{_count(len(older), 'viewer has', 'viewers have')} no queue for progress, so their"
            f" devices can't learn what others have changed: {_named(older)}.",
            "Run `study-ingest viewer upgrade --all`, which keeps passwords and connections.",
        )
    if mute := sorted(broker.listening - database.granted):
        yield Attention(
            "viewer_without_grant",
            "note",
            f"{_count(len(mute), 'viewer', 'viewers')} may write for nobody: {_named(mute)}.",
            "Run `study-ingest viewer grant`, or `viewer revoke` where it is not in use.",
        )


def _of_the_database(
    database: DatabaseStatus, broker: BrokerStatus | None, max_followups: int
) -> Iterator[Attention]:
    if database.schema != database.schema_wanted:
        yield Attention(
            "schema",
            "danger",
            f"The schema is at {database.schema or 'none'} and this program needs"
            f" {database.schema_wanted}.",
            "Run `study-ingest migrate`, or the newer program.",
        )
        return
    if database.refusal is not None and not database.hanging_commits:
        yield Attention(
            "no_writes",
            "danger",
            database.refusal,
            "Workers pause until it takes them again. `study-ingest doctor` looks for why.",
        )
    if database.dead is not None and (letters := database.dead.letters):
        more = " or more" if letters >= COUNTED_MAX else ""
        yield Attention(
            "dead_letters",
            "warning",
            f"{letters}{more} dead letters wait for a decision.",
            "Look at them with `study-ingest dead list`.",
        )
    if pause := database.pause:
        because = f" ({pause.reason})" if pause.reason else ""
        since = pause.paused_at.isoformat(sep=" ", timespec="seconds")
        yield Attention(
            "paused",
            "warning",
            f"Ingest is paused since {since} by {pause.actor}{because}.",
            "`study-ingest resume` ends the pause.",
        )
    if database.hanging_commits:
        yield Attention(
            "commits_hang",
            "danger",
            f"{_count(database.hanging_commits, 'commit hangs', 'commits hang')}.",
            "See that the replicas in synchronous_standby_names are there.",
        )
    if database.silent:
        yield Attention(
            "viewer_silent",
            "note",
            f"{_count(len(database.silent), 'viewer', 'viewers')} published every week, but nothing"
            f" in the last one: {_named([*database.silent])}.",
            "Ask whether they are in use and online. `study-ingest viewer list --silent 7d` says"
            " when each was last heard of.",
        )
    if database.other_schedules:
        yield Attention(
            "other_schedules",
            "note",
            f"About {max(database.other_schedules, 0.01):.0%} of all questions have a schedule that"
            " another version of this program computed.",
            "When no worker of another version runs any more, run `study-ingest rebuild`.",
        )
    full = [kind for kind in database.jobs if _is_full(kind, broker, max_followups)]
    yield from (_of_a_full_queue(kind, max_followups) for kind in full)
    # Of the jobs for a full queue it is known why they wait.
    others_wait = not full or len(full) < len(database.jobs)
    if (waiting := database.outbox) is not None and (
        waiting.oldest_age if others_wait else waiting.oldest_result_age
    ) > _OUTBOX_LAG:
        yield Attention(
            "outbox_lag",
            "warning",
            f"{waiting.messages} results and jobs wait in the outbox, the oldest for"
            f" {waiting.oldest_age:.0f} s.",
            "See that a relay runs and reaches the broker.",
        )


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
