"""Connections to the broker, and what the client's failures mean.

These are aio-pika's plain connections, not its robust ones. Robust connections declare the topology
again with the arguments that they remember (one difference closes the connection, for ever), create
queues again that an operator deleted, restore consumers whose buffered deliveries are stale, and
stop calling return callbacks after a reconnect. A worker needs much less: when a connection or a
channel is lost, whoever uses it (`Publisher`, `worker.consume.consumer`) drops it and opens a new
one, in a loop of a few lines.
"""

import asyncio
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.connection import Connection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, AuthenticationError
from aio_pika.exceptions import ProbableAuthenticationError as LoginRefused
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory

from worker.broker import decoders
from worker.errors import BrokerAway
from worker.settings import Settings, amqp_url

CLIENT_ERRORS: Final = (*CONNECTION_EXCEPTIONS, TimeoutError)
"""What a call of the client raises if its channel or connection is lost, or it times out."""


_PORTS: Final = {"amqp": 5672, "amqps": 5671, "http": 80, "https": 443}


class _Remembering(TransportFactory):
    """Opens sockets as the client does by itself, and remembers the last one."""

    def __init__(self) -> None:
        self.socket: asyncio.WriteTransport | None = None

    async def create(
        self, url: Any, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Opens one. Raises as the client's own do."""
        own = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await own.create(url, **kwargs)
        self.socket = writer.transport
        return reader, writer


class _Connection(Connection):
    """A connection that can be given up together with what it has not sent yet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sockets = _Remembering()
        self.kwargs["transport_factory"] = self._sockets

    def abort(self) -> None:
        """Drops the socket with its buffers. Does nothing if it is closed."""
        if self._sockets.socket is not None:
            self._sockets.socket.abort()


async def connect(settings: Settings, purpose: str) -> AbstractConnection:
    """Opens a connection for `purpose`, which the broker's operator sees as its name.

    Publishing and consuming need one each. A broker that is short of memory stops reading from
    connections that publish, and acks on the same connection would be stuck.

    The brokers are tried in random order, so that many workers spread over them.

    Raises `BrokerAway`, without the password, if no broker gives one within `connect_timeout`,
    and `InstallationError` if the client can't be protected against unreadable messages.
    """
    decoders.install()
    urls = settings.brokers()
    problems = []
    for url in random.sample(urls, len(urls)):
        try:
            return await _connect(url, settings, purpose)
        except BrokerAway as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    raise BrokerAway("; ".join(each.found for each in problems), problems[0].remedy)


async def _connect(url: str, settings: Settings, purpose: str) -> AbstractConnection:
    heartbeat = amqp_url.words(url).get("heartbeat", str(settings.heartbeat))
    parts = urlsplit(url)
    where = f"RabbitMQ at {place(url)}"
    name = f"study-ingest {purpose} {socket.gethostname()}:{os.getpid()}"
    try:
        with client_errors():
            return await aio_pika.connect(
                url,
                timeout=settings.connect_timeout,
                heartbeat=heartbeat,
                client_properties={"connection_name": name},
                connection_class=_Connection,
            )
    except (LoginRefused, AuthenticationError):
        user = unquote(parts.username or "guest")
        raise BrokerAway(
            f"{where} refuses user {user!r}",
            "correct the login in INGEST_AMQP_URL.",
        ) from None
    except CLIENT_ERRORS as error:
        raise BrokerAway(
            f"{where} can't be reached ({describe(error)})",
            "start it, or correct INGEST_AMQP_URL.",
        ) from None


def place(url: str) -> str:
    """The host and the port of a broker's URL, for people."""
    parts = urlsplit(url)
    return f"{amqp_url.host(url)}:{parts.port or _PORTS[parts.scheme]}"


async def close(connection: AbstractConnection, timeout: float) -> None:  # noqa: ASYNC109
    """Closes the connection, or gives up after `timeout` seconds. It never raises.

    A broker in an alarm reads nothing more from a connection that publishes. The client would keep
    what is not sent, and wait until it is, even if it is cancelled: so the socket is dropped.
    """
    assert isinstance(connection, _Connection)
    giving_up = asyncio.get_running_loop().call_later(timeout, connection.abort)
    try:
        with suppress(*CLIENT_ERRORS), client_errors():
            await connection.close()
    finally:
        giving_up.cancel()
        connection.abort()


@contextmanager
def client_errors() -> Iterator[None]:
    """Turns exceptions that nobody can handle by name into `ConnectionError`.

    The client passes the reason of a close to everything that waits on the channel. That reason may
    be a CancelledError: without this, one of our tasks would end silently because a connection
    ended. If there is no reason, the client raises a plain `Exception`, which would end the whole
    worker.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionError("the channel was closed") from None
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ConnectionError(describe(error)) from None


def describe(error: BaseException) -> str:
    """A short text for logs and errors: the client's own text, or the name of the error."""
    text = " ".join(str(error).split())
    if not text and type(error) is Exception:
        return "the client lost its connection, and does not say why"
    return (text or type(error).__name__)[:200].rstrip(".")
