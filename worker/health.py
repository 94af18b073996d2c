"""Whether a process is alive and ready, and the watchdog that ends a process that is stuck.

A worker is ready if there is *proof of consumption*: the broker itself lists its consumer, and
nothing is paused. A relay is ready if its last attempt was confirmed. A process is alive if its
event loop runs and the deliveries that it holds make progress. Another thread calls the probes.
"""

import asyncio
import time
from typing import Final

from worker.consume.consumer import Consumer
from worker.errors import Stuck
from worker.relay.relay import Relay
from worker.settings import Settings
from worker.telemetry import metrics
from worker.telemetry.http import Health

_BEAT: Final = 1.0
"""Seconds between two beats of the event loop."""
_BEAT_MISSED: Final = 15.0
"""Seconds without a beat after which the event loop counts as stuck. The largest group takes less
than 5.
"""

_MOVING: Final = ("consuming", "connecting")
"""The states in which lanes work on what is in hand."""


class _Heart:
    """Beats as long as the event loop runs."""

    def __init__(self) -> None:
        self.last_beat = time.monotonic()

    async def beat(self) -> None:
        """Beats once, and waits until the next beat is due."""
        self.last_beat = time.monotonic()
        await asyncio.sleep(_BEAT)

    def health(self) -> Health:
        silent = time.monotonic() - self.last_beat
        if silent > _BEAT_MISSED:
            return Health(False, f"the event loop has not run for {silent:.0f} seconds")
        return Health(True, "the event loop runs")


class Watch:
    """Watches one consumer."""

    def __init__(self, consumer: Consumer, settings: Settings) -> None:
        self._consumer = consumer
        self._stuck_timeout = settings.stuck_timeout
        self._heart = _Heart()
        self._idle_at = time.monotonic()
        self.unsafe: str | None = None
        """What is wrong with the broker's setup, as a sentence; None if nothing is known to be."""

    async def run(self) -> None:
        """Beats, and raises `Stuck`, which ends the process, if the deliveries make no progress."""
        while self._consumer.state != "stopped":
            if not self._in_work or self._consumer.state not in _MOVING:
                self._idle_at = time.monotonic()
            metrics.IN_HAND.set(self._consumer.in_hand)
            metrics.UNCONFIRMED.set(self._consumer.unconfirmed)
            if not (health := self._moves()).ok:
                raise Stuck(health.detail)
            await self._heart.beat()

    def live(self) -> Health:
        """Whether a supervisor should let the process run."""
        turning = self._heart.health()
        return self._moves() if turning.ok else turning

    def ready(self) -> Health:
        """Whether the broker has proved that it is consuming."""
        state = self._consumer.state
        proved = state == "consuming" and self._consumer.is_proved and self._heart.health().ok
        metrics.READY.set(proved and self.unsafe is None)
        if self.unsafe is not None:
            return Health(False, self.unsafe)
        if state == "consuming" and not proved:
            return Health(False, "the broker does not list our consumer")
        why = self._consumer.why_paused
        return Health(proved, f"{state}: {why}" if state == "paused" and why else state)

    def _moves(self) -> Health:
        consumer = self._consumer
        waited = time.monotonic() - max(consumer.last_progress, self._idle_at)
        if self._in_work and consumer.state in _MOVING and waited > self._stuck_timeout:
            return Health(
                False,
                f"holds {self._in_work} deliveries and has settled none for {waited:.0f} s",
            )
        return Health(True, consumer.state)

    @property
    def _in_work(self) -> int:
        """Deliveries that should make progress, whatever the broker confirms."""
        return self._consumer.in_hand - self._consumer.unconfirmed


class RelayWatch:
    """Watches one relay that runs in a process of its own."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._heart = _Heart()

    async def run(self) -> None:
        """Beats until it is cancelled."""
        while True:
            await self._heart.beat()

    def live(self) -> Health:
        """Whether a supervisor should let the process run."""
        return self._heart.health()

    def ready(self) -> Health:
        """Whether its last attempt succeeded."""
        turning = self._heart.health()
        ready = turning.ok and self._relay.trouble is None
        metrics.READY.set(ready)
        return Health(ready, self._relay.trouble or turning.detail)
