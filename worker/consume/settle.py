"""The step *settle*: each delivery by its disposition, once that is durable.

No path acks a message whose effect, or whose copy, the broker or the database does not have.
Knows acks and copies; may not know how the disposition came about, or what to do when the broker
does not confirm (it raises).
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from schemas.words import RejectReason
from worker.broker import copies
from worker.broker.publisher import Publisher
from worker.consume.intake import Taken
from worker.domain.dispositions import Disposition, Ingested, Rejected
from worker.telemetry import metrics

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Deferred:
    """Failed in a way that may pass: to be tried again after `delay` seconds."""

    delay: float
    is_counted: bool = True
    """Whether it counts against the batch, which may fail only so often."""


class Postponed:
    """In a version that only a newer worker knows: to wait for one, as often as it takes."""


class Settler:
    """Settles deliveries, and counts and logs what became of them.

    `counts` has a number for each of `ingested`, `duplicate`, `rejected`, `deferred`, `postponed`,
    `given_back` and `stale` (the broker had already taken it back: it comes again, as a
    duplicate where it was committed). `last_progress` is the time (`time.monotonic`) of the
    last one that was neither given back nor stale.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self.counts: Counter[str] = Counter()
        self.last_progress = time.monotonic()
        self.to_partitions = False
        """Whether copies come back to partitions."""

    async def ack(self, committed: Sequence[tuple[Taken, Disposition]], group_size: int) -> None:
        """Acks what the transaction has made durable, all of it together."""
        if not committed:
            return
        first, *others = [taken.delivery for taken, _ in committed]
        if await first.ack_with(others):
            self._settled(committed, group_size)
        else:
            for taken, _ in committed:
                self.stale(taken)

    async def settle_by_copy(
        self, taken: Taken, disposition: Deferred | Postponed, group_size: int
    ) -> None:
        """Has the broker confirm a copy where the disposition says, then acks.

        Raises `Unconfirmed` when it did not, `Unacceptable` when it never will: the delivery is
        then still in hand.
        """
        body = taken.delivery.body
        if isinstance(disposition, Deferred):
            await copies.defer(
                self._publisher,
                body,
                taken.envelope,
                disposition.delay,
                is_counted=disposition.is_counted,
                to_partition=self.to_partitions,
            )
        else:
            await copies.postpone(
                self._publisher, body, taken.envelope, to_partition=self.to_partitions
            )
        if await taken.delivery.ack():
            self._settled([(taken, disposition)], group_size)
        else:
            self.stale(taken)

    async def reject(self, taken: Taken) -> None:
        """Returns what can't even be kept: the broker has a limit, and moves it to the dead letters
        that workers collect.
        """
        if await taken.delivery.reject():
            self.counts["given_back"] += 1
            metrics.RETURNED.labels("rejected").inc()
        else:
            self.stale(taken)

    def _settled(
        self,
        settled: Sequence[tuple[Taken, Disposition | Deferred | Postponed]],
        group_size: int,
    ) -> None:
        self.last_progress = time.monotonic()
        metrics.LAST_PROGRESS.set_to_current_time()
        ends: Counter[tuple[str, str]] = Counter()
        versions: Counter[str] = Counter()
        for taken, disposition in settled:
            reason: str | None = None
            if isinstance(disposition, Rejected):
                reason = disposition.reason
            elif isinstance(disposition, Postponed):
                reason = RejectReason.UNSUPPORTED_VERSION
            word = type(disposition).__name__.lower()
            ends[word, reason or ""] += 1
            if taken.version is not None:
                versions[metrics.version_label(taken.version)] += 1
            times_replaced = 0
            if isinstance(disposition, Ingested):
                _measure_ages(taken, disposition)
                times_replaced = len(disposition.replaced_times)
                for time_was in disposition.replaced_times:
                    metrics.time_replaced(taken.incoming.viewer, time_was)
            _log.info(
                "delivery.settled",
                client_session_uuid=str(taken.incoming.client_session_uuid),
                viewer=taken.incoming.viewer,
                version=None if taken.version is None else "{}.{}".format(*taken.version),
                disposition=word,
                reason=reason,
                times_replaced=times_replaced,
                retries=taken.envelope.retries,
                redelivered=taken.delivery.redelivered,
                delivery_count=taken.delivery.delivery_count,
                group_size=group_size,
            )
        for (word, why), times in ends.items():
            self.counts[word] += times
            metrics.SETTLED.labels(word, why).inc(times)
        for version, times in versions.items():
            metrics.BATCHES_BY_VERSION.labels(version).inc(times)

    def stale(self, taken: Taken) -> None:
        """Notes a delivery that the broker has taken back."""
        self.counts["stale"] += 1
        metrics.RETURNED.labels("stale").inc()
        _log.debug("delivery.stale", client_session_uuid=str(taken.incoming.client_session_uuid))


def _measure_ages(taken: Taken, ingested: Ingested) -> None:
    """Splits the batch's age into the viewer's, the broker's and the worker's part."""
    delivery = taken.delivery
    answered_at = ingested.last_answered_at
    published_at = delivery.properties.timestamp
    if answered_at is not None:
        age = (ingested.received_at - answered_at).total_seconds()
        metrics.RECORDED_TO_COMMITTED.observe(max(0.0, age))
    if published_at is not None:
        published = published_at.timestamp()
        if answered_at is not None:
            offline = published - answered_at.timestamp()
            metrics.AGE_AT_VIEWER.observe(max(0.0, offline))
        metrics.AGE_IN_BROKER.observe(max(0.0, delivery.arrived_at - published))
    metrics.AGE_IN_WORKER.observe(time.time() - delivery.arrived_at)
