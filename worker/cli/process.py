"""The processes of `worker` and `relay`, from their start until a signal ends them.

SIGTERM and SIGINT drain and exit with 0. A second signal exits at once.
"""

import asyncio
import os
import platform
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress

import structlog
import typer
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from worker import __version__
from worker.broker import decoders, topology
from worker.broker.management import Management
from worker.broker.publisher import Publisher
from worker.cli.shared import engine_of
from worker.consume.collect import Collector
from worker.consume.consumer import Consumer
from worker.consume.gate import Gate
from worker.consume.partitions import Partitions
from worker.consume.presence import Presence, new_name
from worker.domain.backoff import Backoff
from worker.errors import (
    BehindPooler,
    BrokerAway,
    DatabaseAway,
    IngestError,
    SettingsError,
    Stuck,
    TopologyError,
    TransientFault,
)
from worker.health import RelayWatch, Watch
from worker.ingest.transaction import Ingest
from worker.ingest.trial import try_writing
from worker.progress import requests
from worker.progress.nudges import Nudges
from worker.progress.requests import Requests
from worker.relay.prune import Pruner
from worker.relay.relay import Relay
from worker.relay.replays import Replays
from worker.settings import Settings
from worker.store import schema
from worker.telemetry import logs, metrics, traces
from worker.telemetry.http import served

_log = structlog.get_logger(__name__)

_BESIDE_THE_LANES = 4 + requests.CONCURRENT
"""Database connections of a worker besides its lanes: one for the relay, one for checks, leases,
signs of life and pruning, one for dead letters that are collected or replayed, one for nudges, and
those for requests for progress."""

_TOPOLOGY_EVERY = 6
"""The number of consumer checks for each check of the topology, which lists all queues of the
vhost.
"""


def _warn(settings: Settings) -> None:
    """Warns at every start about settings that are not safe."""
    if not settings.require_user_id:
        _log.warning(
            "identity.off",
            meaning="anybody who can publish can write anybody's history: for local use only",
            remedy="unset INGEST_REQUIRE_USER_ID, and create viewers with study-ingest viewer add",
        )
    for variable in settings.unprotected():
        _log.warning(
            "connection.unprotected",
            variable=variable,
            remedy="use amqps:// or https://, or ?sslmode=verify-full for PostgreSQL",
        )


async def run_worker(settings: Settings) -> None:
    """Consumes, and also relays if the settings say so, until a signal.

    Raises `SchemaError`, `TopologyError`, `SettingsError` or `InstallationError` if it can't start.
    """
    logs.configure(settings)
    decoders.install()  # if that is not possible, end the process before it takes anything
    _warn(settings)
    connections = settings.lanes + _BESIDE_THE_LANES
    async with (
        engine_of(settings, connections=connections, name="study-ingest worker") as engine,
        Management(settings) as management,
        Publisher(settings, "copies") as copies,
        Publisher(settings, "relay") as outgoing,
        Publisher(settings, "replays") as replayed,
        Publisher(settings, "progress") as told,
    ):
        relay = Relay(engine, outgoing, settings)
        nudges = Nudges(engine, told)
        asked = Requests(engine, told, nudges, settings)
        collector = Collector(engine, settings)
        name = new_name()
        replays = Replays(engine, replayed, settings)
        ingest = Ingest(
            engine,
            settings.policy(),
            turns=settings.turns(),
            worker=name,
            on_commit=relay.wake,
            on_change=nudges.note,
        )

        async def trial() -> None:
            await try_writing(engine)

        consumer = Consumer(
            settings,
            ingest,
            copies,
            trial=trial,
            gate_open=Gate(engine, enabled=settings.enabled),
            management=management,
        )
        partitions = Partitions(engine, management, consumer, settings, name)
        presence = Presence(engine, consumer, name)
        pruner = Pruner(engine, settings, name)
        watch = Watch(consumer, settings)
        async with _watched(settings, watch, engine):
            with _cancelled_by_signals():
                await _ready(settings, engine, management)
            with traces.exported(), _on_signals(consumer.drain):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(collector.run())
                    tasks.create_task(partitions.run())
                    tasks.create_task(presence.run())
                    tasks.create_task(pruner.run())
                    tasks.create_task(asked.run())
                    tasks.create_task(nudges.run())
                    if settings.relay_in_worker:
                        tasks.create_task(relay.run())
                        tasks.create_task(replays.run())
                    watching = tasks.create_task(_watch_topology(settings, management, watch))
                    await consumer.run()
                    watching.cancel()
                    partitions.stop()
                    presence.stop()
                    pruner.stop()
                    relay.stop()
                    replays.stop()
                    collector.stop()
                    asked.stop()
                    nudges.stop()
            if settings.relay_in_worker and relay.trouble is None:
                # Publish what the last groups wrote before the process ends, if that works at once.
                with suppress(IngestError):
                    await relay.relay()
    _log.info("worker.stopped", settled=dict(consumer.counts))


async def _watch_topology(settings: Settings, management: Management, watch: Watch) -> None:
    """Notices if somebody changes the broker's topology under a running worker.

    The worker continues, because it ingests what it takes, and stopping would not make any message
    safer. But it is not ready, and says why.
    """
    while True:
        await asyncio.sleep(settings.consumer_check_interval * _TOPOLOGY_EVERY)
        unsafe: str | None = None
        try:
            await topology.check(management, settings)
        except BrokerAway:
            continue  # nothing is known
        except TopologyError as error:
            unsafe = str(error)
        if unsafe != watch.unsafe:
            if unsafe is None:
                _log.info("topology.restored")
            else:
                _log.error("topology.unsafe", reason=unsafe)
        watch.unsafe = unsafe


@asynccontextmanager
async def _watched(
    settings: Settings, watch: Watch | RelayWatch, engine: AsyncEngine
) -> AsyncIterator[None]:
    """Serves probes and metrics, if a port is set, and runs the watchdog.

    It starts before the servers are reachable, and ends after the last delivery is settled.
    """
    _measure_build()
    _measure_pool(engine)
    watching = asyncio.create_task(_end_if_stuck(watch))
    try:
        with _served(settings, watch):
            yield
    finally:
        watching.cancel()
        await asyncio.wait((watching,))


async def _end_if_stuck(watch: Watch | RelayWatch) -> None:
    """Exits at once if the process is stuck, because whatever hangs would also hang a drain."""
    try:
        await watch.run()
    except Stuck as stuck:
        _log.critical("worker.stuck", reason=str(stuck))
        os._exit(stuck.exit_code)


@contextmanager
def _served(settings: Settings, watch: Watch | RelayWatch) -> Iterator[None]:
    if settings.http_port is None:
        yield
        return
    with ExitStack() as serving:
        try:
            port = serving.enter_context(
                served(settings.http_host, settings.http_port, live=watch.live, ready=watch.ready)
            )
        except OSError as error:
            raise SettingsError(
                f"INGEST_HTTP_PORT {settings.http_port} can't be used ({error.strerror})",
                "choose another port.",
            ) from None
        _log.info("http.serving", host=settings.http_host, port=port)
        yield


def _measure_build() -> None:
    metrics.BUILD.info({"version": __version__, "python": platform.python_version()})


def _measure_pool(engine: AsyncEngine) -> None:
    pool = engine.pool
    if isinstance(pool, QueuePool):
        metrics.POOL.labels("in_use").set_function(pool.checkedout)
        metrics.POOL.labels("idle").set_function(pool.checkedin)
        metrics.POOL_MAX.set(pool.size())


async def run_relay(settings: Settings) -> None:
    """Relays the outbox until a signal. Raises what `run_worker` raises."""
    logs.configure(settings)
    decoders.install()
    async with (
        engine_of(settings, connections=3, name="study-ingest relay") as engine,
        Management(settings) as management,
        Publisher(settings, "relay") as outgoing,
        Publisher(settings, "replays") as replayed,
    ):
        relay = Relay(engine, outgoing, settings)
        replays = Replays(engine, replayed, settings)
        pruner = Pruner(engine, settings, new_name())

        async def stop() -> None:
            relay.stop()
            replays.stop()
            pruner.stop()

        async with _watched(settings, RelayWatch(relay), engine):
            with _cancelled_by_signals():
                await _ready(settings, engine, management)
            with _on_signals(stop):
                await asyncio.gather(relay.run(), replays.run(), pruner.run())
    _log.info("relay.stopped")


async def _ready(settings: Settings, engine: AsyncEngine, management: Management) -> None:
    """Waits until both servers answer. Raises `SchemaError` or `TopologyError` if they do not
    fit.
    """
    await _when_there(settings, lambda: schema.check(engine))
    await _when_there(settings, lambda: topology.check(management, settings))


async def _when_there(settings: Settings, check: Callable[[], Awaitable[object]]) -> None:
    backoff = Backoff(settings.pause_delay_min, settings.pause_delay_max)
    waiting = False
    while True:
        try:
            await check()
        except BehindPooler:
            raise  # waiting would not help
        except (DatabaseAway, TransientFault, BrokerAway) as error:
            if not waiting:
                _log.warning("worker.waiting", reason=str(error))
            waiting = True
            await asyncio.sleep(backoff.next())
        else:
            return


@contextmanager
def _cancelled_by_signals() -> Iterator[None]:
    """While the worker holds no deliveries yet, a signal just ends the process with exit code 0."""
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
