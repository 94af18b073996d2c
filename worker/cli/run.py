"""Commands that work until they are told to stop: `worker` and `relay`.

SIGTERM and SIGINT drain and exit 0; a second one gives up at once.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import structlog
import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.backoff import Backoff
from worker.broker import topology
from worker.broker.management import Management
from worker.broker.publisher import Publisher
from worker.cli.shared import engine_of, run, thresholds_of
from worker.consumer import Consumer
from worker.domain.dispositions import Disposition
from worker.errors import BrokerAway, DatabaseAway, IngestError, SettingsError, Stuck
from worker.ingest import Ingest
from worker.operate.gate import Gate
from worker.relay import Relay
from worker.resolve import Incoming
from worker.settings import Settings, load_settings
from worker.store import schema
from worker.store.engine import is_ready
from worker.telemetry import logs, traces
from worker.telemetry.http import served
from worker.watch import Watch

_log = structlog.get_logger(__name__)

_BESIDE_THE_LANES = 2
"""Database connections of a worker: the relay's, and one to look at gate and database with."""


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(worker)
    app.command()(relay)


def worker() -> None:
    """Consumes attempt batches, and relays the outbox, until SIGTERM.

    Waits for a database or a broker that is away. Run as many as the backlog wants.

    Example: INGEST_DATABASE_URL=... INGEST_AMQP_URL=... study-ingest worker
    """
    settings = load_settings()
    logs.configure(settings)
    _warn(settings)
    run(_worker(settings))


def relay() -> None:
    """Relays the outbox alone, until SIGTERM.

    For workers with INGEST_RELAY_IN_WORKER=false.

    Example: study-ingest relay
    """
    settings = load_settings()
    logs.configure(settings)
    run(_relay(settings))


def _warn(settings: Settings) -> None:
    """Says, at every start, what is left open."""
    if not settings.require_user_id:
        _log.warning(
            "identity.off",
            meaning="whoever can publish may write anybody's history: for local use alone",
            mend="unset INGEST_REQUIRE_USER_ID, and make viewers with `study-ingest viewer add`",
        )
    for variable in settings.unprotected():
        _log.warning(
            "connection.unprotected",
            variable=variable,
            mend="use amqps:// or https://, or ?sslmode=verify-full for PostgreSQL",
        )


async def _worker(settings: Settings) -> None:
    connections = settings.lanes + _BESIDE_THE_LANES
    async with (
        engine_of(settings, connections=connections, name="study-ingest worker") as engine,
        Management(settings) as management,
        Publisher(settings, "copies") as copies,
        Publisher(settings, "relay") as outgoing,
    ):
        with _cancelled_by_signals():
            await _ready(settings, engine, management)
        relay = Relay(engine, outgoing, settings)
        ingest = Ingest(engine, thresholds_of(settings), default_deny=settings.require_user_id)

        async def ingest_and_wake(group: Sequence[Incoming]) -> list[Disposition]:
            dispositions = await ingest(group)
            relay.wake()
            return dispositions

        async def database_ready() -> bool:
            return await is_ready(engine)

        consumer = Consumer(
            settings,
            ingest_and_wake,
            copies,
            database_ready=database_ready,
            gate_open=Gate(engine, enabled=settings.enabled),
            management=management,
        )
        watch = Watch(consumer, settings)
        with traces.exported(), _probed(settings, watch), _on_signals(consumer.drain):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_watch(watch))
                if settings.relay_in_worker:
                    tasks.create_task(relay.run())
                await consumer.run()
                relay.stop()
        if settings.relay_in_worker:
            # What the last groups wrote leaves before we do, if it can at once.
            with suppress(IngestError):
                await relay.relay()
    _log.info("worker.stopped", settled=dict(consumer.counts))


async def _watch(watch: Watch) -> None:
    """Ends a process that is stuck: at once, because what hangs would hang a drain as well."""
    try:
        await watch.run()
    except Stuck as stuck:
        _log.critical("worker.stuck", reason=str(stuck))
        os._exit(stuck.exit_code)


@contextmanager
def _probed(settings: Settings, watch: Watch) -> Iterator[None]:
    """Serves probes and metrics while the block runs, where a port is set."""
    if settings.http_port is None:
        yield
        return
    try:
        with served(
            settings.http_host, settings.http_port, live=watch.live, ready=watch.ready
        ) as port:
            _log.info("http.serving", host=settings.http_host, port=port)
            yield
    except OSError as error:
        raise SettingsError(
            f"INGEST_HTTP_PORT {settings.http_port} can't be served on ({error}): choose another."
        ) from None


async def _relay(settings: Settings) -> None:
    async with (
        engine_of(settings, connections=1, name="study-ingest relay") as engine,
        Management(settings) as management,
        Publisher(settings, "relay") as outgoing,
    ):
        with _cancelled_by_signals():
            await _ready(settings, engine, management)
        relay = Relay(engine, outgoing, settings)

        async def stop() -> None:
            relay.stop()

        with _on_signals(stop):
            await relay.run()
    _log.info("relay.stopped")


async def _ready(settings: Settings, engine: AsyncEngine, management: Management) -> None:
    """Waits until both servers are there; raises `SchemaError` or `TopologyError` if unfit."""
    await _when_there(settings, lambda: schema.check(engine))
    await _when_there(settings, lambda: topology.check(management, settings))


async def _when_there(settings: Settings, check: Callable[[], Awaitable[None]]) -> None:
    backoff = Backoff(settings.pause_delay_min, settings.pause_delay_max)
    waiting = False
    while True:
        try:
            await check()
        except (DatabaseAway, BrokerAway) as error:
            if not waiting:
                _log.warning("worker.waiting", reason=str(error))
            waiting = True
            await asyncio.sleep(backoff.next())
        else:
            return


@contextmanager
def _cancelled_by_signals() -> Iterator[None]:
    """While nothing is in hand yet, a signal just ends the process, with exit code 0."""
    task = asyncio.current_task()
    assert task is not None
    try:
        with _on_signals(task.cancel):
            yield
    except asyncio.CancelledError:
        raise typer.Exit(0) from None


@contextmanager
def _on_signals(stop: Callable[[], object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    stopping: list[object] = []

    def receive() -> None:
        if stopping:
            os._exit(128 + signal.SIGTERM)
        result = stop()
        stopping.append(asyncio.ensure_future(result) if asyncio.iscoroutine(result) else result)

    signals = (signal.SIGTERM, signal.SIGINT)
    for each in signals:
        loop.add_signal_handler(each, receive)
    try:
        yield
    finally:
        for each in signals:
            loop.remove_signal_handler(each)
