"""Connections to the broker, and what the client's failures mean.

Plain connections of aio-pika, not its robust ones: those redeclare topology with the arguments
they remember (one drift, and the connection closes and retries for ever), recreate queues that
an operator deleted, restore consumers whose buffered deliveries are stale, and stop calling
return callbacks after a reconnect. A worker needs much less: when a connection or channel is
lost, everything that stood on it is dropped and opened anew by whoever uses it (`Publisher`,
`worker.consume.consumer`), each in a loop of a few lines.

Knows aio-pika; may not know what is published or consumed.
"""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, AuthenticationError
from aio_pika.exceptions import ProbableAuthenticationError as LoginRefused

from worker.broker import decoders
from worker.errors import BrokerAway
from worker.settings import Settings

CLIENT_ERRORS: Final = (*CONNECTION_EXCEPTIONS, TimeoutError)
"""What a call of the client raises when its channel, connection or patience is lost."""

decoders.install()


async def connect(settings: Settings, purpose: str) -> AbstractConnection:
    """Opens a connection of its own for `purpose`, as the broker's operator will see it named.

    Publishing and consuming need one each: a broker short of memory stops reading from
    connections that publish, and acks on the same one would be stuck behind.

    Raises `BrokerAway`, without the password, when there is none within `connect_timeout`.
    """
    url = settings.amqp_url.get_secret_value()
    parts = urlsplit(url)
    heartbeat = parse_qs(parts.query).get("heartbeat", [str(settings.heartbeat)])[0]
    port = parts.port or (5671 if parts.scheme == "amqps" else 5672)
    where = f"RabbitMQ at {parts.hostname}:{port}"
    name = f"study-ingest {purpose} {socket.gethostname()}:{os.getpid()}"
    try:
        with client_errors():
            return await aio_pika.connect(
                url,
                timeout=settings.connect_timeout,
                heartbeat=heartbeat,
                client_properties={"connection_name": name},
            )
    except (LoginRefused, AuthenticationError):
        user = unquote(parts.username or "guest")
        raise BrokerAway(
            f"{where} refuses user {user!r}: correct the login in INGEST_AMQP_URL."
        ) from None
    except CLIENT_ERRORS as error:
        raise BrokerAway(
            f"{where} can't be reached ({describe(error)}): start it, or correct INGEST_AMQP_URL."
        ) from None


async def close(connection: AbstractConnection, timeout: float) -> None:  # noqa: ASYNC109
    """Closes the connection, or gives it up after `timeout` seconds; never raises."""
    with suppress(*CLIENT_ERRORS), client_errors():
        async with asyncio.timeout(timeout):
            await connection.close()


@contextmanager
def client_errors() -> Iterator[None]:
    """Turns what nobody asked for or can name into `ConnectionError`.

    The client hands the reason of a close to everything that waits on the channel. That reason
    may be a CancelledError: without this a task of ours would end, silently, because somebody
    else's connection did. And where there is none it raises `Exception` itself, which would end
    the whole worker.
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
    """A short line for logs and sentences: what the client says, or else the error's name."""
    text = " ".join(str(error).split())
    if not text and type(error) is Exception:
        return "the client lost its connection, and does not say why"
    return (text or type(error).__name__)[:200].rstrip(".")
