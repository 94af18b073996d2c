"""URLs that name several servers, of which one refuses and one says nothing."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from httpcore._backends.anyio import AnyIOStream
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from chaos.proxy import Proxy
from schemas import amqp
from study_viewer import Outbox, Relay
from tests.broker_fixtures import PATIENCE, VIEWER, Broker
from tests.study_viewer.support import QUICK, make_batch, record
from worker.broker.connection import close, connect
from worker.broker.management import Management
from worker.errors import BrokerAway, DatabaseAway
from worker.operate.doctor import servers
from worker.settings import Settings
from worker.store.engine import make_engine, transaction

pytestmark = pytest.mark.broker


@pytest.fixture
def refusing() -> str:
    """Nobody listens there."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """A connection is made there, and nobody ever answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def among(url: str, *others: str) -> str:
    """The URL with other servers before its own."""
    start, own = url.rsplit("@", 1) if "@" in url else url.split("//")
    return f"{start}{'@' if '@' in url else '//'}{','.join((*others, own))}"


async def test_each_host_of_the_database_has_the_whole_timeout(
    database_url: str, refusing: str, silent: str
) -> None:
    def engine_at(url: str) -> Settings:
        return Settings(database_url=url, amqp_url="amqp://unused", connect_timeout=0.5)  # type: ignore[arg-type]

    ours = make_engine(
        engine_at(among(database_url, silent, refusing, "[::1]:9", "localhost:9", silent)),
        connections=1,
        name="tests",
    )
    async with transaction(ours) as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
    await ours.dispose()
    none = make_engine(
        engine_at(f"postgresql://worker@{silent},{refusing}/none"), connections=1, name="tests"
    )
    with pytest.raises(DatabaseAway, match=f"{silent}, {refusing}"):
        async with transaction(none):
            pass
    await none.dispose()


def at(host: str, port: int, url: str) -> str:
    """The URL with this server in place of its own."""
    parts = urlsplit(url)
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return parts._replace(netloc=f"{login}{host}:{port}").geturl()


async def all_connect(settings: Settings, folder: Path) -> None:
    """A worker's sessions, connections and calls, and a viewer's relay."""
    ours = make_engine(settings, connections=1, name="tests")
    async with transaction(ours) as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
    await ours.dispose()
    await close(await connect(settings, "test"), 1.0)
    async with Management(settings) as management:
        assert await management.version()
    with Outbox(folder / "outbox.db") as outbox:
        url = settings.amqp_url.get_secret_value()
        async with Relay(outbox, url, VIEWER, QUICK) as relay:
            await asyncio.wait_for(relay.until(lambda: relay.status.connected), PATIENCE)


async def test_hosts_may_be_addresses_of_ipv6(
    broker: Broker, database_url: str, refusing: str, tmp_path: Path
) -> None:
    async with Management(broker.settings) as alone:
        management_url = str(alone.http.base_url).removesuffix("/api/")
    amqp_url = broker.settings.amqp_url.get_secret_value()
    login = amqp_url.split("//")[1].rsplit("@", 1)[0]
    own = {
        "database_url": database_url,
        "amqp_url": amqp_url,
        "management_url": management_url.replace("//", f"//{login}@"),
    }
    async with AsyncExitStack() as stack:
        given = {}
        for name, url in own.items():
            parts = urlsplit(url)
            link = Proxy(parts.hostname or "", parts.port or 0, at="::1")
            try:
                await stack.enter_async_context(link)
            except OSError:
                pytest.skip("this machine has no IPv6")
            given[name] = at("[::1]", link.port, url)
        settings = broker.settings.model_dump(exclude_unset=True)
        await all_connect(Settings.model_validate(settings | given), tmp_path)
        several = {name: among(url, refusing, "[::1]:9") for name, url in given.items()}
        several["database_url"] += "?target_session_attrs=read-write"
        found = Settings.model_validate(settings | several)
        await all_connect(found, tmp_path)
        named = {each.found.split(" ")[0] for each in await servers.examine(found)}
        assert named == {"[::1]:9", refusing}


async def test_a_name_may_have_several_addresses(
    broker: Broker, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens at the first of them."""
    resolve = socket.getaddrinfo

    def both(host: Any, *arguments: Any, **words: Any) -> list[Any]:
        if host not in ("several.example", b"several.example"):
            return resolve(host, *arguments, **words)
        found = (resolve(each, *arguments, **words) for each in ("127.0.0.2", own.hostname))
        return [each for some in found for each in some]

    own = urlsplit(database_url)
    monkeypatch.setattr(socket, "getaddrinfo", both)
    async with Management(broker.settings) as alone:
        api = alone.http.base_url
    amqp_url = broker.settings.amqp_url.get_secret_value()
    login = amqp_url.split("//")[1].rsplit("@", 1)[0]
    given = {
        "database_url": at("several.example", own.port or 0, database_url),
        "amqp_url": at("several.example", urlsplit(amqp_url).port or 0, amqp_url),
        "management_url": f"http://{login}@several.example:{api.port}",
    }
    settings = broker.settings.model_dump(exclude_unset=True) | given
    await all_connect(Settings.model_validate(settings), tmp_path)


async def test_without_a_host_that_can_be_written_to_the_error_says_so(
    engine: AsyncEngine, database_url: str, refusing: str
) -> None:
    async with transaction(engine) as connection:
        name = await connection.scalar(text("SELECT quote_ident(current_database())"))
        await connection.execute(
            text(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        )
    url = f"{among(database_url, refusing)}?target_session_attrs=read-write"
    settings = Settings(database_url=url, amqp_url="amqp://unused")  # type: ignore[arg-type]
    ours = make_engine(settings, connections=1, name="tests")
    with pytest.raises(DatabaseAway, match="is of the kind that target_session_attrs asks for"):
        async with transaction(ours):
            pass
    await ours.dispose()


async def test_the_next_broker_is_taken(broker: Broker, refusing: str, silent: str) -> None:
    url = broker.settings.amqp_url.get_secret_value()
    several = broker.settings.model_copy(
        update={
            "amqp_url": type(broker.settings.amqp_url)(among(url, refusing, silent)),
            "connect_timeout": 1.0,
        }
    )
    for _ in range(4):  # in random order
        await close(await connect(several, "test"), 1.0)
    nobody = several.model_copy(
        update={"amqp_url": type(several.amqp_url)(f"amqp://u:secret@{refusing},{silent}/")}
    )
    with pytest.raises(BrokerAway) as caught:
        await connect(nobody, "test")
    assert refusing in caught.value.found
    assert silent in caught.value.found
    assert "secret" not in str(caught.value)


async def test_the_next_management_api_is_asked(broker: Broker, refusing: str, silent: str) -> None:
    async with Management(broker.settings) as alone:
        base = str(alone.http.base_url).removesuffix("/api/")
        version = await alone.version()
    login = broker.settings.amqp_url.get_secret_value().split("//")[1].rsplit("@", 1)[0]
    given = f"http://{login}@{refusing},{silent},{base.removeprefix('http://')}"
    several = broker.settings.model_copy(
        update={"management_url": type(broker.settings.amqp_url)(given), "connect_timeout": 1.0}
    )
    for _ in range(4):
        async with Management(several) as management:
            assert await management.version() == version
            # It stays with the one that answered.
            async with asyncio.timeout(0.9):
                assert await management.queue_names()


async def test_questions_at_the_same_time_all_find_the_broker_that_answers(
    broker: Broker, refusing: str
) -> None:
    async with Management(broker.settings) as alone:
        there = alone.http.base_url
    login = broker.settings.amqp_url.get_secret_value().split("//")[1].rsplit("@", 1)[0]
    given = SecretStr(f"http://{login}@{refusing},{there.netloc.decode()}")
    several = broker.settings.model_copy(update={"management_url": given})
    for _ in range(6):  # in random order
        async with Management(several) as management:
            versions = await asyncio.gather(*(management.version() for _ in range(6)))
        assert len({*versions}) == 1


@pytest.mark.parametrize(
    ("name", "raised"), [("getpeername", BrokerAway), ("peer_name", AttributeError)]
)
async def test_a_connection_that_is_reset_at_once_is_a_broker_that_is_away(
    name: str, raised: type[Exception], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_a_stream_that_is_gone(stream: Any, _: str) -> None:
        stream._stream._transport.abort()
        raise AttributeError("'NoneType' object has no attribute 'getpeername'", name=name)

    monkeypatch.setattr(AnyIOStream, "get_extra_info", of_a_stream_that_is_gone)
    async with Management(broker.settings) as management:
        with pytest.raises(raised):
            await management.version()


async def test_a_question_is_asked_again_if_the_broker_closes_the_connection_meanwhile(
    broker: Broker,
) -> None:
    async with Management(broker.settings) as alone:
        url = alone.http.base_url
    asked: list[bytes] = []

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes one request on to the broker, and closes the connection at the second."""
        there, onwards = await asyncio.open_connection(url.host, url.port)
        onwards.write(asked_now := await reader.readuntil(b"\r\n\r\n"))
        asked.append(asked_now)
        head = await there.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        writer.write(head + await there.readexactly(length))
        onwards.close()
        asked.append(await reader.read(1))
        writer.close()

    login = broker.settings.amqp_url.get_secret_value().split("//")[1].rsplit("@", 1)[0]
    async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
        [(host, port)] = [each.getsockname() for each in server.sockets]
        given = SecretStr(f"http://{login}@{host}:{port}")
        settings = broker.settings.model_copy(update={"management_url": given})
        async with Management(settings) as management:
            version = await management.version()
            assert await management.version() == version
            assert len(asked) == 3, "the second question was asked of two connections"
            await management.http.get("overview")
            with pytest.raises(BrokerAway):
                await management.has_message(amqp.ATTEMPTS_QUEUE)  # a POST


async def test_what_may_have_been_carried_out_is_not_asked_of_another_broker(
    broker: Broker, refusing: str, silent: str
) -> None:
    queue = amqp.ATTEMPTS_QUEUE
    await broker.publish("one")
    await broker.until_depth(queue, 1)
    async with Management(broker.settings) as alone:
        base = str(alone.http.base_url).removesuffix("/api/").removeprefix("http://")
    login = broker.settings.amqp_url.get_secret_value().split("//")[1].rsplit("@", 1)[0]

    async def asked(first: str) -> bool:
        """Whether a message is found, if the random order begins with the wrong broker."""
        given = SecretStr(f"http://{login}@{first},{base}")
        several = broker.settings.model_copy(
            update={"management_url": given, "connect_timeout": 1.0}
        )
        while True:
            async with Management(several) as management:
                transport = management.http._transport
                if transport._bases[0].netloc.decode() == first:  # type: ignore[attr-defined]
                    return await management.has_message(queue)

    assert await asked(refusing)
    with pytest.raises(BrokerAway):
        await asked(silent)


async def test_a_viewers_relay_takes_the_next_broker(
    broker: Broker, refusing: str, silent: str, tmp_path: Path
) -> None:
    url = among(broker.settings.amqp_url.get_secret_value(), refusing, silent)
    quick = replace(QUICK, connect_timeout=0.5, retry_delay_max=60.0)  # so it never starts again
    with Outbox(tmp_path / "outbox.db") as outbox:
        record(outbox, make_batch())
        async with Relay(outbox, url, VIEWER, quick) as relay:
            connected = relay.until(lambda: relay.status.connected)
            await asyncio.wait_for(connected, PATIENCE)
            assert relay.status.problem is None


async def test_the_doctor_names_servers_that_nobody_misses(
    broker: Broker, database_url: str, refusing: str
) -> None:
    given = broker.settings.model_dump(exclude_unset=True) | {
        "database_url": among(database_url, refusing),
        "amqp_url": among(broker.settings.amqp_url.get_secret_value(), refusing),
    }
    found = await servers.examine(Settings.model_validate(given))
    assert [(each.severity, each.found.split(" can't")[0]) for each in found] == [
        ("warning", f"{refusing} in INGEST_DATABASE_URL"),
        ("warning", f"{refusing} in INGEST_AMQP_URL"),
    ]
    assert await servers.examine(broker.settings) == []
