"""Replays leave: dead letters that an operator wants ingested go back to the workers' queue.

Beside the relay, and on a connection of their own, so that neither holds up the other. Whoever dies
after a publish and before the commit leaves the letter where it was: it leaves again, with the same
message id.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.broker import copies
from worker.broker.burst import Outgoing
from worker.broker.publisher import Publisher, Unacceptable
from worker.domain.backoff import Backoff
from worker.errors import IngestError, Unconfirmed
from worker.settings import Settings
from worker.store import dead_letters, replays, silence
from worker.store.engine import transaction
from worker.store.replays import Replay
from worker.telemetry import metrics

_MEASURE_INTERVAL: Final = 30.0
"""Seconds between two counts of the letters that wait, for the metrics."""
_SILENCE_INTERVAL: Final = 3_600.0
"""Seconds between two counts of the viewers that have fallen silent, which takes weeks."""

_log = structlog.get_logger(__name__)


class Replays:
    """Publishes the replays that were asked for, until it is told to stop."""

    def __init__(self, engine: AsyncEngine, publisher: Publisher, settings: Settings) -> None:
        self._engine = engine
        self._publisher = publisher
        self._settings = settings
        self._stopping = asyncio.Event()
        self._measured_at = self._silence_measured_at = float("-inf")

    def stop(self) -> None:
        """Ends `run` after the letters that are being published."""
        self._stopping.set()

    async def run(self) -> None:
        """Replays what is asked for; waits, ever longer, while that fails, whatever the reason."""
        backoff = Backoff(self._settings.pause_delay_min, self._settings.pause_delay_max)
        while not self._stopping.is_set():
            wait = self._settings.relay_poll_interval
            try:
                await self._measure()
                if await self.replay():
                    continue
                backoff.reset()
            except IngestError as error:
                _log.warning("replays.waiting", problem=str(error))
                wait = backoff.next()
            except Exception:  # noqa: BLE001  # a fault of ours, which must not end the worker
                _log.exception("replays.failed")
                wait = backoff.next()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)

    async def replay(self) -> int:
        """Publishes the oldest replays, and takes away those that the broker has confirmed; returns
        how many.

        Raises `Unconfirmed` when it confirmed none, `DatabaseAway`, `TransientFault`.
        """
        async with transaction(self._engine) as connection:
            taken = await replays.take(connection)
            fates = await self._publish(taken)
            ends: dict[str, list[int]] = {"confirmed": [], "refused": [], "unconfirmed": []}
            for replay, fate in zip(taken, fates, strict=True):
                ends[_end(fate)].append(replay.letter_id)
            if ends["confirmed"]:
                await replays.done(connection, ends["confirmed"])
            if ends["refused"]:
                await replays.cancel(connection, ends["refused"])
        for end, letters in ends.items():
            metrics.REPLAYED.labels(end).inc(len(letters))
        if ends["refused"]:
            _log.error("replays.refused", letters=ends["refused"], problem=str(_first(fates)))
        if ends["unconfirmed"] and not ends["confirmed"]:
            raise _first(fates)
        return len(ends["confirmed"])

    async def _measure(self) -> None:
        """Counts from time to time the letters that wait, and the viewers that have fallen silent,
        even if nothing can be published.
        """
        now = time.monotonic()
        if now - self._measured_at < _MEASURE_INTERVAL:
            return
        self._measured_at = now
        bound = self._settings.dead_letters_per_viewer
        async with transaction(self._engine) as connection:
            by_viewer = await dead_letters.waiting(
                connection, bound=bound, viewers=metrics.VIEWERS_TOLD_APART
            )
            if now - self._silence_measured_at >= _SILENCE_INTERVAL:
                self._silence_measured_at = now
                metrics.VIEWERS_SILENT.set(len(await silence.fallen_silent(connection)))
        metrics.LETTERS_PER_VIEWER.set(bound)
        metrics.letters_waiting(by_viewer)

    async def _publish(self, taken: Sequence[Replay]) -> list[Unconfirmed | None]:
        messages = [_outgoing(replay) for replay in taken]
        fates = await self._publisher.publish_all(messages)
        for place, fate in enumerate(fates):
            if isinstance(fate, Unacceptable):
                # Perhaps because of another one: so alone.
                async with self._publisher.alone() as alone:
                    [fates[place]] = await alone.publish_all([messages[place]])
        return fates


def _outgoing(replay: Replay) -> Outgoing:
    return copies.replay_copy(
        replay.body,
        copies.envelope_of(
            replay.properties,
            viewer=replay.viewer,
            routing_key=replay.routing_key,
            client_session_uuid=replay.client_session_uuid,
            replay_id=replay.message_id,
        ),
    )


def _end(fate: Unconfirmed | None) -> str:
    match fate:
        case None:
            return "confirmed"
        case Unacceptable():
            return "refused"
        case _:
            return "unconfirmed"


def _first(fates: Sequence[Unconfirmed | None]) -> Unconfirmed:
    return next(fate for fate in fates if fate is not None)
