"""One viewer uploads three months at once: the others hardly notice.

The queue is first come, first served, for all viewers together, and a viewer's relay has one
batch on its way at a time: so its backlog waits in its own outbox, not ahead of the others in
the queue. A sender that keeps to no such rule can put no more ahead of the others than it has,
and each batch costs them a few milliseconds (see
`test_a_flood_from_one_viewer_delays_others_and_does_not_starve_them`).
"""

import asyncio
import sqlite3
import time
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path
from uuid import UUID

import aio_pika
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from study_viewer import Outbox, Relay, RelaySettings
from tests import factories
from tests.broker_fixtures import Broker
from tests.security.test_identity import channel_of
from tests.whole_worker import Login, Viewers, working
from worker.settings import Settings

pytestmark = pytest.mark.broker

BACKLOG = 150
"""Sessions of the viewer that was away (its real number only makes the test longer)."""
OTHERS = 5


class Phone:
    """A viewer with the library, in a file of its own."""

    def __init__(self, folder: Path, login: Login) -> None:
        self.outbox = Outbox(folder / f"{login.name}.sqlite")
        settings = RelaySettings(declare_results_queue=False, poll_interval=0.05)
        self.relay = Relay(self.outbox, login.url, login.name, settings)

    def record(self, batches: list[AttemptBatch]) -> list[UUID]:
        with closing(sqlite3.connect(self.outbox.path)) as local, local:
            for batch in batches:
                self.outbox.record(local, batch)  # type: ignore[arg-type]  # the same wire, copied into the library
        self.relay.wake()
        return [batch.client_session_uuid for batch in batches]


def _connected(relay: Relay) -> bool:
    return relay.status.connected


async def sessions(engine: AsyncEngine, user_id: int, count: int) -> list[AttemptBatch]:
    """So many sessions of ten answers each."""
    questions = await factories.publish(engine, 40, user_id=user_id)
    return [
        factories.batch(*(factories.right(questions[(n + k) % 40]) for k in range(10)))
        for n in range(count)
    ]


async def test_a_backlog_of_months_leaves_room_for_the_others(
    viewers: Viewers, settings: Settings, engine: AsyncEngine, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        phones = []
        for user_id in range(OTHERS + 1):
            phone = Phone(tmp_path, await viewers.add(user_id + 1))
            stack.callback(phone.outbox.close)
            await stack.enter_async_context(phone.relay)
            await phone.relay.until(partial(_connected, phone.relay))
            phones.append(phone)
        away, *others = phones
        backlog = await sessions(engine, 1, BACKLOG)
        single = [await sessions(engine, n + 2, 1) for n in range(OTHERS)]
        await stack.enter_async_context(working(settings, engine))

        began = time.monotonic()
        uuids = away.record(backlog)
        await away.relay.until_settled(uuids[BACKLOG // 10])  # it is well under way

        async def wait_of(phone: Phone, batches: list[AttemptBatch]) -> float:
            recorded = time.monotonic()
            await phone.relay.until_settled(phone.record(batches)[0])
            return time.monotonic() - recorded

        waits = await asyncio.gather(
            *(wait_of(phone, batches) for phone, batches in zip(others, single, strict=True))
        )
        unsettled = len(away.outbox.unsettled())
        await away.relay.until_settled(uuids[-1])
        whole = time.monotonic() - began
    print(f"{BACKLOG} sessions took {whole:.1f} s; the others waited up to {max(waits):.2f} s")
    assert unsettled > BACKLOG / 4, "the others were served in the middle of the backlog"


async def test_a_flood_from_one_viewer_delays_others_and_does_not_starve_them(
    viewers: Viewers, broker: Broker, settings: Settings, engine: AsyncEngine
) -> None:
    flooding, other = await viewers.add(1), await viewers.add(2)
    flood = await sessions(engine, 1, BACKLOG)
    (single,) = await sessions(engine, 2, 1)

    async def publish(login: Login, batches: list[AttemptBatch]) -> None:
        async with channel_of(login) as channel:
            exchange = await channel.get_exchange(amqp.INGEST_EXCHANGE, ensure=False)
            await asyncio.gather(
                *(
                    exchange.publish(
                        aio_pika.Message(
                            batch.model_dump_json().encode(),
                            user_id=login.name,
                            message_id=str(batch.client_session_uuid),
                        ),
                        amqp.attempts_key(login.name),
                    )
                    for batch in batches
                )
            )

    await publish(flooding, flood)
    await publish(other, [single])
    async with working(settings, engine) as worker:
        began = time.monotonic()
        await broker.take(amqp.results_queue(other.name))
        wait = time.monotonic() - began
        assert worker.counts["ingested"] <= BACKLOG + 1
    print(f"behind {BACKLOG} sessions of a flood: {wait:.2f} s, {wait / BACKLOG:.4f} s for each")
    assert wait / BACKLOG < 0.1
