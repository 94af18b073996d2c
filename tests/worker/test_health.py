"""The HTTP probes of a real worker process: their answers, and when these change."""

import os
import signal
from pathlib import Path

import asyncpg
import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from tests import factories as make
from tests.broker_fixtures import Broker
from tests.worker.telemetry.conftest import question, settings
from tests.worker_process import running
from worker.cli.asking import by
from worker.settings import Settings
from worker.store import pause
from worker.store.engine import transaction

pytestmark = pytest.mark.broker
__all__ = ["question", "settings"]


async def test_ready_is_proof_of_consumption(settings: Settings, broker: Broker) -> None:
    async with running(settings) as worker:
        assert await worker.get("/live") == (200, {"ok": True, "detail": "connecting"})
        assert (await worker.get("/ready"))[0] == 503
        assert await worker.until_ready() == {"ok": True, "detail": "consuming"}
        assert await broker.consumers() == 1
        assert (await worker.metrics())["study_ingest_ready"] == 1

        await broker.delete_queue(amqp.ATTEMPTS_QUEUE)
        await worker.until_ready(False)
        assert (await worker.metrics())["study_ingest_ready"] == 0
        assert (await worker.get("/live"))[0] == 200


async def test_it_is_ready_as_soon_as_it_says_that_it_consumes(
    settings: Settings, broker: Broker
) -> None:
    async with running(settings) as worker:
        await worker.logged("consumer.started")
        assert await worker.get("/ready") == (200, {"ok": True, "detail": "consuming"})


@pytest.mark.parametrize("change", ["classic queue", "policy"])
async def test_a_setup_that_changes_under_a_running_worker_is_told(
    change: str, settings: Settings, broker: Broker
) -> None:
    async with running(settings) as worker:
        await worker.until_ready()
        if change == "policy":
            await broker.put_policy(
                "house", pattern=".*", apply_to="all", priority=-1, definition={"message-ttl": 5000}
            )
        else:
            await broker.delete_queue(amqp.ATTEMPTS_QUEUE)
            channel = await broker.channel()
            queue = await channel.declare_queue(amqp.ATTEMPTS_QUEUE, durable=True)
            await queue.bind(amqp.INGEST_EXCHANGE, amqp.ATTEMPTS_BINDING)
        told = await worker.logged("topology.unsafe")
        health = await worker.until_ready(False)
        assert health["detail"] == told["reason"]
        expected = "message-ttl 5000" if change == "policy" else "has x-queue-type classic"
        assert expected in told["reason"] or "x-delivery-limit none" in told["reason"]
        assert (await worker.get("/live"))[0] == 200
        if change == "policy":
            await broker.delete("policies", "house")
            await worker.logged("topology.restored")
            await worker.until_ready()


async def test_a_worker_that_waits_for_its_servers_lives_and_is_not_ready(
    settings: Settings, broker: Broker, engine: AsyncEngine
) -> None:
    nowhere = settings.model_copy(
        update={"database_url": type(settings.database_url)("postgresql://127.0.0.1:1/nowhere")}
    )
    async with running(nowhere) as worker:
        await worker.logged("worker.waiting")
        assert (await worker.get("/live"))[0] == 200
        assert await worker.get("/ready") == (503, {"ok": False, "detail": "connecting"})
        assert await worker.end() == 0


async def test_a_paused_worker_lives_and_is_not_ready(
    settings: Settings, engine: AsyncEngine, broker: Broker
) -> None:
    async with running(settings) as worker:
        await worker.until_ready()
        async with transaction(engine) as connection:
            await pause.pause(connection, by("a test"))
        assert await worker.until_ready(False) == {
            "ok": False,
            "detail": "paused: the gate is closed",
        }
        assert (await worker.get("/live"))[0] == 200
        await worker.until_metric('study_ingest_paused{cause="gate"}', 1)
        async with transaction(engine) as connection:
            await pause.resume(connection, by("a test"))
        await worker.until_ready()
        assert (await worker.metrics())['study_ingest_paused{cause="gate"}'] == 0
        assert (await worker.metrics())['study_ingest_pauses_total{cause="gate"}'] == 1


async def test_without_its_database_a_worker_is_not_ready(
    settings: Settings, broker: Broker, question: make.Published
) -> None:
    name = settings.database_url.get_secret_value().rpartition("/")[2]
    async with running(settings) as worker:
        await worker.until_ready()
        await _allow_connections(name, False)
        await broker.publish(make.batch(make.right(question)).model_dump_json())
        await worker.logged("consumer.paused", cause="database")
        status, answer = await worker.get("/ready")
        assert status == 503 and answer["detail"].startswith("paused: The database is away: ")
        assert (await worker.metrics())['study_ingest_paused{cause="database"}'] == 1
        assert (await worker.get("/live"))[0] == 200

        await _allow_connections(name, True)
        await worker.logged("delivery.settled", disposition="ingested")
        await worker.until_ready()


async def _allow_connections(name: str, allowed: bool) -> None:
    # By way of another database: of its own nobody may say this.
    connection = await asyncpg.connect(os.environ["INGEST_DATABASE_URL"])
    try:
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}")
        if not allowed:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
            )
    finally:
        await connection.close()


async def test_a_process_whose_event_loop_hangs_is_not_alive(
    settings: Settings, broker: Broker, tmp_path: Path
) -> None:
    program = tmp_path / "wedged.py"
    program.write_text(
        "import signal, time\n"
        "from worker import cli, health\n"
        "health._BEAT_MISSED = 4.0\n"
        "signal.signal(signal.SIGUSR1, lambda *_: time.sleep(60))\n"
        "cli.main()\n"
    )
    async with running(settings, program=program) as worker:
        await worker.until_ready()
        assert (await worker.get("/live"))[0] == 200
        worker.process.send_signal(signal.SIGUSR1)
        health = await worker.until("/live", 503)
        assert "the event loop has not run" in health["detail"]
        assert (await worker.get("/ready"))[0] == 503
        worker.process.kill()
        await worker.ended()


async def test_a_stuck_worker_ends_itself_and_loses_nothing(
    settings: Settings, engine: AsyncEngine, broker: Broker, question: make.Published
) -> None:
    patient = settings.model_copy(
        update={"stuck_timeout": 1.0, "lock_timeout": 600.0, "statement_timeout": 600.0}
    )
    await broker.publish(make.batch(make.right(question)).model_dump_json())
    async with engine.begin() as connection, running(patient) as worker:
        await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await connection.execute(text("LOCK TABLE ingest_inbox"))
        assert await worker.ended() == 7
    stuck = await worker.logged("worker.stuck")
    assert "holds 1 deliveries and has settled none for" in stuck["reason"]

    async with running(settings) as worker:
        await worker.logged("delivery.settled", disposition="ingested")
    assert await make.count(engine, "study_question_attempts") == 1


async def test_an_idle_worker_is_not_stuck(settings: Settings) -> None:
    async with running(settings.model_copy(update={"stuck_timeout": 0.01})) as worker:
        await worker.until_ready()
        assert (await worker.get("/live"))[0] == 200
        assert await worker.end() == 0


async def test_a_relay_has_probes_too(settings: Settings, engine: AsyncEngine) -> None:
    async with running(settings, "relay") as relay:
        await relay.until_ready()
        assert (await relay.get("/live"))[0] == 200
        await make.execute(
            engine,
            "INSERT INTO outbox (message_id, exchange, routing_key, type, headers, body,"
            " created_at) VALUES (gen_random_uuid(), 'study.nowhere', 'nobody', 'x', '{}', '{}',"
            " now() - interval '1 hour')",
        )
        health = await relay.until_ready(False)
        assert "no exchange 'study.nowhere'" in health["detail"]
        await relay.until_metric("study_ingest_outbox_waiting_messages", 1)
        assert (await relay.metrics())["study_ingest_outbox_oldest_age_seconds"] >= 3600


async def test_a_port_that_is_taken_is_one_sentence(settings: Settings) -> None:
    async with running(settings) as worker:
        port = (await worker.logged("http.serving"))["port"]
        async with running(settings, INGEST_HTTP_PORT=str(port)) as other:
            assert await other.ended() == 2
        assert other.events[-1]["event"].startswith(
            f"study-ingest: INGEST_HTTP_PORT {port} can't be used"
        )


async def test_other_paths_are_not_there(settings: Settings) -> None:
    async with running(settings) as worker:
        port = (await worker.logged("http.serving"))["port"]
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"http://127.0.0.1:{port}/")).status_code == 404
