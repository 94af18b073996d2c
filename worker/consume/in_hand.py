"""What a worker has in hand: deliveries that have arrived, until a lane takes them.

Also decides how many may be in hand at once. A message that has been delivered several times
may be the one that kills workers, and a worker that dies has everything in hand counted against
it: so such a *suspect* runs alone, with nothing else in hand, and the broker sends one message
at a time (which is how every subscription begins) until it sends one that is above suspicion.

Knows deliveries; may not know what is done with them.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence

from worker.broker.subscription import Delivery
from worker.settings import Settings
from worker.telemetry import metrics


class Hand:
    """Deliveries in the order of their arrival, as many as the broker was told to send.

    `on_turn` is called when `prefetch` changes, `on_change` with each arrival. `counts` gets
    what is `given_back` or found `stale`.
    """

    def __init__(
        self,
        settings: Settings,
        counts: Counter[str],
        *,
        on_turn: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._counts = counts
        self._on_turn = on_turn
        self._on_change = on_change
        self._ordinary: deque[Delivery] = deque()
        self._suspects: deque[Delivery] = deque()
        self.in_work = 0
        self.prefetch = 1
        """How many messages the broker should send at once."""
        self.granted = 1
        """How many it was last told to send."""

    def __len__(self) -> int:
        """Deliveries that are not settled yet."""
        return len(self._ordinary) + len(self._suspects) + self.in_work

    @property
    def has_work(self) -> bool:
        """Whether there is something that may be taken now."""
        # While more is about to be granted the one in hand stays unsettled: then nothing can be
        # on its way to the consumer that is cancelled for it, to be counted as returned.
        return self.prefetch <= self.granted and bool(
            self._ordinary or (self._suspects and self.granted == 1)
        )

    @property
    def holds_only_suspects(self) -> bool:
        return bool(self._suspects) and not self._ordinary and not self.in_work

    @property
    def holds_suspects(self) -> bool:
        return bool(self._suspects)

    def arrived(self, delivery: Delivery) -> None:
        """Takes up what the broker sent."""
        if delivery.delivery_count >= self._settings.alone_after:
            self._suspects.append(delivery)
            wanted = 1
        else:
            self._ordinary.append(delivery)
            # While suspects are being sorted out, others may still come in.
            wanted = self._settings.prefetch if self.granted == 1 else self.prefetch
        if wanted != self.prefetch:
            self.prefetch = wanted
            self._on_turn()
        self._on_change()

    def take(self) -> list[Delivery]:
        """What has already arrived, up to `group_max`, in order; a suspect alone."""
        self.drop_stale()
        if self._suspects and self.granted == 1:
            return [self._suspects.popleft()]
        most = min(len(self._ordinary), self._settings.group_max)
        return [self._ordinary.popleft() for _ in range(most)]

    def put_back(self, busy: Sequence[Delivery]) -> None:
        """Takes up again, before all others, what a lane has found busy."""
        for delivery in reversed(busy):
            delivery.times_busy += 1
            self._ordinary.appendleft(delivery)

    async def give_back_unstarted(self) -> None:
        """Returns everything that no lane has taken to the broker."""
        unstarted = [*self._ordinary, *self._suspects]
        self._ordinary.clear()
        self._suspects.clear()
        await self.give_back(unstarted)

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Returns these to the broker."""
        for delivery in deliveries:
            how = "given_back" if await delivery.give_back() else "stale"
            self._counts[how] += 1
            metrics.RETURNED.labels(how).inc()
        self._on_change()

    def drop_stale(self) -> None:
        """Forgets what the broker has taken back: it comes again."""
        for arrived in (self._ordinary, self._suspects):
            live = [delivery for delivery in arrived if delivery.is_live]
            if stale := len(arrived) - len(live):
                self._counts["stale"] += stale
                arrived.clear()
                arrived.extend(live)
                self._on_change()
