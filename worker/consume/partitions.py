"""Which partitions this worker consumes: its share of those that exist, by leases in the database.

    the broker's partitions, all workers' leases --shares--> consumer, own leases

A worker renews its leases every second, as long as it can consume. Whoever is killed, or can't
reach the broker, or is paused, loses them after a few seconds, and others take over. All of this
only decides who does which work: a batch that two workers consume is a duplicate for one of them.
"""

import asyncio
from contextlib import suppress
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from worker.broker import topology
from worker.broker.management import Management
from worker.consume.consumer import Consumer
from worker.domain.shares import shares
from worker.errors import BrokerAway, DatabaseAway, IngestError, TopologyError, TransientFault
from worker.settings import Settings
from worker.store import leases
from worker.store.engine import transaction
from worker.telemetry import metrics

_INTERVAL: Final = 1.0
"""Seconds between two renewals."""
LEASE: Final = 5.0
"""Seconds after which a lease that is not renewed is free. Workers that share two cores with much
else may be a few seconds late."""

_log = structlog.get_logger(__name__)


class Partitions:
    """Keeps one consumer at its share, until it is told to stop."""

    def __init__(
        self,
        engine: AsyncEngine,
        management: Management,
        consumer: Consumer,
        settings: Settings,
        name: str,
    ) -> None:
        self._engine = engine
        self._management = management
        self._consumer = consumer
        self._interval = settings.consumer_check_interval
        self._stopping = asyncio.Event()
        self._exist: frozenset[str] = frozenset()
        self._looked_at = float("-inf")
        self._is_new = True
        self._share: frozenset[str] = frozenset()
        self._has_leases = False
        self.name = name
        """By which the others know this worker, and `status` shows it."""

    def stop(self) -> None:
        """Ends `run`, which gives the leases up. Drain the consumer first."""
        self._stopping.set()

    async def run(self) -> None:
        """Renews, takes and gives up."""
        try:
            while not self._stopping.is_set():
                await self._look()
                if self._exist:
                    await self._take_share()
                elif self._has_leases:
                    self._consume(frozenset())
                    await self._release()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), _INTERVAL)
        finally:
            await self._release()

    async def _look(self) -> None:
        """Finds out which partitions exist: from time to time, and at once if one may be gone."""
        now = asyncio.get_running_loop().time()
        if self._consumer.can_consume and now - self._looked_at < self._interval:
            return
        self._looked_at = now
        with suppress(BrokerAway, TopologyError):  # then those that were known are still right
            # Old partitions, to which nothing leads any more, are there at the start or known.
            if self._is_new or self._exist or await topology.is_partitioned(self._management):
                found = await topology.partitions(self._management)
                if found != self._exist:
                    _log.info("partitions.found", partitions=len(found), before=len(self._exist))
                self._exist, self._is_new = found, False

    async def _take_share(self) -> None:
        if not self._consumer.can_consume:
            return  # others shall have what this worker can't consume
        try:
            async with transaction(self._engine) as connection:
                live = await leases.live(connection)
                workers = {each.worker for each in live} | {self.name}
                share = shares(workers, self._exist, live)[self.name]
                kept = {amqp.ATTEMPTS_QUEUE, *share, *self._consumer.partitions}
                await leases.keep(connection, self.name, kept, LEASE)
                self._has_leases = True
        except (DatabaseAway, TransientFault):
            return  # what it has, it goes on to consume
        except Exception:  # noqa: BLE001  # a right that is missing, say: then better twice than not
            _log.exception("partitions.failed", meaning="this worker consumes all partitions")
            share = self._exist
        self._consume(share)

    def _consume(self, share: frozenset[str]) -> None:
        if share != self._share:
            _log.info("partitions.share", partitions=sorted(share), of=len(self._exist))
        self._share = share
        metrics.PARTITIONS.set(len(share))
        self._consumer.consume_partitions(share, exist=bool(self._exist))

    async def _release(self) -> None:
        if self._has_leases:
            with suppress(IngestError):  # they expire
                async with transaction(self._engine) as connection:
                    await leases.release(connection, self.name)
                self._has_leases = False
