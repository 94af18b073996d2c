"""TLS to both servers: verified, or refused. Certificates are made for the test."""

import asyncio
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from devtools import postgres
from devtools.places import unprivileged
from devtools.postgres import Postgres
from devtools.rabbitmq import RabbitMQ
from tests.broker_fixtures import make_settings
from tests.security.certificates import Authority, Certificate
from worker.broker import topology
from worker.broker.connection import close, connect
from worker.broker.management import Management
from worker.errors import BrokerAway, DatabaseAway, SettingsError
from worker.settings import load_settings
from worker.store.engine import make_engine, transaction

DEBIANS_POSTGRES = Path("/usr/lib/postgresql/15/bin")
"""The embedded server's wheel is built without TLS."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder, "authority")


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Authority:
    """An authority that nobody told us of."""
    return Authority(folder, "stranger")


@pytest.fixture(scope="module")
def good(authority: Authority) -> Certificate:
    return authority.vouch("good", "127.0.0.1")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# The real servers.


@pytest.fixture(scope="module")
def tls_broker(authority: Authority, good: Certificate) -> Iterator[tuple[str, str]]:
    """URLs (AMQP, management) of a RabbitMQ that speaks only TLS to us."""
    files = {
        "cacertfile": authority.own.certificate,
        "certfile": good.certificate,
        "keyfile": good.key,
    }
    amqps, https = free_port(), free_port()
    settings = {
        "listeners.ssl.1": f"127.0.0.1:{amqps}",
        "management.ssl.ip": "127.0.0.1",
        "management.ssl.port": str(https),
        **{f"ssl_options.{name}": str(path) for name, path in files.items()},
        **{f"management.ssl.{name}": str(path) for name, path in files.items()},
    }
    with RabbitMQ(settings=settings):
        yield (
            f"amqps://guest:guest@127.0.0.1:{amqps}/?cafile={authority.own.certificate}",
            f"https://guest:guest@127.0.0.1:{https}",
        )


@pytest.mark.broker
async def test_the_broker_over_verified_tls(
    tls_broker: tuple[str, str], stranger: Authority, authority: Authority
) -> None:
    amqps, https = tls_broker
    settings = make_settings(amqps, management_url=https)
    async with Management(settings) as management:
        await topology.apply(management, settings)
        await topology.check(management, settings)
    connection = await connect(settings, "test")
    assert connection.transport is not None
    await close(connection, 5)

    for wrong in (
        amqps.replace(str(authority.own.certificate), str(stranger.own.certificate)),
        amqps.partition("?")[0],  # the system's authorities
        amqps.replace("@127.0.0.1", "@localhost"),  # the certificate is another host's
    ):
        refused = make_settings(wrong, management_url=None)
        with pytest.raises(BrokerAway, match=r"(?i)certificate"):
            await connect(refused, "test")
        api = https.replace("127.0.0.1", "localhost") if "localhost" in wrong else https
        async with Management(make_settings(wrong, management_url=api)) as management:
            with pytest.raises(BrokerAway):
                await management.version()
    async with httpx.AsyncClient(verify=False) as anybody:  # what is refused is there
        assert (await anybody.get(f"{https}/api/overview")).status_code == 200


@pytest.fixture(scope="module")
def tls_postgres(authority: Authority, good: Certificate) -> Iterator[str]:
    """The URL of a PostgreSQL with TLS: Debian's, which it takes root to run as another."""
    if not (DEBIANS_POSTGRES / "postgres").exists():
        pytest.skip(f"no PostgreSQL with TLS at {DEBIANS_POSTGRES}: install postgresql-15")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres, "binaries", lambda _suite: DEBIANS_POSTGRES)
        server = Postgres(durable=False)
        server.folder.mkdir(parents=True, exist_ok=True)
        user = unprivileged()
        files = {}
        for name, path in (("ssl_cert_file", good.certificate), ("ssl_key_file", good.key)):
            files[name] = Path(shutil.copy(path, server.folder))
            if user is not None:
                os.chown(files[name], user.pw_uid, user.pw_gid)
            files[name].chmod(0o600)
        server._settings |= {"ssl": "on", **{name: str(path) for name, path in files.items()}}
        with server:
            yield f"{server.url}?sslmode=verify-full&sslrootcert={authority.own.certificate}"


async def is_encrypted(database_url: str) -> bool:
    engine = make_engine(
        make_settings("amqp://unused", database_url=database_url), connections=1, name="tls"
    )
    try:
        async with transaction(engine) as connection:
            found = await connection.scalar(
                text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            )
            return bool(found)
    finally:
        await engine.dispose()


async def test_postgresql_over_verified_tls(
    tls_postgres: str, stranger: Authority, authority: Authority
) -> None:
    assert await is_encrypted(tls_postgres)
    for wrong in (
        tls_postgres.replace(str(authority.own.certificate), str(stranger.own.certificate)),
        tls_postgres.partition("&")[0],
        tls_postgres.replace("@127.0.0.1", "@localhost"),
    ):
        with pytest.raises(DatabaseAway, match=r"(?i)certificate"):
            await is_encrypted(wrong)
    assert not await is_encrypted(tls_postgres.partition("?")[0] + "?sslmode=disable")


async def test_a_postgresql_without_tls_is_refused(database_url: str) -> None:
    if "ssl" in database_url:
        pytest.skip("the server in use has TLS")
    with pytest.raises(DatabaseAway, match="SSL"):
        await is_encrypted(f"{database_url}?sslmode=verify-full")


# Servers that lie.


@asynccontextmanager
async def impostor(certificate: Certificate, *, asks_first: bool) -> AsyncIterator[int]:
    """A TLS server on a port of the loopback; with `asks_first`, after PostgreSQL's SSLRequest."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if asks_first:
                await reader.readexactly(8)
                writer.write(b"S")
                await writer.start_tls(context)
            await reader.read(1)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(meet, "127.0.0.1", 0, ssl=None if asks_first else context)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


BadCertificate = Callable[[Authority, Authority], Certificate]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda ours, _: ours.vouch("other", "db.example"), id="another-host"),
        pytest.param(lambda ours, _: ours.vouch("old", "127.0.0.1", days=-1), id="expired"),
        pytest.param(lambda _, theirs: theirs.vouch("theirs", "127.0.0.1"), id="a-stranger's"),
        pytest.param(lambda _, theirs: theirs.own, id="self-signed"),
    ],
)
async def test_an_impostor_is_refused(
    make: BadCertificate, authority: Authority, stranger: Authority
) -> None:
    certificate, trusted = make(authority, stranger), authority.own.certificate
    async with impostor(certificate, asks_first=False) as port:
        url = f"amqps://u:planted@127.0.0.1:{port}/?cafile={trusted}"
        with pytest.raises(BrokerAway, match=r"(?i)certificate") as broker:
            await connect(make_settings(url), "test")
    async with impostor(certificate, asks_first=True) as port:
        url = f"postgresql://u:planted@127.0.0.1:{port}/d?sslmode=verify-full&sslrootcert={trusted}"
        with pytest.raises(DatabaseAway, match=r"(?i)certificate") as database:
            await is_encrypted(url)
    assert "planted" not in f"{broker.value}{database.value}"


# Settings that would turn it off.


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("INGEST_AMQP_URL", "amqps://u:planted@host/?no_verify_ssl=1"),
        ("INGEST_AMQP_URL", "amqps://u:planted@host/?cafile=x&no_verify_ssl"),
        ("INGEST_DATABASE_URL", "postgresql://u:planted@host/d?sslmode=require"),
        ("INGEST_DATABASE_URL", "postgresql://u:planted@host/d?sslmode=prefer"),
        ("INGEST_DATABASE_URL", "postgresql://u:planted@host/d?sslmode=verify-ca"),
    ],
)
def test_verification_cannot_be_turned_off(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    monkeypatch.setenv("INGEST_AMQP_URL", "amqps://host/")
    monkeypatch.setenv("INGEST_DATABASE_URL", "postgresql://host/d?sslmode=verify-full")
    monkeypatch.delenv("INGEST_MANAGEMENT_URL", raising=False)
    assert load_settings().unprotected() == []
    monkeypatch.setenv(name, url)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert name in str(error.value)
    assert "planted" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "url", "open"),
    [
        ("INGEST_AMQP_URL", "amqp://broker.example/", True),
        ("INGEST_AMQP_URL", "amqp://127.0.0.1/", False),
        ("INGEST_DATABASE_URL", "postgresql://db.example/d", True),
        ("INGEST_DATABASE_URL", "postgresql://db.example/d?sslmode=disable", True),
        ("INGEST_DATABASE_URL", "postgresql:///d?host=/run/postgresql", False),
        ("INGEST_MANAGEMENT_URL", "http://broker.example:15672", True),
    ],
)
def test_urls_without_tls_are_listed(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str, open: bool
) -> None:
    monkeypatch.setenv("INGEST_AMQP_URL", "amqps://host/")
    monkeypatch.setenv("INGEST_DATABASE_URL", "postgresql://host/d?sslmode=verify-full")
    monkeypatch.delenv("INGEST_MANAGEMENT_URL", raising=False)
    monkeypatch.setenv(name, url)
    assert load_settings().unprotected() == ([name] if open else [])
