"""HAProxy between workers and servers, with the configuration that is shipped."""

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from chaos.proxy import Proxy
from devtools import debian, instances
from devtools.places import CHECKOUT
from devtools.postgres import Postgres, standby_of
from devtools.state import ports
from schemas.brokers import brokers
from tests import factories as make
from tests.broker_fixtures import Broker
from tests.faults.test_database_servers import ask, engine, reach, server, settings_for
from tests.whole_worker import working
from worker.broker.connection import place
from worker.store.engine import make_engine

__all__ = ["engine", "server"]
pytestmark = pytest.mark.broker

SHIPPED = CHECKOUT / "deploy/haproxy/haproxy.cfg"


@pytest.fixture(scope="module")
def haproxy() -> Path:
    """The folder of HAProxy and its libraries, out of Debian's packages."""
    suite = debian.own_suite()
    if suite is None:
        pytest.skip("HAProxy comes from Debian, and this is no Debian")
    packages = ["haproxy", "libcrypt1", "libjemalloc2", "liblua5.3-0", "liblua5.4-0"]
    # Not all suites have these, or anything in their place: then another name stands there.
    packages.append("libopentracing-c-wrapper0|libopentracing-c-wrapper0t64|libpcre2-8-0")
    packages += ["libopentracing1|libpcre2-8-0", "libpcre2-8-0"]
    return debian.unpacked("haproxy", "HAProxy", packages, suite=suite, megabytes=3, on_disk=9)


@contextmanager
def balanced(haproxy: Path, databases: list[str], nodes: list[str]) -> Iterator[tuple[int, int]]:
    """The ports of the database and of the broker, through HAProxy with these servers behind it."""
    folder = instances.new_folder("haproxy")
    mine = ports(folder / "ports.json", ["database", "broker"])
    text = SHIPPED.read_text()
    for name, port, places in (("database", 5432, databases), ("broker", 5672, nodes)):
        text = text.replace(f"bind :{port}", f"bind 127.0.0.1:{mine[name]}")
        listed = "".join(f"    server {name}{n} {each}\n" for n, each in enumerate(places, 1))
        text = re.sub(rf"(    server \w+ [\d.]+:{port}\n)+", listed, text)
    file = folder / "haproxy.cfg"
    file.write_text(text)
    libraries = ":".join(str(each) for each in haproxy.glob("usr/lib/*-linux-gnu*"))
    env = {**os.environ, "LD_LIBRARY_PATH": libraries}
    argv = [str(haproxy / "usr/sbin/haproxy"), "-f", str(file)]
    # A library that is missing is said at once, and not by a worker that waits.
    subprocess.run([*argv, "-c"], env=env, check=True)
    process = subprocess.Popen([*argv, "-db"], env=env)
    try:
        yield mine["database"], mine["broker"]
    finally:
        process.kill()
        process.wait()
        instances.remove(folder)


async def test_it_follows_the_server_that_can_be_written_to(
    haproxy: Path, server: Postgres, engine: AsyncEngine, broker: Broker
) -> None:
    (question,) = await make.publish(engine)
    await ask(server, "CREATE ROLE haproxy LOGIN")
    await ask(server, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    # Two ways to one broker, of which one is lost later.
    own = place(brokers(broker.settings.amqp_url.get_secret_value())[0])
    with await asyncio.to_thread(standby_of, server) as standby:
        await ask(server, "SELECT pg_reload_conf()")
        async with Proxy(*_server(own)) as first, Proxy(*_server(own)) as second:
            databases = [f"127.0.0.1:{each.port}" for each in (standby, server)]
            nodes = [f"127.0.0.1:{each.port}" for each in (first, second)]
            with balanced(haproxy, databases, nodes) as (database, messages):
                url = f"postgresql://worker@127.0.0.1:{database}/{server.database}"
                amqp_url = broker.settings.amqp_url.get_secret_value()
                amqp_url = amqp_url.replace(own, f"127.0.0.1:{messages}")
                settings = settings_for(broker, url, amqp_url=SecretStr(amqp_url))
                ours = make_engine(settings, connections=3, name="tests")
                try:
                    async with working(settings, ours) as consumer:
                        await broker.publish(make.batch(make.right(question)).model_dump_json())
                        await reach(consumer, ingested=1)
                        # One way to the broker is lost.
                        lost = first if first.connections else second
                        lost.refuse()
                        lost.reset()
                        await broker.publish(make.batch(make.right(question)).model_dump_json())
                        await reach(consumer, ingested=2)
                        # The primary is lost, and its replica promoted.
                        await asyncio.to_thread(server.kill)
                        await broker.publish(make.batch(make.right(question)).model_dump_json())
                        await ask(standby, "ALTER SYSTEM RESET synchronous_standby_names")
                        await ask(standby, "SELECT pg_reload_conf()")
                        await ask(standby, "SELECT pg_promote(false)")
                        await reach(consumer, ingested=3)
                finally:
                    await ours.dispose()


def _server(place: str) -> tuple[str, int]:
    host, _, port = place.rpartition(":")
    return host, int(port)
