"""The step *collect*: what the broker itself has given up on becomes dead letters, and leaves it.

Messages that were returned too often, or that expired, wait in `study.attempts.dead`; so do the
dead letters of workers of an older version. Each is acked after the commit that keeps it. A message
that no AMQP 0-9-1 connection survives is taken by the management API, so that it stops nobody.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from pamqp.commands import Basic
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.ingest_result import IngestResult
from schemas.words import RejectReason, Status
from worker.broker.dead_queue import DeadQueue, ShownMessage
from worker.broker.subscription import Delivery, Subscription
from worker.consume import intake
from worker.domain.backoff import Backoff
from worker.domain.records import DeadLetter, Message
from worker.errors import BrokerAway, DatabaseAway, IngestError, TopologyError, TransientFault
from worker.ingest import messages
from worker.ingest.letters import dead_letter
from worker.ingest.resolve import Incoming
from worker.settings import Settings
from worker.store import dead_letters, inbox, outbox
from worker.store.driver import write
from worker.store.engine import transaction
from worker.telemetry import metrics

_log = structlog.get_logger(__name__)

_PREFETCH: Final = 20
_LOSSES: Final = 3
"""Connections that end with the same message at the head before it is taken another way."""

_WHY: Final = {
    RejectReason.DELIVERY_LIMIT: "The broker returned the batch to workers as often as it may: it"
    " may kill the worker that takes it.",
    RejectReason.EXPIRED: "The batch expired before a worker could take it: publish it without the"
    " property expiration, and see that no policy gives the queue a message-ttl.",
}


@dataclass(frozen=True, slots=True)
class Death:
    """A message in the queue of dead letters, read."""

    incoming: Incoming
    reason: str
    detail: str
    died_at: datetime | None
    is_told: bool
    """Whether its viewer has been told already, by the worker that rejected it."""


@dataclass
class _Before:
    """The message as it was before it died: how it came to the workers' queue, and with what."""

    message: Delivery | ShownMessage
    exchange: str
    routing_key: str
    headers: dict[str, Any]
    times_busy: int = 0
    properties: Basic.Properties = field(init=False)
    body: bytes = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.properties = self.message.properties
        self.body, self.size = self.message.body, self.message.size

    def digest(self) -> bytes:
        return self.message.digest()

    def field_table(self) -> bytes:
        return self.message.field_table()

    def identity(self) -> bytes:
        return self.message.identity()


def death_of(message: Delivery | ShownMessage, settings: Settings) -> Death:
    """Reads one message of the queue of dead letters; never raises."""
    headers = message.headers
    death = _death(headers)
    if death is None:
        # Of an older worker, whose headers can be believed as those of a retry can.
        ours = (amqp.REASON_HEADER, amqp.DETAIL_HEADER)
        before = {key: value for key, value in headers.items() if key not in ours}
        _, incoming = intake.understand(
            _Before(message, amqp.RETURN_EXCHANGE, "", before), settings
        )
        reason, detail = (str(headers.get(key) or "") for key in ours)
        died_at = _time(headers.get(amqp.PARKED_AT_HEADER))
        return Death(incoming, reason or "unknown", detail, died_at, is_told=True)
    # What such a message says of its sender is a viewer's word, unless it had come by way of the
    # exchange that no viewer may write to.
    exchange, routing_key = str(death.get("exchange")), _first(death.get("routing-keys"))
    _, incoming = intake.understand(_Before(message, exchange, routing_key, headers), settings)
    is_expired = death.get("reason") == "expired"
    why = RejectReason.EXPIRED if is_expired else RejectReason.DELIVERY_LIMIT
    return Death(incoming, why, _WHY[why], _time(death.get("time")), is_told=False)


def _death(headers: dict[str, Any]) -> dict[str, Any] | None:
    """The broker's note that it took the message off the workers' queue; None without one.

    Copies that older workers parked have no such note: they leave the broker's headers behind.
    """
    deaths = headers.get("x-death")
    for death in deaths if isinstance(deaths, list) else ():
        if isinstance(death, dict) and _is_of_workers(str(death.get("queue"))):
            return death
    return None


def _is_of_workers(queue: str) -> bool:
    return queue == amqp.ATTEMPTS_QUEUE or amqp.is_partition(queue)


def _first(keys: object) -> str:
    return str(keys[0]) if isinstance(keys, list) and keys else ""


def _time(value: object) -> datetime | None:
    if isinstance(value, int):
        value = datetime.fromtimestamp(min(max(value, 0), 2**32), UTC)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


class Collector:
    """Collects until it is told to stop; any number of them may run at once."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._stopping = asyncio.Event()
        self._losses = Counter[bytes]()
        """How many connections ended with each message at the head, since one was taken."""
        self._one_at_a_time = False
        """After a loss, until the queue is empty, so that each message is acked before the next one
        can end the connection."""
        self._body_bytes = max(settings.dead_body_bytes, settings.max_body_bytes)
        """What is kept of a body, or read."""

    def stop(self) -> None:
        """Ends `run` after what is being kept."""
        self._stopping.set()

    async def run(self) -> None:
        """Collects what comes; waits, ever longer, while that fails, whatever the reason."""
        backoff = Backoff(self._settings.pause_delay_min, self._settings.pause_delay_max)
        while not self._stopping.is_set():
            try:
                if await self._collect():
                    backoff.reset()
            except IngestError as error:
                _log.warning("collector.waiting", problem=str(error))
            except Exception:  # noqa: BLE001  # a fault of ours, which must not end the worker
                _log.exception("collector.failed")
            await self._stops_within(backoff.next())

    async def _collect(self) -> int:
        """Collects over one connection, until it is lost; returns how many messages.

        Raises `BrokerAway` when there is none, and what the database raises.
        """
        arrived: asyncio.Queue[Delivery | None] = asyncio.Queue()
        subscription = await Subscription.open(
            self._settings,
            amqp.DEAD_QUEUE,
            arrived.put_nowait,
            lambda: arrived.put_nowait(None),
            room=lambda size: min(size, self._body_bytes),
            purpose="dead-letters",
        )
        collected = 0
        try:
            await subscription.consume(1 if self._one_at_a_time else _PREFETCH)
            while (group := await self._next(arrived, subscription)) is not None:
                collected += await self._keep_all(group)
        except BrokerAway as error:
            # It may have ended by the first message, even before it was said to begin.
            _log.warning("collector.waiting", problem=str(error))
        finally:
            await subscription.close()
        if not self._stopping.is_set():
            collected += await self._look_at_the_head()
        return collected

    async def _next(
        self, arrived: "asyncio.Queue[Delivery | None]", subscription: Subscription
    ) -> list[Delivery] | None:
        """What has arrived, at least one message; None when no more will come."""
        stopping = asyncio.create_task(self._stopping.wait())
        getting = asyncio.create_task(arrived.get())
        try:
            while not (getting.done() or stopping.done()):
                await asyncio.wait(
                    (getting, stopping),
                    timeout=self._settings.consumer_check_interval,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not (getting.done() or stopping.done()):
                    await subscription.check_consumer(None)
            if not getting.done():
                return None
            group = [getting.result()]
            while not arrived.empty():
                group.append(arrived.get_nowait())
        finally:
            stopping.cancel()
            getting.cancel()
        live = [delivery for delivery in group if delivery is not None]
        return live if len(live) == len(group) else None

    async def _keep_all(self, group: Sequence[Delivery]) -> int:
        """Keeps the messages, and acks them; one that can't be kept costs only itself."""
        try:
            await self._keep([death_of(delivery, self._settings) for delivery in group])
        except (DatabaseAway, TransientFault):
            raise
        except Exception as fault:  # noqa: BLE001  # one message costs only itself
            if len(group) == 1:
                # It stays in hand; the others are collected meanwhile.
                _log.exception("collector.unkept", error=type(fault).__name__)
                return 0
            return sum([await self._keep_all([delivery]) for delivery in group])
        first, *others = group
        return len(group) if await first.ack_with(others) else 0

    async def _keep(self, deaths: Sequence[Death]) -> None:
        async with transaction(self._engine) as connection:
            untold = {
                death.incoming.client_session_uuid
                for death in deaths
                if not death.is_told and death.incoming.client_session_uuid is not None
            }
            known = (await inbox.look(connection, untold, ())).known if untold else {}
            letters = [self._letter(death) for death in deaths]
            new = await dead_letters.keep(connection, letters, self._settings.policy())
            # A letter that is here already has been told: its ack was lost, or another worker
            # collected it.
            told = {
                letter.key: _result(death)
                for letter, death in zip(letters, deaths, strict=True)
                if letter.key in new and death.incoming.client_session_uuid in untold - known.keys()
            }
            await write(
                connection, outbox.recording([each for some in told.values() for each in some])
            )
        for death in deaths:
            metrics.COLLECTED.labels(metrics.reason_label(death.reason)).inc()
            _log.info(
                "letter.collected",
                client_session_uuid=str(death.incoming.client_session_uuid),
                viewer=death.incoming.viewer,
                reason=death.reason,
            )

    def _letter(self, death: Death) -> DeadLetter:
        incoming = death.incoming
        assert incoming.original is not None
        return dead_letter(
            incoming.original,
            incoming.viewer,
            incoming.client_session_uuid,
            death.reason,
            death.detail,
            body_bytes_max=self._settings.dead_body_bytes,
            died_at=death.died_at,
        )

    async def _look_at_the_head(self) -> int:
        """Notes which message is at the head after a connection has ended, and takes it when that
        was the third; returns how many messages it took.

        The broker may put a returned message behind others that were returned. So the message that
        ends connections need not be at the head each time: one that can't be delivered is taken
        after three connections, whichever messages were there.
        """
        taken = 0
        try:
            async with DeadQueue(self._settings) as queue:
                head = await queue.head()
                self._one_at_a_time = head is not None
                if head is None:
                    self._losses.clear()
                    return taken
                self._losses[head.identity()] += 1
                losses = self._losses[head.identity()]
                if not head.can_be_delivered:
                    losses = self._losses.total()
                if losses < _LOSSES:
                    return taken
                await self._take(queue, head)
                taken += 1
                # Whoever sent one may have sent thousands.
                while (head := await queue.head()) is not None and not head.can_be_delivered:
                    await self._take(queue, head)
                    taken += 1
                self._losses.clear()
        except (BrokerAway, TopologyError) as error:
            # Perhaps the API can't show this message either. The broker puts what it takes back in
            # another order, so whatever is behind the message gets ahead of it: first many are
            # delivered together, which all come back, then one at a time.
            self._one_at_a_time = not self._one_at_a_time
            _log.error("collector.blocked", problem=str(error))
        return taken

    async def _take(self, queue: DeadQueue, head: ShownMessage) -> None:
        """Keeps the message at the head, then takes it out of the queue."""
        await self._keep([death_of(head, self._settings)])
        taken = await queue.head(take=True)
        _log.warning(
            "collector.took_head",
            meaning="a connection ended whenever this message was delivered: the management API"
            " gave it instead",
        )
        if taken is not None and taken.identity() != head.identity():
            # Another worker was faster, and this is the next one.
            await self._keep([death_of(taken, self._settings)])

    async def _stops_within(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


def _result(death: Death) -> list[Message]:
    incoming = death.incoming
    assert incoming.client_session_uuid is not None
    return messages.result(
        incoming,
        IngestResult(
            client_session_uuid=incoming.client_session_uuid,
            status=Status.REJECTED,
            received_at=datetime.now(UTC),
            reason=RejectReason(death.reason),
            detail=death.detail,
        ),
    )
