"""The steps of the demo: prepare, start workers, let viewers work, and compare the numbers."""

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import text

from demo import DATABASE, bank, devices, processes, review_log, sessions, stage
from demo.account import Account, keep
from demo.phone import Phone
from demo.report import Report
from schemas import amqp
from schemas.attempt_batch import decode
from schemas.words import Status
from study_viewer import AttemptBatch
from worker.broker import topology
from worker.broker.management import Management
from worker.cli.shared import engine_of
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.operate import repair
from worker.settings import Settings
from worker.store import schema
from worker.store.engine import transaction

_WORKERS: Final = 2
_USERS: Final = 12
_DEVICES: Final = ("first-device", "second-device")
_SEED: Final = 2026
_PATIENCE: Final = 60.0
"""The demo gives up if no delivery is settled for this many seconds."""


async def simulated(settings: Settings, batches: int, logs: Path, console: Console) -> Report:
    """Simulated users with realistic faults: `batches` sessions, and what goes wrong."""
    rng = random.Random(_SEED)
    questions = bank.made_up(rng, _USERS)
    owned = sessions.devices(questions, batches, rng)
    broken = sessions.broken(owned[0].batches[0], "broken-viewer", rng)
    sent = sum(len(device.batches) + len(device.twice) for device in owned) + len(broken)

    async with _prepared(settings, questions) as (settings, account, channel):
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(
                processes.workers(_WORKERS, settings, stage.environment_of(settings), logs)
            )
            phones = [
                await stack.enter_async_context(_viewer(settings, device.viewer))
                for device in owned
            ]
            began = time.monotonic()
            with _progress(console, account, sent):
                for late in (False, True):
                    await asyncio.gather(
                        *(
                            phone.play(device.batches, device.twice)
                            for phone, device in zip(phones, owned, strict=True)
                            if device.late is late
                        )
                    )
                for message in broken:
                    await _publish_raw(channel, message)
                await account.until(lambda: account.settled >= sent, _PATIENCE)
            seconds = time.monotonic() - began
            lost = sum(phone.lost() for phone in phones)
            lost += max(0, len(broken) + 1 - account.rejected.total())
        return await _report(settings, account, sent, lost, seconds)


def simulated_questions() -> list[bank.Question]:
    """The questions that the simulated users study."""
    return bank.made_up(random.Random(_SEED), _USERS)


async def from_review_log(settings: Settings, path: Path, logs: Path, console: Console) -> Report:
    """A real review log from two devices. Ingesting it in order must give the same progress, and in
    the end each device must have it.
    """
    reviews = review_log.read(path)
    questions = review_log.questions(reviews)
    batches = review_log.batches(reviews)
    arrivals = review_log.arrivals(batches)

    async with _prepared(settings, questions) as (settings, account, _):
        url = settings.amqp_url.get_secret_value()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(
                processes.workers(_WORKERS, settings, stage.environment_of(settings), logs)
            )
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="study-demo-devices-"))
            )
            await stage.grant(settings, _DEVICES, review_log.USER)
            owned = [
                await stack.enter_async_context(
                    devices.running(folder / f"{name}.sqlite", url, name)
                )
                for name in _DEVICES
            ]
            began = time.monotonic()
            with _progress(console, account, len(arrivals)):
                for arrival in arrivals:
                    await owned[arrival.device].record(arrival.batch)
                await asyncio.gather(*(device.settled() for device in owned))
                await account.until(lambda: account.settled >= len(arrivals), _PATIENCE)
            seconds = time.monotonic() - began
            await asyncio.gather(*(device.current() for device in owned))
            await asyncio.gather(*(device.end() for device in owned))
            async with engine_of(settings, connections=1, name="demo") as engine:
                due = await devices.due_dates(engine, review_log.USER)
            devices_wrong = [devices.wrong(each.path, review_log.USER, due) for each in owned]
            lost = sum(devices.unsettled(each.path) for each in owned)
        report = await _report(settings, account, len(arrivals), lost, seconds)
        in_order = await _in_order(settings, questions, batches)
        return report.compared_with_order(
            reviews=len(reviews),
            differing=len(await _progress_rows(settings) ^ in_order),
            devices_wrong=devices_wrong,
        )


@asynccontextmanager
async def _prepared(
    settings: Settings, questions: list[bank.Question]
) -> AsyncIterator[tuple[Settings, Account, AbstractChannel]]:
    settings = await stage.with_database(settings, DATABASE)
    settings = await stage.with_vhost(settings)
    async with engine_of(settings, connections=2, name="demo") as engine:
        await schema.migrate(engine)
        await bank.publish(settings.database_url.get_secret_value(), questions)
    async with Management(settings) as management:
        await topology.apply(management, settings)
    async with keep(settings.amqp_url.get_secret_value()) as (account, channel):
        yield settings, account, channel


@asynccontextmanager
async def _viewer(settings: Settings, name: str) -> AsyncIterator[Phone]:
    with tempfile.TemporaryDirectory(prefix="study-demo-") as folder:
        async with Phone(Path(folder), settings.amqp_url.get_secret_value(), name) as phone:
            yield phone


async def _publish_raw(channel: AbstractChannel, message: sessions.Broken) -> None:
    # A body that is no batch names no session: without the header nobody could be told.
    uuid = message.client_session_uuid or uuid4()
    exchange = await channel.get_exchange(amqp.INGEST_EXCHANGE)
    await exchange.publish(
        aio_pika.Message(
            message.body,
            message_id=uuid4().hex,
            type=amqp.ATTEMPT_BATCH_TYPE,
            headers={amqp.CLIENT_SESSION_UUID_HEADER: str(uuid)},
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        ),
        amqp.attempts_key(message.viewer),
    )


@contextmanager
def _progress(console: Console, account: Account, total: int) -> Iterator[None]:
    """A line that shows the number of settled deliveries, only on a terminal."""
    columns = (
        TextColumn("settled"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[kinds]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("settled", total=total, kinds="")

        def show() -> None:
            kinds = (
                f"{account.results[Status.INGESTED]} ingested,"
                f" {account.results[Status.ALREADY_INGESTED]} duplicates,"
                f" {account.rejected.total()} rejected"
            )
            bar.update(task, completed=account.settled, kinds=kinds)

        account.on_change = show
        yield


async def _report(
    settings: Settings, account: Account, sent: int, lost: int, seconds: float
) -> Report:
    async with engine_of(settings, connections=2, name="demo") as engine:
        async with transaction(engine) as connection:
            ingested = await connection.scalar(text("SELECT count(*) FROM ingest_inbox"))
            attempts = await connection.scalar(text("SELECT count(*) FROM study_question_attempts"))
        differences = [
            difference
            async for user_id in repair.users(engine)
            for difference in await repair.verify(engine, user_id, settings.policy())
        ]
    return Report(
        sent=sent,
        ingested=ingested or 0,
        duplicates=account.results[Status.ALREADY_INGESTED],
        rejected=dict(sorted(account.rejected.items())),
        # An ingested batch that is missing in the database, or that is there without a result.
        lost=lost + abs((ingested or 0) - account.results[Status.INGESTED]),
        differences=len(differences),
        seconds=seconds,
        attempts=attempts or 0,
    )


async def _in_order(
    settings: Settings, questions: list[bank.Question], batches: Sequence[AttemptBatch]
) -> set[tuple[object, ...]]:
    """The progress rows after one worker has ingested the same batches one by one, in order."""
    settings = await stage.with_database(settings, f"{DATABASE}_in_order")
    async with engine_of(settings, connections=2, name="demo") as engine:
        await schema.migrate(engine)
        await bank.publish(settings.database_url.get_secret_value(), questions)
        ingest = Ingest(engine, settings.policy())
        for batch in batches:
            received = decode(batch.model_dump_json().encode())
            await ingest([Incoming("in-order", received, received.client_session_uuid)])
    return await _progress_rows(settings)


async def _progress_rows(settings: Settings) -> set[tuple[object, ...]]:
    async with (
        engine_of(settings, connections=1, name="demo") as engine,
        transaction(engine) as connection,
    ):
        # Versions count commits, and these differ.
        rows = await connection.execute(
            text(
                "SELECT CAST(to_jsonb(progress) - 'version' AS text)"
                " FROM study_question_progress AS progress"
            )
        )
        return {tuple(row) for row in rows}
