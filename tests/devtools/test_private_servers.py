"""Private servers are started, killed and paused for real, and keep what they have promised."""

import socket
from contextlib import suppress

import aio_pika
import asyncpg
import pytest
from pamqp.common import FieldTable

from devtools import Postgres, RabbitMQ, servers
from devtools.errors import DevError

needs_servers_of_our_own = pytest.mark.skipif(
    any(service.embedded_obstacle() for service in servers.SERVICES.values()),
    reason="./dev can't run servers of its own here",
)


@needs_servers_of_our_own
async def test_postgres_keeps_what_was_committed_through_kill_9() -> None:
    with Postgres() as server:
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("SHOW synchronous_commit") == "on"
        assert await connection.fetchval("SHOW fsync") == "on"
        await connection.execute("CREATE TABLE t (x int); INSERT INTO t VALUES (1)")
        before, url = server.pid, server.url
        server.kill()
        assert server.pid is None
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await connection.fetchval("SELECT 1")
        await connection.close()

        server.start()
        assert server.pid != before
        assert server.url == url
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT x FROM t") == 1

        server.pause()
        assert not server.ready()
        server.resume()
        assert await connection.fetchval("SELECT x FROM t") == 1
        await connection.close()
        server.stop()
        assert server.pid is None
    assert not server.folder.exists()


@needs_servers_of_our_own
@pytest.mark.broker
async def test_rabbitmq_keeps_what_was_confirmed_through_kill_9() -> None:
    with RabbitMQ() as node:
        connection = await aio_pika.connect(node.url)
        channel = await connection.channel()
        queue: FieldTable = {"x-queue-type": "quorum", "x-delivery-limit": 20}
        await channel.declare_queue("q", durable=True, arguments=queue)
        node.remember_queues()
        message = aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key="q")
        before, url = node.pid, node.url
        node.kill()
        assert node.pid is None
        await connection.close()

        node.start()
        assert node.pid != before
        assert node.url == url
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            found = await (await channel.get_queue("q")).get(timeout=60)
            assert found is not None
            assert found.body == b"kept"
    assert not node.folder.exists()


@needs_servers_of_our_own
@pytest.mark.broker
def test_a_node_that_failed_to_start_inside_its_machine_is_started_again() -> None:
    with RabbitMQ() as node:
        before = node.pid
        assert not node.revive(), "it runs"
        node.ctl("stop_app")
        assert not node.revive(), "an operator has stopped it"
        with socket.create_server(("127.0.0.1", node.port)), suppress(DevError):
            node.ctl("start_app")  # which RabbitMQ 4.0 calls a success
        assert node.alive()
        assert not node.ready()
        assert node.revive()
        node.wait()
        assert node.pid != before
        assert not node.revive(), "its log still tells of the failure"
