"""The relay: publishes the batches of the outbox, and stores the results, as long as it runs.

All of its state is in the outbox, so it may be killed at any point. What was sent but not marked is
sent again, and the worker detects duplicates by their uuid.
"""

import asyncio
import logging
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, Self, TypeVar
from uuid import UUID

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aio_pika.connection import make_url
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelClosed

from study_viewer.asking import Plan, read, request, send, take, take_result, why
from study_viewer.checking import (
    MAY_NOT_CHECK,
    NOBODY_CHECKS,
    Pace,
    check,
    epoch_of,
    is_about_check,
)
from study_viewer.errors import RelayStopped
from study_viewer.lock import only_relay
from study_viewer.outbox import Entry, Outbox, State
from study_viewer.publishing import ingest_exchange, publish
from study_viewer.results import Results, Told, open_progress, open_results, read_told
from study_viewer.schemas.amqp import attempts_key
from study_viewer.schemas.brokers import brokers
from study_viewer.schemas.checks import MAX_CHECKED, Checked, Recall
from study_viewer.schemas.ingest_result import IngestResult
from study_viewer.schemas.progress import ProgressPage, ProgressRefusal
from study_viewer.settings import RelaySettings

log = logging.getLogger(__name__)

T = TypeVar("T")
Arguments = ParamSpec("Arguments")

_LOCK_RETRY = 0.02
"""Seconds between attempts on a file that another connection has locked."""


@dataclass(slots=True)
class RelayStatus:
    """The state of the relay, for people."""

    connected: bool = False
    """Whether the relay is connected, so that results can arrive."""
    problem: str | None = None
    """One sentence about the latest failure. None if all is well."""
    unknown_results: int = 0
    """The number of results for batches that this outbox does not have. They were pruned, or
    another outbox uses the same viewer name, which must not happen.
    """
    unreadable_results: int = 0
    """The number of results that this version of the library can't read."""
    resent: int = 0
    """The number of batches that the server had lost, and that are published again."""
    check_problem: str | None = None
    """One sentence on why it is not known whether the server has lost batches. None if all is
    well.
    """
    progress_current: bool = False
    """Whether this device has all progress of its users, as far as the server has said."""
    progress_problem: str | None = None
    """One sentence on why it gets no progress, or not that of a user. None if all is well. Batches
    and results do not depend on it.
    """


class RelayBase:
    """What every relay has: its settings, its login, and its state for people."""

    def __init__(self, url: str, viewer: str, settings: RelaySettings | None) -> None:
        self.status = RelayStatus()
        self._settings = settings or RelaySettings()
        self._viewer = viewer
        self._routing_key = attempts_key(viewer)
        self._urls = [make_url(each) for each in brokers(url)]
        if self._urls[0].scheme not in ("amqp", "amqps"):
            raise ValueError("the broker's URL must begin with amqp:// or amqps://")
        if "heartbeat" not in self._urls[0].query:
            heartbeat = str(self._settings.heartbeat)
            self._urls = [each.update_query(heartbeat=heartbeat) for each in self._urls]
        # The broker accepts a user id only if it is the login.
        self._user_id = viewer if self._urls[0].user == viewer else None
        self._failures = 0
        self._woken = asyncio.Event()
        self._doubtful = asyncio.Event()
        """Set when there may be something to check."""
        self._opening: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def _connected(
        self,
    ) -> AsyncIterator[tuple[AbstractConnection, Results, AbstractExchange]]:
        """A connection that takes results and can publish batches, until the block ends."""
        settings = self._settings
        connection = await self._connect()
        try:
            async with asyncio.timeout(settings.answer_timeout):
                # This comes first, because a result that arrives before its queue exists would be
                # lost.
                results = await open_results(
                    connection,
                    self._viewer,
                    declare=settings.declare_results_queue,
                    prefetch=settings.prefetch,
                )
                exchange = await ingest_exchange(connection)
            self.status.connected = True
            self._show(None)
            yield connection, results, exchange
        finally:
            if self._opening:
                await asyncio.wait(self._opening, timeout=settings.close_timeout)
            with suppress(TimeoutError, *CONNECTION_EXCEPTIONS):
                async with asyncio.timeout(settings.close_timeout):
                    await connection.close()

    async def _connect(self) -> AbstractConnection:
        """A connection to one of the brokers, which are tried in random order."""
        *others, last = random.sample(self._urls, len(self._urls))
        timeout = self._settings.connect_timeout
        for url in others:
            with suppress(TimeoutError, *CONNECTION_EXCEPTIONS):
                return await aio_pika.connect(url, timeout=timeout)
        return await aio_pika.connect(last, timeout=timeout)

    def _next_delay(self) -> float:
        settings = self._settings
        longest = settings.retry_delay_min * 2.0 ** min(self._failures, 30)
        self._failures += 1
        return min(longest, settings.retry_delay_max) * random.uniform(0.5, 1.0)  # noqa: S311

    async def _pause(self, seconds: float) -> None:
        """Waits for this time, or until somebody calls `wake`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        self._woken.clear()

    def _show(self, problem: str | None) -> None:
        if problem is not None and problem != self.status.problem:
            log.warning("%s", problem)
        self.status.problem = problem
        self._announce()

    def _announce(self) -> None:
        """Called after each change of the status."""

    async def _opened(self, opening: Coroutine[Any, Any, T]) -> T:
        """Awaits what opens a channel. If this is cancelled, that goes on until the connection is
        closed, because aiormq warns of each request that is cancelled.
        """
        task = asyncio.create_task(opening)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def _check_all(
        self,
        connection: AbstractConnection,
        claim: Callable[[], Awaitable[tuple[Sequence[UUID], float]]],
    ) -> None:
        """Asks the server which batches it still has, for as long as the connection lasts. Whatever
        goes wrong with it, batches and results go on.

        `claim` gives the batches to ask about now, and the seconds until it wants to be called
        again. The answers come among the results.
        """
        while True:
            try:
                await first_of(self._check_on_one_channel(connection, claim))
            except ChannelClosed:
                self._show_check(MAY_NOT_CHECK)
            except (*CONNECTION_EXCEPTIONS, TimeoutError) as error:
                log.debug("a check was not sent: %s", error)
            await asyncio.sleep(self._settings.check_patience)

    async def _check_on_one_channel(
        self,
        connection: AbstractConnection,
        claim: Callable[[], Awaitable[tuple[Sequence[UUID], float]]],
    ) -> None:
        exchange: AbstractExchange | None = None
        while True:
            self._doubtful.clear()
            uuids, wait = await claim()
            if uuids:
                async with asyncio.timeout(self._settings.answer_timeout):
                    if exchange is None:
                        exchange = await self._opened(ingest_exchange(connection))
                    problem = await send(exchange, self._viewer, check(uuids, self._user_id))
                if problem is not None:
                    self._show_check(NOBODY_CHECKS)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._doubtful.wait()

    def _took_checked(self, again: int) -> None:
        """An answer was stored, and so many batches are pending again."""
        if again:
            log.warning("the server has lost %d batches: they are published again", again)
            self.status.resent += again
            self._woken.set()
        self._show_check(None)

    def _show_check(self, problem: str | None) -> None:
        if problem is not None and problem != self.status.check_problem:
            log.warning("%s", problem)
        self.status.check_problem = problem
        self._announce()

    def _told(self, message: AbstractIncomingMessage) -> Told | None:
        """What a message among the results says. None if this library can't read it."""
        told = read_told(message.type, message.body)
        if told is None:
            self.status.unreadable_results += 1
            log.warning("a result of type %r can't be read: upgrade the viewer", message.type)
        return told

    def _note_unknown(self, result: IngestResult) -> None:
        self.status.unknown_results += 1
        log.warning(
            "a result for %s, which is not in this outbox: was it pruned, or does another"
            " outbox use the viewer name %r?",
            result.client_session_uuid,
            self._viewer,
        )


class Relay(RelayBase):
    """Publishes the batches in `outbox` as `viewer`, and settles them when their results arrive.

    `url` is amqp(s)://login:password@host:port/vhost. Use the relay in `async with`, or call `run`.
    If the broker is unreachable, it waits without limit, and shows that in `status`. Raises
    ValueError for another kind of URL, and for a viewer name that is not 1 to 64 letters, digits,
    '-' and '_'.

    It keeps the progress of the viewer's users as well, for `Outbox.due`. A viewer that is granted
    several users names them in `users`.
    """

    def __init__(
        self,
        outbox: Outbox,
        url: str,
        viewer: str,
        settings: RelaySettings | None = None,
        *,
        users: Sequence[int] = (),
    ) -> None:
        super().__init__(url, viewer, settings)
        self._outbox = outbox
        self._users = users
        self._plan: Plan | None = None
        self._pace = Pace(self._settings, time.monotonic)
        self._problems: dict[int | None, str] = {}
        self._warned: set[str] = set()
        self._asking = asyncio.Event()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held = ExitStack()

    async def start(self) -> None:
        """Starts to relay in the background. Raises `RelayRunning` if the outbox has a relay
        already.
        """
        with ExitStack() as held:
            held.enter_context(only_relay(self._outbox.path))
            # A separate connection that never waits. SQLite is called in the event loop, because
            # every call is one short statement, and locks are waited for outside of it.
            window = self._outbox.resend_window
            store = Outbox(self._outbox.path, lock_timeout=0, resend_window=window)
            held.enter_context(store)
            self._held = held.pop_all()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._work(store), name="study outbox relay")
        self._task.add_done_callback(lambda _: self._announce())

    async def stop(self) -> None:
        """Stops the relay. The next relay sends a publish that was in flight again."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        self._held.close()
        self.status.connected = False
        if not task.cancelled():
            task.result()  # a bug of ours and not a problem with the broker: raise it

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Relays until `stop` is set, or until the calling task is cancelled."""
        async with self:
            ending = asyncio.create_task((stop or asyncio.Event()).wait())
            try:
                await asyncio.wait({ending, self._running()}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ending.cancel()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def wake(self) -> None:
        """Makes the relay look at the outbox, or try the broker, now. May be called from any
        thread.
        """
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has closed, so there is nothing to wake
                self._loop.call_soon_threadsafe(self._woken.set)

    def refresh(self) -> None:
        """Asks the server for the progress of all users now, as a device does when somebody pulls
        to refresh. Call it in the relay's own thread.
        """
        self.status.progress_current = False
        if self._plan is not None:
            self._ask_all(self._plan)
        self._asking.set()

    async def until_current(self) -> None:
        """Asks for the progress of all users, and waits until it is here. Without a network it
        waits for one, and for a server that answers.
        """
        self.refresh()
        await self.until(lambda: self.status.progress_current)

    async def until(self, condition: Callable[[], T | None]) -> T:
        """Waits until `condition` returns something true, and returns that.

        It calls `condition` after every change that the relay makes to the outbox or to its status.
        Raises `RelayStopped` if the relay does not run.
        """
        while True:
            changed = self._changed
            if found := condition():
                return found
            if self._running().done():
                raise RelayStopped from self._fault()
            await changed.wait()

    async def until_settled(self, client_session_uuid: UUID) -> Entry:
        """Waits for the result of one batch, and returns its entry."""

        def settled() -> Entry | None:
            entry = self._outbox.get(client_session_uuid)
            return entry if entry is not None and entry.state is State.SETTLED else None

        return await self.until(settled)

    def _running(self) -> asyncio.Task[None]:
        if self._task is None:
            raise RelayStopped
        return self._task

    def _fault(self) -> BaseException | None:
        task = self._running()
        return task.exception() if task.done() and not task.cancelled() else None

    async def _work(self, store: Outbox) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await first_of(self._session(store))
            except (*CONNECTION_EXCEPTIONS, sqlite3.OperationalError) as error:
                # RuntimeError is included, because aiormq raises it on a channel that was just
                # closed.
                self.status.connected = False
                self._show(_sentence(error))
            if clock() - began > self._settings.retry_delay_max:
                self._failures = 0
            await self._pause(self._next_delay())

    async def _session(self, store: Outbox) -> None:
        """Runs one connection from its start to its end. It never returns without an error."""
        async with self._connected() as (connection, results, exchange):
            try:
                await first_of(
                    self._publish_all(store, exchange),
                    self._settle_all(store, results),
                    results.lost(),
                    self._keep_current(store, connection),
                    self._check_all(connection, partial(self._claim, store)),
                )
            finally:
                self._plan, self.status.progress_current = None, False

    async def _claim(self, store: Outbox) -> tuple[Sequence[UUID], float]:
        """The batches to ask about now, and the seconds until the next look."""
        if wait := self._pace.wait():
            return [], wait
        uuids = await _unlocked(store.unchecked, MAX_CHECKED)
        if not uuids:
            return [], self._settings.check_patience
        self._pace.asked()
        return uuids, self._pace.wait()

    async def _publish_all(self, store: Outbox, exchange: AbstractExchange) -> None:
        """Publishes one batch at a time, so that none is sent before the previous one was
        confirmed.
        """
        settings = self._settings
        while True:
            entry = await _unlocked(
                store.next_due, settings.result_timeout, settings.result_timeout_max
            )
            if entry is None:
                await self._pause(settings.poll_interval)
                continue
            async with asyncio.timeout(settings.publish_timeout):
                problem = await publish(exchange, entry, self._routing_key, self._user_id)
            if problem is None:
                await _unlocked(store.confirm, entry.client_session_uuid)
                self._failures = 0
                self._show(None)
            else:
                await _unlocked(store.note_problem, entry.client_session_uuid, problem)
                self._show(problem)
                await self._pause(self._next_delay())

    async def _settle_all(self, store: Outbox, results: Results) -> None:
        while True:
            message = await results.next()
            await self._settle(store, message)
            # Only now is the result stored. A result that can't be used is acked as well, because
            # otherwise it would come back for ever. If a batch misses its result, it is published
            # again after a while, and the worker repeats its answer.
            await message.ack()

    async def _settle(self, store: Outbox, message: AbstractIncomingMessage) -> None:
        told, epoch = self._told(message), epoch_of(message)
        if isinstance(told, IngestResult):
            if not await _unlocked(store.settle, told, epoch):
                self._note_unknown(told)
            if self._plan is not None:
                await _unlocked(take_result, store.progress, self._plan, told)
                self.status.progress_current = self._plan.current
                self._asking.set()
        elif isinstance(told, Checked):
            again = await _unlocked(store.take_checked, told)
            if again is not None:
                self._pace.answered(again)
                self._took_checked(again)
        elif isinstance(told, Recall):
            await _unlocked(store.doubt, told.since)
        self._doubtful.set()
        self._announce()

    async def _keep_current(self, store: Outbox, connection: AbstractConnection) -> None:
        """Keeps the progress current for as long as the connection lasts. Whatever goes wrong with
        it, batches and results go on.
        """
        if not self._settings.keep_progress:
            await asyncio.Event().wait()  # until the connection ends
        while True:
            try:
                await first_of(self._ask_and_apply(store, connection))
            except (*CONNECTION_EXCEPTIONS, TimeoutError) as error:
                self._show_progress(None, why(error))
                refused = isinstance(error, ChannelClosed)
            self._plan, self.status.progress_current = None, False
            self._asking.clear()
            settings = self._settings
            rest = settings.progress_interval if refused else settings.progress_patience_max
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._asking.wait()  # `refresh` ends the rest

    async def _ask_and_apply(self, store: Outbox, connection: AbstractConnection) -> None:
        settings = self._settings
        async with asyncio.timeout(settings.answer_timeout):
            pages = await self._opened(
                open_progress(
                    connection,
                    self._viewer,
                    declare=settings.declare_results_queue,
                    prefetch=settings.prefetch,
                )
            )
            exchange = await self._opened(ingest_exchange(connection))
        plan = self._plan = Plan(settings, asyncio.get_running_loop().time)
        self._ask_all(plan)
        await first_of(
            self._ask(store, exchange, plan), self._apply(store, pages, plan), pages.lost()
        )

    def _ask_all(self, plan: Plan) -> None:
        users: set[int | None] = {*self._users, *self._outbox.progress.users()}
        for user in users or {None}:
            plan.ask(user)

    async def _ask(self, store: Outbox, exchange: AbstractExchange, plan: Plan) -> None:
        while True:
            self._asking.clear()
            for user in plan.to_ask():
                cursor = None if user is None else await _unlocked(store.progress.cursor, user)
                message = request(user, cursor, self._user_id)
                async with asyncio.timeout(self._settings.publish_timeout):
                    problem = await send(exchange, self._viewer, message)
                if problem is not None:
                    self._show_progress(user, problem)
            with suppress(TimeoutError):
                async with asyncio.timeout(plan.wait()):
                    await self._asking.wait()

    async def _apply(self, store: Outbox, pages: Results, plan: Plan) -> None:
        while True:
            message = await pages.next()
            told = read(message)
            if told is None:
                log.warning("progress of type %r can't be read: upgrade the viewer", message.type)
            elif is_about_check(message):
                self._show_check(NOBODY_CHECKS)  # an older worker, which refuses what it can't read
            else:
                if not isinstance(told, ProgressRefusal) and await _unlocked(store.saw, told.epoch):
                    self._doubtful.set()
                problem = await _unlocked(take, store.progress, plan, told)
                if isinstance(told, ProgressPage | ProgressRefusal):
                    user = None if told.user_id is None else int(told.user_id)
                    self._show_progress(user, problem)
            await message.ack()
            self.status.progress_current = plan.current
            self._asking.set()
            self._announce()

    def _show_progress(self, user: int | None, problem: str | None) -> None:
        """Shows what keeps the user's progress away, or that nothing does now. None is everybody's
        problem.
        """
        self._problems.pop(None, None)
        self._problems.pop(user, None)
        if problem is not None:
            self._problems[user] = problem
            if problem not in self._warned:  # once, however often it is met again
                self._warned.add(problem)
                log.warning("%s", problem)
        self.status.progress_problem = next(iter(self._problems.values()), None)
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def first_of(*parts: Coroutine[Any, Any, None]) -> None:
    """Runs all of them. When one ends, it cancels the others, and ends in the same way.

    aio-pika answers some calls on a lost connection with a cancellation that nobody requested, or
    with a plain `Exception`. Both become ConnectionResetError.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = next(task for task in tasks if task.done())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if ended.cancelled() or type(ended.exception()) is Exception:
        raise ConnectionResetError("the connection to the broker was lost")
    ended.result()


async def _unlocked(
    operation: Callable[Arguments, T], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> T:
    """Runs one short SQLite operation. It waits while another connection has locked the file."""
    while True:
        try:
            return operation(*args, **kwargs)
        except sqlite3.OperationalError as error:
            # The low byte. The others distinguish kinds of busy.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        await asyncio.sleep(_LOCK_RETRY)


def _sentence(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the broker did not answer in time: it may be overloaded, or the network may be bad"
    whose = "outbox" if isinstance(error, sqlite3.Error) else "broker"
    return f"the {whose} can't be used: {error or type(error).__name__}"
