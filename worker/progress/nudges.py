"""Nudges: after a commit, the user's other devices learn that there is something to ask for.

A nudge is only a hint: it may be lost, it lives for seconds, and nobody waits for it. So it costs
the hot path one call that notes what was changed. One query finds who listens, for all changes
since the last one.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import structlog
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from worker.broker.publisher import Publisher
from worker.domain.records import Change, Mark
from worker.errors import IngestError
from worker.progress.outgoing import passing
from worker.store import listening
from worker.store.engine import transaction
from worker.telemetry import metrics

_UNDER_WAY: Final = 2.0
"""Seconds that a nudge lives, and for which there is no second one for the same user and viewer.
A connected viewer has it within milliseconds, and the others ask when they connect.
"""
_USERS_MAX: Final = 10_000
"""The most users whose changes are noted. Their devices learn of more when they ask by themselves.
"""
_ROUND, _EACH = 0.0006, 0.00004
"""Seconds of CPU that a round takes, and each nudge in it, on the machine of docs/performance.md.
The time that passes would not do, because ingest has most of it.
"""
_REST: Final = 180
"""After each round, this many times what it takes there: ingest keeps more than 98 % of its time on
a machine of half the speed too.
"""
_REST_MAX: Final = 10.0

_log = structlog.get_logger(__name__)


class _Pair(NamedTuple):
    user_id: int
    viewer: str


class Nudges:
    """Nudges the viewers of the users whose progress changes, until it is stopped."""

    def __init__(self, engine: AsyncEngine, publisher: Publisher) -> None:
        self._engine = engine
        self._publisher = publisher
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._changed: dict[int, tuple[Mark, set[str | None]]] = {}
        """The newest mark of each user, and the viewers that learn it from their results."""
        self._under_way: dict[_Pair, float] = {}
        """Until when each nudge may still be under way, by the monotonic clock."""
        self._held: dict[_Pair, Mark] = {}
        """What has changed meanwhile."""

    def note(self, changes: Sequence[Change]) -> None:
        """Notes what a commit has changed. It never waits."""
        for user_id, viewer, mark in changes:
            known = self._changed.get(user_id)
            if known is not None and mark.version <= known[0].version:
                if mark == known[0]:
                    known[1].add(viewer)
            elif known is not None or len(self._changed) < _USERS_MAX:
                self._changed[user_id] = (mark, {viewer})
        if self._changed:
            self._wake.set()

    def asked(self, viewer: str, user_id: int) -> None:
        """Notes that the viewer gets what is committed at this moment: no nudge is under way."""
        pair = _Pair(user_id, viewer)
        self._under_way.pop(pair, None)
        self._held.pop(pair, None)

    def stop(self) -> None:
        """Ends `run`."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Nudges, whatever happens to single rounds."""
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._until_next())
            self._wake.clear()
            sent = 0
            try:
                sent = await self.nudge()
            except IngestError as error:
                _log.info("nudges.lost", problem=str(error))
            except Exception:  # noqa: BLE001  # a fault of ours, which must not end the worker
                _log.exception("nudges.failed")
            rest = min(_REST * (_ROUND + _EACH * sent), _REST_MAX)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), rest)

    async def nudge(self) -> int:
        """One round. Returns the number of nudges. Raises `DatabaseAway` or `TransientFault`."""
        changed, self._changed = self._changed, {}
        due = self._due()
        if changed:
            async with transaction(self._engine) as connection:
                found = await listening.listeners(connection, changed.keys())
            for user_id, viewer in found:
                mark, senders = changed[user_id]
                if viewer not in senders:
                    due[_Pair(user_id, viewer)] = mark
        now = time.monotonic()
        sent = {}
        for pair, mark in due.items():
            if pair in self._under_way:
                self._held[pair] = mark
            else:
                self._under_way[pair] = now + _UNDER_WAY
                sent[pair] = mark
        if sent:
            await self._publish(sent)
        return len(sent)

    def _due(self) -> dict[_Pair, Mark]:
        """What was held back, for the pairs whose last nudge is gone."""
        now = time.monotonic()
        gone = [pair for pair, until in self._under_way.items() if until <= now]
        for pair in gone:
            del self._under_way[pair]
        return {pair: self._held.pop(pair) for pair in gone if pair in self._held}

    def _until_next(self) -> float | None:
        """Seconds until something that is held back is due. None if nothing is."""
        if not self._held:
            return None
        now = time.monotonic()
        return max(0.0, min(self._under_way.get(pair, now) for pair in self._held) - now)

    async def _publish(self, sent: dict[_Pair, Mark]) -> None:
        fates = await self._publisher.publish_all(
            [
                passing(
                    amqp.progress_key(pair.viewer),
                    amqp.PROGRESS_NUDGE_TYPE,
                    to_json({"user_id": str(pair.user_id), **mark._asdict()}),
                    lives=_UNDER_WAY,
                )
                for pair, mark in sent.items()
            ]
        )
        metrics.NUDGES.inc(fates.count(None))
