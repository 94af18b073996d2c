"""Whether a process lives and is ready, told from what can be seen of it; and its own watchdog.

A worker is ready when there is *proof of consumption*: the broker itself lists our consumer, and
nothing is paused; a relay, when what it last tried was confirmed. Alive is: the event loop turns,
and what is in hand moves on. The probes are called from another thread.
"""

import asyncio
import time
from typing import Final

from worker.consume.consumer import Consumer
from worker.errors import Stuck
from worker.relay import Relay
from worker.settings import Settings
from worker.telemetry import metrics
from worker.telemetry.http import Health

_BEAT: Final = 1.0
"""Seconds between two beats of the event loop."""
_BEAT_MISSED: Final = 15.0
"""Seconds without a beat after which the loop counts as stuck; the largest group takes under 5."""


class _Heart:
    """Beats while the event loop turns."""

    def __init__(self) -> None:
        self.last_beat = time.monotonic()

    async def beat(self) -> None:
        """Beats once, and waits until it is time for the next."""
        self.last_beat = time.monotonic()
        await asyncio.sleep(_BEAT)

    def health(self) -> Health:
        silent = time.monotonic() - self.last_beat
        if silent > _BEAT_MISSED:
            return Health(False, f"the event loop has not turned for {silent:.0f} seconds")
        return Health(True, "the event loop turns")


class Watch:
    """Watches one consumer."""

    def __init__(self, consumer: Consumer, settings: Settings) -> None:
        self._consumer = consumer
        self._stuck_timeout = settings.stuck_timeout
        self._heart = _Heart()
        self._idle_at = time.monotonic()

    async def run(self) -> None:
        """Beats; raises `Stuck` when what is in hand makes no progress, to end the process."""
        while self._consumer.state != "stopped":
            if not self._consumer.in_hand or self._consumer.state != "consuming":
                self._idle_at = time.monotonic()
            metrics.IN_HAND.set(self._consumer.in_hand)
            if not (health := self._moves()).ok:
                raise Stuck(health.detail)
            await self._heart.beat()

    def live(self) -> Health:
        """Whether a supervisor should leave the process alone."""
        turning = self._heart.health()
        return self._moves() if turning.ok else turning

    def ready(self) -> Health:
        """Whether it is proved to be consuming."""
        state = self._consumer.state
        proved = state == "consuming" and self._consumer.is_proved and self._heart.health().ok
        metrics.READY.set(proved)
        if state == "consuming" and not proved:
            return Health(False, "the broker does not list our consumer")
        return Health(proved, state)

    def _moves(self) -> Health:
        consumer = self._consumer
        waited = time.monotonic() - max(consumer.last_progress, self._idle_at)
        if consumer.in_hand and consumer.state == "consuming" and waited > self._stuck_timeout:
            return Health(
                False, f"{consumer.in_hand} deliveries in hand, none settled for {waited:.0f} s"
            )
        return Health(True, consumer.state)


class RelayWatch:
    """Watches one relay that runs by itself."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._heart = _Heart()

    async def run(self) -> None:
        """Beats, for as long as it is let."""
        while True:
            await self._heart.beat()

    def live(self) -> Health:
        """Whether a supervisor should leave the process alone."""
        return self._heart.health()

    def ready(self) -> Health:
        """Whether what it last tried worked."""
        turning = self._heart.health()
        ready = turning.ok and self._relay.trouble is None
        metrics.READY.set(ready)
        return Health(ready, self._relay.trouble or turning.detail)
