"""The deliveries that a worker has in hand: they have arrived, and no lane has taken them yet.

This file also decides how many deliveries may be in hand at once. A message that was delivered
several times may be the one that crashes workers, and when a worker crashes, the broker counts a
return of every message that it held. Such a *suspect* is therefore processed alone, with nothing
else in hand. The broker sends one message at a time, which is how every subscription begins, until
it sends one that is not a suspect.

A message that the broker itself can't deliver never arrives, and ends the connection each time it
is tried. After such a failure the broker therefore also sends one message at a time, until many
others have arrived: then nothing else is in hand, and nothing else is counted, when the broker
tries that message again.

A worker that consumes partitions as well has all of this in one hand. One message at a time then
means one queue at a time: the consumer asks them in turn, first the one with the suspect.

A prefetch of large bodies would take more memory than there is. So the bytes in hand are bounded as
well: what would exceed them goes back, and large bodies arrive one at a time.

A delivery that waits in the broker as a copy stays in hand until the copy is confirmed. A broker in
an alarm confirms none for hours, so the others are processed meanwhile, as long as only a few wait.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import Final

from worker.broker.message_size import MAX_MESSAGE_SIZE
from worker.broker.subscription import Delivery
from worker.settings import Settings
from worker.telemetry import metrics

_CAREFUL_FOR: Final = 1_000
"""How many deliveries arrive one at a time after an internal error of the broker. The message that
caused the error returns behind those that were in hand with it: one prefetch for each worker.
"""

BYTES_IN_HAND: Final = 64 * 1024**2
"""The most bytes of bodies in hand. A prefetch of the largest usual batches, with 1,000 attempts,
takes half of it."""


class Hand:
    """Deliveries in order of arrival, at most as many as the broker was told to send.

    `on_turn` is called when `prefetch` changes, and `on_change` for each arrival. `counts` gets the
    number of deliveries that were `given_back` or found `stale`.
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
        self._in_work: set[Delivery] = set()
        self._in_copy: set[Delivery] = set()
        self._unconfirmed: set[Delivery] = set()
        self.prefetch = 1
        """The number of messages that the broker should send at once."""
        self.granted = 1
        """The number that the broker was last told to send."""
        self.full = settings.prefetch
        """The number that it should send if nothing speaks against it."""
        self.arrivals = 0
        """How many deliveries have arrived, ever."""
        self._careful_for = 0

    def __len__(self) -> int:
        """The number of deliveries that are not settled yet."""
        return sum(map(len, self._parts))

    @property
    def unconfirmed(self) -> int:
        """The number of deliveries whose copies the broker did not confirm in time."""
        return len(self._unconfirmed)

    @property
    def held_since(self) -> float | None:
        """When the oldest of them arrived, by the monotonic clock. None if there are none."""
        everything = chain(*self._parts)
        return min((delivery.held_since for delivery in everything), default=None)

    @property
    def has_work(self) -> bool:
        """Whether a lane may take something now."""
        # While the prefetch is about to grow, the delivery in hand stays unsettled. Then the broker
        # can't send another one to the consumer that is being cancelled, and count its return.
        return self.prefetch <= self.granted and bool(
            self._ordinary or (self._suspects and self.granted == 1)
        )

    @property
    def must_clear(self) -> bool:
        """Whether the deliveries in hand must be settled or returned before the broker sends one at
        a time.
        """
        return self.prefetch == 1 and self.granted != 1

    @property
    def has_room(self) -> bool:
        """Whether few enough are in hand to start a consumer whose limit is lower by that
        number.
        """
        return self.prefetch > self.granted or len(self) - self.unconfirmed <= self.prefetch // 4

    @property
    def is_clear(self) -> bool:
        """Whether only suspects are in hand, and what waits for the broker."""
        return not (self._ordinary or self._in_work or self._in_copy)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in hand but what waits for the broker."""
        return len(self) == self.unconfirmed

    @property
    def suspect_queue(self) -> str | None:
        """The queue of the first suspect in hand. None if there is no suspect."""
        return self._suspects[0].queue if self._suspects else None

    @property
    def waits_too_much(self) -> bool:
        """Whether so much waits for the broker that nothing else should arrive."""
        most = max(1, self._settings.prefetch // 4)
        return self.unconfirmed >= most or _bytes(self._unconfirmed) > BYTES_IN_HAND // 4

    def room_for(self, size: int) -> int:
        """The number of bytes to keep of a body that is arriving. 0 if it must go back for now."""
        # A body that the broker should have refused is cut: it is too large for a batch anyway.
        kept = min(size, max(MAX_MESSAGE_SIZE, self._settings.max_body_bytes + 1))
        is_large = size * self.full > BYTES_IN_HAND
        if self.granted > 1 and is_large and self._bytes + kept > BYTES_IN_HAND:
            if self.prefetch != 1:
                self.prefetch = 1
                self._on_turn()
            return 0
        return kept

    @property
    def _bytes(self) -> int:
        return sum(map(_bytes, self._parts))

    @property
    def _parts(self) -> tuple[Collection[Delivery], ...]:
        """Each delivery in hand is in one of these."""
        return (self._ordinary, self._suspects, self._in_work, self._in_copy, self._unconfirmed)

    def _is_large(self, size: int) -> bool:
        """Whether a prefetch of such bodies would be too much."""
        return size * self._settings.prefetch > BYTES_IN_HAND

    def arrived(self, delivery: Delivery) -> None:
        """Adds a delivery that the broker sent."""
        self.arrivals += 1
        if delivery.delivery_count >= self._settings.alone_after:
            self._suspects.append(delivery)
            wanted = 1
        else:
            self._ordinary.append(delivery)
            if self.granted > 1:
                # Other deliveries may still arrive while suspects are processed alone.
                wanted = self.prefetch
            elif self._careful_for:
                self._careful_for -= 1
                wanted = 1
            elif self._is_large(delivery.size):
                wanted = 1
            else:
                wanted = self.full
        if wanted != self.prefetch:
            self.prefetch = wanted
            self._on_turn()
        self._on_change()

    def nothing_arrives(self) -> None:
        """Has the broker send a prefetch again, because nothing waits in any queue. It does not
        while care is due.
        """
        if not self._careful_for:
            self.prefetch = self.full

    def be_careful(self) -> None:
        """Makes deliveries arrive one at a time for a while, because the broker failed on one."""
        self._careful_for = _CAREFUL_FOR

    def take(self) -> list[Delivery]:
        """Takes what has arrived, in order, up to `group_max`. A suspect is taken alone.

        The group stays in hand until it is passed to `done`.
        """
        self.drop_stale()
        if self._suspects and self.granted == 1:
            group = [self._suspects.popleft()]
        else:
            most = min(len(self._ordinary), self._settings.group_max)
            group = [self._ordinary.popleft() for _ in range(most)]
        self._in_work.update(group)
        return group

    def done(self, group: Sequence[Delivery], busy: Sequence[Delivery]) -> None:
        """Removes a group from the hand, except for what is being copied. Deliveries that a lane
        found busy come first again.
        """
        self._in_work.difference_update(group)
        for delivery in reversed(busy):
            delivery.times_busy += 1
            self._ordinary.appendleft(delivery)

    def copying(self, delivery: Delivery) -> None:
        """Keeps a delivery of a group in hand until `copied`."""
        self._in_work.discard(delivery)
        self._in_copy.add(delivery)

    def set_aside(self, delivery: Delivery) -> bool:
        """Lets the others pass a delivery whose copy the broker does not confirm. Returns False if
        they already may.
        """
        if delivery in self._unconfirmed:
            return False
        self._in_copy.discard(delivery)
        self._unconfirmed.add(delivery)
        if self.granted == 1:
            # The broker sends nothing else on its account until it is settled: ask for one again.
            self.granted = 2
            self._on_turn()
        self._on_change()
        return True

    def copied(self, delivery: Delivery) -> None:
        """Removes a delivery that has been copied, or returned instead."""
        self._in_copy.discard(delivery)
        self._unconfirmed.discard(delivery)

    def put_back(self, deliveries: Sequence[Delivery]) -> None:
        """Keeps these deliveries of a lane as unstarted ones, until those are returned."""
        self._in_work.difference_update(deliveries)
        self._in_copy.difference_update(deliveries)
        self._unconfirmed.difference_update(deliveries)
        self._ordinary.extendleft(reversed(deliveries))

    async def give_back_unstarted(self) -> None:
        """Returns to the broker everything that no lane has taken."""
        unstarted = [*self._ordinary, *self._suspects]
        self._ordinary.clear()
        self._suspects.clear()
        await self.give_back(unstarted)

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Returns these deliveries to the broker."""
        for delivery in deliveries:
            how = "given_back" if await delivery.give_back() else "stale"
            self._counts[how] += 1
            metrics.RETURNED.labels(how).inc()
        self._on_change()

    def drop_stale(self) -> None:
        """Drops deliveries that the broker has taken back, because it delivers them again."""
        for arrived in (self._ordinary, self._suspects):
            live = [delivery for delivery in arrived if delivery.is_live]
            if stale := len(arrived) - len(live):
                self._counts["stale"] += stale
                arrived.clear()
                arrived.extend(live)
                self._on_change()


def _bytes(deliveries: Collection[Delivery]) -> int:
    return sum(len(delivery.body) for delivery in deliveries)
