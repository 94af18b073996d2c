"""Requests for progress, answered with pages or a refusal, and checks of batches.

They have a queue, a connection to the broker and connections to the database of their own, so that
they never wait for a batch, nor a batch for them. A request is acked when it arrives: if it is lost
with the worker, its viewer repeats it.
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from pydantic import ValidationError
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.checks import MAX_CHECKED, Check
from schemas.progress import MAX_REQUEST_BYTES, ProgressRefusal, ProgressRequest
from schemas.words import RefusalReason
from worker.broker import identity
from worker.broker.burst import Outgoing
from worker.broker.publisher import Publisher
from worker.broker.subscription import Delivery, Subscription
from worker.domain.backoff import Backoff
from worker.domain.cursor import start
from worker.errors import BrokerAway, IngestError
from worker.progress.nudges import Nudges
from worker.progress.outgoing import passing
from worker.progress.pages import QUESTIONS_IN_A_PAGE, QUESTIONS_IN_AN_ANSWER, pages
from worker.progress.waiting import Waiting
from worker.settings import Settings
from worker.store import changed, checked, listening
from worker.store.engine import transaction
from worker.telemetry import metrics

CONCURRENT: Final = 2
"""Requests that are answered at once, each with a database connection."""
_PREFETCH: Final = 200
_REST: Final = 0.03
"""Seconds between two looks at what has arrived: a flood is acked with fewer frames."""
_TYPE: Final = re.compile(r"study\.progress_request\.v1(\.[0-9]{1,4})?")
_CHECK_TYPE: Final = re.compile(r"study\.check\.v1(\.[0-9]{1,4})?")
_INT64: Final = 2**63

_log = structlog.get_logger(__name__)


class Request(NamedTuple):
    """A request that was read."""

    viewer: str
    message_id: str | None
    user_id: int | None = None
    """None for the only one that the viewer is granted."""
    cursor: str | None = None
    check: tuple[UUID, ...] = ()
    """The batches that are asked about, instead of progress."""
    refused: tuple[RefusalReason, str] | None = None
    """Why it can't be answered, as reason and detail."""


class Requests:
    """Answers requests until it is stopped."""

    def __init__(
        self, engine: AsyncEngine, publisher: Publisher, nudges: Nudges, settings: Settings
    ) -> None:
        self._engine = engine
        self._publisher = publisher
        self._nudges = nudges
        self._settings = settings
        self._arrived: list[Delivery] = []
        self._waiting: Waiting[Request] = Waiting()
        self._has_arrived = asyncio.Event()
        self._has_work = asyncio.Event()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ends `run`. Requests that wait are dropped."""
        self._stopping.set()
        self._has_arrived.set()

    async def run(self) -> None:
        """Answers, whatever happens to single requests, connections and servers."""
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(self._answer_all()) for _ in range(CONCURRENT)]
            working.append(tasks.create_task(self._stay_subscribed()))
            await self._stopping.wait()
            for task in working:
                task.cancel()

    # Taking requests.

    async def _stay_subscribed(self) -> None:
        backoff = self._backoff()
        while True:
            try:
                subscription = await Subscription.open(
                    self._settings,
                    amqp.PROGRESS_QUEUE,
                    self._take,
                    self._has_arrived.set,
                    _kept,
                    purpose="progress",
                )
            except BrokerAway as error:
                _log.info("progress.waiting", problem=str(error))
                await asyncio.sleep(backoff.next())
                continue
            try:
                await subscription.consume(_PREFETCH)
                backoff.reset()
                await self._attend(subscription)
            except BrokerAway as error:
                _log.info("progress.waiting", problem=str(error))
            except Exception:  # noqa: BLE001  # a fault of ours, which must not end the worker
                _log.exception("progress.failed")
            finally:
                self._arrived.clear()
                await subscription.close()
            await asyncio.sleep(backoff.next())

    def _take(self, delivery: Delivery) -> None:
        self._arrived.append(delivery)
        self._has_arrived.set()

    async def _attend(self, subscription: Subscription) -> None:
        while not subscription.is_lost:
            await self._has_arrived.wait()
            self._has_arrived.clear()
            arrived, self._arrived = self._arrived, []
            if not arrived:
                continue
            await arrived[0].ack_with(arrived[1:])
            for delivery in arrived:
                self._let_wait(read(delivery, self._settings))
            self._has_work.set()
            await asyncio.sleep(_REST)

    def _let_wait(self, request: Request | None) -> None:
        # Only the newest check, and the newest request for a user, is of use, but each mistake gets
        # its answer.
        if request is not None:
            about = object() if request.refused else (bool(request.check), request.user_id)
            if self._waiting.add(request.viewer, about, request):
                return
        metrics.PROGRESS_REQUESTS.labels("dropped").inc()

    # Answering them.

    async def _answer_all(self) -> None:
        backoff = self._backoff()
        while True:
            request = self._waiting.take(time.monotonic())
            if request is None:
                await self._until_work()
                continue
            try:
                with metrics.ANSWER_DURATION.time():
                    # What the broker does not take is lost, and the viewer asks again.
                    told = await answer(self._engine, request, self._nudges.asked)
                    self._waiting.pay(request.viewer, len(told) - 1, time.monotonic())
                    await self._publisher.publish_all(told)
                backoff.reset()
            except IngestError as error:
                metrics.PROGRESS_REQUESTS.labels("failed").inc()
                _log.info("progress.unanswered", viewer=request.viewer, problem=str(error))
                await asyncio.sleep(backoff.next())
            except Exception:  # noqa: BLE001  # a fault of ours, which must not end the worker
                metrics.PROGRESS_REQUESTS.labels("failed").inc()
                _log.exception("progress.failed", viewer=request.viewer)
                await asyncio.sleep(backoff.next())

    async def _until_work(self) -> None:
        """Waits until there may be a request that may be answered."""
        self._has_work.clear()
        next_at = self._waiting.next_at()
        patience = None if next_at is None else max(0.0, next_at - time.monotonic())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._has_work.wait(), patience)

    def _backoff(self) -> Backoff:
        return Backoff(self._settings.pause_delay_min, self._settings.pause_delay_max)


async def answer(
    engine: AsyncEngine,
    request: Request,
    on_read: Callable[[str, int], None],
    *,
    in_a_page: int = QUESTIONS_IN_A_PAGE,
    in_an_answer: int = QUESTIONS_IN_AN_ANSWER,
) -> list[Outgoing]:
    """The messages that answer a request.

    `on_read` is called with the viewer and the user before the user's progress is read. Raises
    `DatabaseAway` or `TransientFault`.
    """
    if request.refused is not None:
        return [_refusal(request, *request.refused)]
    if request.check:
        return [await _check(engine, request)]
    async with transaction(engine) as connection:
        users = await listening.may_read(connection, request.viewer, request.user_id)
    if len(users) != 1:
        return [_refusal(request, *_not_granted(request, users))]
    (user_id,) = users
    on_read(request.viewer, user_id)
    async with transaction(engine, isolation="repeatable_read") as connection:
        state = await changed.state(connection, user_id)
        position, why = start(request.cursor, user_id, state.newest, state.erased)
        found = await changed.since(connection, user_id, position, in_an_answer + 1)
        live_ids = await changed.live_ids(connection, [each.question_id for each in found])
    metrics.PROGRESS_REQUESTS.labels("answered").inc()
    told: list[Outgoing] = []
    key = amqp.progress_key(request.viewer)
    for page in pages(
        user_id,
        request.cursor,
        why,
        state,
        found,
        live_ids,
        in_a_page=in_a_page,
        in_an_answer=in_an_answer,
    ):
        told.append(passing(key, amqp.PROGRESS_PAGE_TYPE, page, answers=request.message_id))
        await asyncio.sleep(0)  # others have a turn
    return told


async def _check(engine: AsyncEngine, request: Request) -> Outgoing:
    async with transaction(engine) as connection:
        epoch, found = await checked.check(connection, request.viewer, request.check)
    metrics.PROGRESS_REQUESTS.labels("answered").inc()
    told = {
        "epoch": epoch,
        "has": [uuid for uuid in request.check if uuid in found],
        "missing": [uuid for uuid in request.check if uuid not in found],
    }
    # Where results go: who keeps no progress takes nothing else.
    return passing(
        amqp.result_key(request.viewer),
        amqp.CHECKED_TYPE,
        to_json(told),
        answers=request.message_id,
    )


def _kept(size: int) -> int:
    """How much of a body is kept: no more than a request may have."""
    return min(size, MAX_REQUEST_BYTES)


def read(delivery: Delivery, settings: Settings) -> Request | None:
    """Reads one request. None if its sender is unknown, and nobody can be answered. It never
    raises.
    """
    properties = delivery.properties
    viewer = amqp.viewer_of_request(delivery.routing_key)
    viewer = identity.sender(viewer, properties.user_id, delivery.exchange, settings)
    if viewer is None:
        return None
    message_id = properties.message_id or None
    said = properties.message_type
    # Through MQTT there is no type.
    if _CHECK_TYPE.fullmatch(said) if said else b'"client_session_uuids"' in delivery.body:
        return _read_check(viewer, message_id, delivery)
    if said and not _TYPE.fullmatch(said):
        why = f"The message's type is not {amqp.PROGRESS_REQUEST_TYPE}."
        return Request(viewer, message_id, refused=(RefusalReason.UNSUPPORTED_VERSION, why))
    try:
        if delivery.size > MAX_REQUEST_BYTES:
            raise ValueError
        request = ProgressRequest.model_validate_json(delivery.body)
        user_id = None if request.user_id is None else int(request.user_id)
        if user_id is not None and not -_INT64 <= user_id < _INT64:
            raise ValueError
    except (ValidationError, ValueError):
        why = (
            "The body is not a request: a JSON object with cursor, a text or null, and user_id, the"
            f" number of a user as text; {MAX_REQUEST_BYTES} bytes at most."
        )
        return Request(viewer, message_id, refused=(RefusalReason.MALFORMED, why))
    return Request(viewer, message_id, user_id, request.cursor)


def _read_check(viewer: str, message_id: str | None, delivery: Delivery) -> Request:
    try:
        if delivery.size > MAX_REQUEST_BYTES:
            raise ValueError
        check = Check.model_validate_json(delivery.body)
    except ValueError:
        why = (
            f"The body is not a check: a JSON object with client_session_uuids, 1 to {MAX_CHECKED}"
            f" uuids as text; {MAX_REQUEST_BYTES} bytes at most."
        )
        return Request(viewer, message_id, refused=(RefusalReason.MALFORMED, why))
    return Request(viewer, message_id, check=tuple(dict.fromkeys(check.client_session_uuids)))


def _not_granted(request: Request, users: Sequence[int]) -> tuple[RefusalReason, str]:
    if users:
        return (
            RefusalReason.USER_AMBIGUOUS,
            "The viewer is granted several users: name one in user_id.",
        )
    whom = "any user" if request.user_id is None else f"user {request.user_id}"
    return (
        RefusalReason.USER_NOT_GRANTED,
        f"The viewer is not granted {whom}: the operator can do that with `viewer grant`.",
    )


def _refusal(request: Request, reason: RefusalReason, detail: str) -> Outgoing:
    metrics.PROGRESS_REQUESTS.labels("refused").inc()
    told = ProgressRefusal(
        user_id=None if request.user_id is None else str(request.user_id),
        reason=reason,
        detail=detail,
    )
    return passing(
        amqp.progress_key(request.viewer),
        amqp.PROGRESS_REFUSAL_TYPE,
        told.model_dump_json(exclude_none=True).encode(),
        answers=request.message_id,
    )
