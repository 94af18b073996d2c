"""What a whole worker process does when a server, or the way to it, is lost; it is never restarted.

Links of its own to both servers can be cut, lost in one direction or black-holed; the checker
judges what is left in the end.
"""

import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from chaos.proxy import Proxy
from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from tests import factories as make
from tests.faults.processes import Process
from tests.faults.scene import Scene, until
from worker.store import principals
from worker.store.engine import transaction

pytestmark = pytest.mark.broker

COMMIT = "COMMIT of .*INSERT INTO outbox"
QUICK: Final[dict[str, Any]] = {
    "heartbeat": 1,
    "connect_timeout": 2,
    "statement_timeout": 1,
    "lock_timeout": 1,
    "transaction_timeout": 5,
    "relay_in_worker": "true",
}


@asynccontextmanager
async def links(scene: Scene) -> AsyncIterator[tuple[Proxy, Proxy, dict[str, str]]]:
    """A link to the database and one to the broker, and the settings that lead over them."""
    database, messages = urlsplit(scene.database.url), urlsplit(scene.messages.url)
    async with (
        Proxy("127.0.0.1", database.port or 0) as to_database,
        Proxy("127.0.0.1", messages.port or 0) as to_broker,
    ):
        yield (
            to_database,
            to_broker,
            {
                "database_url": scene.database.url.replace(
                    f":{database.port}", f":{to_database.port}"
                ),
                "amqp_url": scene.messages.url.replace(f":{messages.port}", f":{to_broker.port}"),
            },
        )


async def settles(scene: Scene, worker: Process, count: int) -> None:
    """Waits until the worker has settled so many and told everybody."""

    async def done() -> tuple[int, int]:
        settled = len(worker.lines("delivery.settled"))
        return settled, await make.count(scene.engine, "outbox")

    await until(done, (count, 0).__eq__)


async def test_an_answer_lost_inside_commit_is_found_by_looking_the_uuid_up(scene: Scene) -> None:
    await scene.history()
    inside = scene.database.hold("to_client", COMMIT)
    worker = scene.start(wired=True, **QUICK)
    batch = scene.batch()
    await scene.send(batch)
    await scene.comes(inside, worker)
    scene.database.cut()
    await settles(scene, worker, 1)

    (line,) = worker.lines("delivery.settled")
    # It was held meanwhile, not given back; and committed the first time.
    assert (line["disposition"], line["redelivered"]) == ("duplicate", False)
    await worker.stop()
    found = await scene.holds()
    of_it = [each.body["status"] for each in found.told if _is_about(each.body, batch)]
    assert of_it == ["ingested", "already_ingested"]


async def test_a_commit_that_never_arrived_is_done_again(scene: Scene) -> None:
    inside = scene.database.hold("to_server", COMMIT)
    worker = scene.start(wired=True, **QUICK)
    await scene.send(scene.batch())
    await scene.comes(inside, worker)
    scene.database.cut()
    await settles(scene, worker, 1)

    (line,) = worker.lines("delivery.settled")
    assert (line["disposition"], line["redelivered"]) == ("ingested", False)
    await worker.stop()
    await scene.holds()


@pytest.mark.parametrize("group_max", [50, 5], ids=["waits alone", "waits in a group"])
async def test_a_principal_that_stays_in_use_puts_off_its_own_batch_alone(
    scene: Scene, group_max: int
) -> None:
    """It waits when it has come often enough, or nobody else is left. That counts neither against
    it nor against its group, which is not split.
    """
    (elsewhere,) = await make.publish(scene.engine, user_id=2)
    goes_on = [make.batch(make.right(elsewhere, make.at(n))) for n in range(30)]
    waits = scene.batch()
    for batch in (goes_on[0], waits, *goes_on[1:]):
        await scene.send(batch)
    async with transaction(scene.engine) as other:
        await principals.lock(other, [1])
        worker = scene.start(wired=False, lock_timeout=0.2, group_max=group_max)
        await until(lambda: _settled(worker), lambda seen: seen["deferred"] > 0)
        assert not worker.lines("group.split")
        assert not await scene.ingested(waits)
    await until(lambda: scene.ingested(waits), bool)
    await until(
        lambda: _settled(worker),
        lambda seen: seen["ingested"] + seen["duplicate"] == len(scene.sent),
    )
    await settles(scene, worker, len(worker.lines("delivery.settled")))
    await worker.stop()

    kinds = await _settled(worker)
    assert kinds["duplicate"] == kinds["rejected"] == 0
    assert {line["retries"] for line in worker.lines("delivery.settled")} == {0}
    found = await scene.holds()
    assert {each.body["status"] for each in found.told} == {"ingested"}


async def _settled(worker: Process) -> Counter[str]:
    return Counter(line["disposition"] for line in worker.lines("delivery.settled"))


@pytest.mark.parametrize("patient", [True, False], ids=["in time", "killed after the grace"])
async def test_stopping_during_a_commit_finishes_it(scene: Scene, patient: bool) -> None:
    inside = scene.database.hold("to_client", COMMIT)
    worker = scene.start(wired=True, relay_in_worker="true")
    batch = scene.batch()
    await scene.send(batch)
    await scene.comes(inside, worker)
    worker.terminate()
    await until(lambda: _lines(worker, "consumer.draining"), bool)
    if patient:
        scene.database.release()
        assert await worker.ended() == 0
        assert worker.lines("worker.stopped")[0]["settled"] == {"ingested": 1}
        await scene.returned(0)
    else:
        assert worker.is_alive
        await scene.kill(worker)
        await scene.returned(1)
        recovered = await scene.recover(settled=1)
        assert recovered.lines("delivery.settled")[0]["disposition"] == "duplicate"
    await scene.holds()


async def test_every_ack_of_a_drained_group_arrives(scene: Scene) -> None:
    """The connection closes right behind them."""
    for _ in range(30):
        await scene.send(scene.batch())
    inside = scene.database.hold("to_client", COMMIT, nth=2)
    worker = scene.start(wired=True, relay_in_worker="true")
    await scene.comes(inside, worker)
    worker.terminate()
    await until(lambda: _lines(worker, "consumer.draining"), bool)
    scene.database.release()
    assert await worker.ended() == 0

    (stopped,) = worker.lines("worker.stopped")
    counts = stopped["settled"]
    assert counts["ingested"] > 1
    assert counts["ingested"] + counts.get("given_back", 0) == 30
    await scene.returned(counts.get("given_back", 0))
    if counts.get("given_back"):
        await scene.recover(settled=counts["given_back"])
    await scene.holds()


async def test_a_stop_ends_in_time_though_the_database_never_answers(scene: Scene) -> None:
    inside = scene.database.hold("to_client", COMMIT)
    worker = scene.start(wired=True, **QUICK | {"drain_timeout": 1})
    await scene.send(scene.batch())
    await scene.comes(inside, worker)
    worker.terminate()
    code = await worker.ended()
    assert code is not None
    assert code != -signal.SIGKILL
    scene.database.cut()
    await scene.returned(1)
    await scene.recover(settled=1)
    await scene.holds()


async def test_a_half_open_broker_connection_is_given_up_within_the_heartbeats(
    scene: Scene,
) -> None:
    async with links(scene) as (_, to_broker, urls):
        worker = scene.start(wired=True, **QUICK, **urls)
        await scene.send(scene.batch())
        await settles(scene, worker, 1)
        lost = time.monotonic()
        assert to_broker.half_open("to_client") > 0
        await scene.send(scene.batch())
        await until(lambda: _lines(worker, "consumer.restored"), bool)
        # A peer counts as dead after three heartbeats and their seconds of grace.
        assert time.monotonic() - lost < 3 * (1 + 1) + 10
        await until(lambda: _inbox(scene), (2).__eq__)
        await settled_both(scene, worker)
        await worker.stop()
    await scene.holds()


async def test_a_database_that_is_away_stops_consuming_within_a_second(scene: Scene) -> None:
    async with links(scene) as (to_database, _, urls):
        worker = scene.start(wired=True, **QUICK, **urls)
        await scene.send(scene.batch())
        await settles(scene, worker, 1)

        to_database.refuse()
        to_database.reset()
        gone = time.monotonic()
        await until(scene.broker.consumers, (0).__eq__)
        stopped_after = time.monotonic() - gone
        for _ in range(3):
            await scene.send(scene.batch())
        assert await scene.broker.depth(amqp.ATTEMPTS_QUEUE) == 3
        to_database.heal()
        await settles(scene, worker, 4)
        await worker.stop()

        assert stopped_after < 5, "a second, on a machine that has nothing else to do"
        assert [line["cause"] for line in worker.lines("consumer.paused")] == ["database"]
        assert [line["cause"] for line in worker.lines("consumer.resumed")] == ["database"]
        assert {line["delivery_count"] for line in worker.lines("delivery.settled")} == {0}
    await scene.holds()


async def test_a_frozen_database_is_noticed_by_the_timeouts_and_resumed_from(scene: Scene) -> None:
    async with links(scene) as (to_database, _, urls):
        worker = scene.start(wired=True, **QUICK, **urls)
        await scene.send(scene.batch())
        await settles(scene, worker, 1)

        to_database.black_hole()
        frozen = time.monotonic()
        await scene.send(scene.batch())
        await until(lambda: _lines(worker, "consumer.paused"), bool)
        # One statement, and what the client waits longer than the server for it.
        assert time.monotonic() - frozen < 1 + 5 + 10
        to_database.heal()
        await settled_both(scene, worker)
        # What was under way may come to its end before anybody asks whether the database is back.
        await until(lambda: _lines(worker, "consumer.resumed"), bool)
        await worker.stop()
        assert len(worker.lines("consumer.paused")) == len(worker.lines("consumer.resumed")) == 1
    await scene.holds()


async def settled_both(scene: Scene, worker: Process) -> None:
    """Waits until two batches are ingested and nothing is left to do for them."""
    await until(lambda: _inbox(scene), (2).__eq__)
    await until(lambda: make.count(scene.engine, "outbox"), (0).__eq__)
    await until(lambda: scene.broker.depth(amqp.ATTEMPTS_QUEUE), (0).__eq__)


def _is_about(result: dict[str, Any], batch: AttemptBatch) -> bool:
    return bool(result["client_session_uuid"] == str(batch.client_session_uuid))


async def _inbox(scene: Scene) -> int:
    return await make.count(scene.engine, "ingest_inbox")


async def _lines(worker: Process, event: str) -> int:
    return len(worker.lines(event))
