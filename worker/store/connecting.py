"""How a session with PostgreSQL comes to be: the server, TLS, what the session begins with.

Everything is said in the driver's words. Knows no pool and no transaction.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import asyncpg
from asyncpg import (
    CannotConnectNowError,
    Connection,
    PostgresConnectionError,
    PostgresError,
)
from asyncpg import TargetServerAttributeNotMatched as _OtherKind

from worker.errors import SettingsError
from worker.settings import Settings, libpq
from worker.settings.libpq import Address

_PLANS: Final = {
    "jit": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
"""A worker's statements are short and find their rows by their keys. The planner, left to itself,
reads all questions in order to join a thousand of them, and makes plans for tables that are empty
(also for the lookups behind a reference) which read all of them when they are large."""

_FOR_EVER: Final = 1e6
_CLIENT_MARGIN: Final = 5.0
"""Seconds by which the client outwaits the server's statement timeout: a server that does not
even answer with that is not there."""


def arguments(address: Address, settings: Settings, name: str) -> dict[str, Any]:
    """What the driver is asked to connect with; `name` is for pg_stat_activity.

    Raises `SettingsError` when a file that the URL names can't be read.
    """
    answers_within = settings.statement_timeout + _CLIENT_MARGIN
    return {
        **_server(address, settings),
        "command_timeout": answers_within,
        "connection_class": _session(answers_within),
        "server_settings": _session_settings(address, settings, name),
    }


def _server(address: Address, settings: Settings) -> dict[str, Any]:
    # The driver's own reading of an URL is never reached by way of SQLAlchemy.
    words = address.words
    seconds = float(words.get("connect_timeout", 0)) or settings.connect_timeout
    arguments: dict[str, Any] = {"timeout": seconds, **_tls(words)}
    if len(address.hosts) > 1:
        arguments["async_creator_fn"] = _to_the_first(address)
    elif address.hosts:
        arguments["host"] = address.hosts[0]
    if len(address.hosts) < 2 and address.ports:
        arguments["port"] = address.ports[0]
    if words.get("sslnegotiation") == "direct":
        arguments["direct_tls"] = True
    for word in ("passfile", "target_session_attrs", "krbsrvname"):
        if word in words:
            arguments[word] = words[word]
    return arguments


def _to_the_first(address: Address) -> Callable[..., Awaitable[Connection]]:
    """Connects to the first host that answers and is of the wanted kind, in the URL's order.

    Each has the whole timeout, as with libpq. The driver has one timeout for all of them, and a
    silent host would leave nothing of it to the next one.
    """

    async def connect(**arguments: Any) -> Connection:
        problems: list[Exception] = []
        for host, port in address.servers:
            try:
                return await asyncpg.connect(host=host, port=port, **arguments)
            except (OSError, PostgresConnectionError, CannotConnectNowError, _OtherKind) as error:
                problems.append(error)
        # A server that is there says more than one that is not.
        raise next((each for each in problems if isinstance(each, PostgresError)), problems[-1])

    return connect


def _session_settings(address: Address, settings: Settings, name: str) -> dict[str, str]:
    """What each session begins with; ours come after the URL's `options`, and count."""

    def milliseconds(seconds: float) -> str:
        return str(int(seconds * 1000))

    given = {"options": address.words["options"]} if "options" in address.words else {}
    return given | {
        "application_name": address.words.get("application_name", name),
        "timezone": "UTC",
        # A policy that hides rows from this role is an error: an answer without those rows would
        # reject good batches.
        "row_security": "off",
        **_PLANS,
        "statement_timeout": milliseconds(settings.statement_timeout),
        "lock_timeout": milliseconds(settings.lock_timeout),
        "idle_in_transaction_session_timeout": milliseconds(settings.idle_in_transaction_timeout),
    }


def _tls(words: Mapping[str, str]) -> dict[str, ssl.SSLContext | bool]:
    match words.get("sslmode"):
        case "disable":
            return {"ssl": False}
        case libpq.VERIFIED:
            return {"ssl": _tls_context(words)}
        case _:
            return {}


def _tls_context(words: Mapping[str, str]) -> ssl.SSLContext:
    authority = words.get("sslrootcert", "system")
    with _readable("sslrootcert", authority):
        context = ssl.create_default_context(cafile=None if authority == "system" else authority)
    if "sslcert" in words:
        with _readable("sslcert or sslkey", words["sslcert"]):
            # Never asks at a terminal, as the library would for a key with a password.
            context.load_cert_chain(
                words["sslcert"], words.get("sslkey"), password=words.get("sslpassword", "")
            )
    if "sslcrl" in words:
        with _readable("sslcrl", words["sslcrl"]):
            context.load_verify_locations(words["sslcrl"])
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    for word, bound in (
        ("ssl_min_protocol_version", "minimum_version"),
        ("ssl_max_protocol_version", "maximum_version"),
    ):
        if word in words:
            with _readable(word, words[word]):
                setattr(context, bound, ssl.TLSVersion[words[word].replace(".", "_")])
    return context


@contextmanager
def _readable(word: str, value: str) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError) as error:  # the library's own errors are OSErrors
        why = getattr(error, "strerror", None) or "it is not what it should be"
        raise SettingsError(
            f"INGEST_DATABASE_URL names a {word} that can't be used, {value!r} ({why})",
            "correct it.",
        ) from None


def _session(longest_commit: float) -> type[Connection]:
    """A connection whose COMMIT is never cancelled.

    PostgreSQL answers a cancelled COMMIT that waits for a replica with success, although no replica
    has it. Such a connection is ended instead: whether the commit took effect is then unknown, and
    the next run of the same work finds out.
    """

    class Session(Connection):  # type: ignore[misc]  # the driver has no types
        async def execute(self, query: str, *args: Any, **options: Any) -> Any:
            if query != "COMMIT;":
                return await super().execute(query, *args, **options)
            # The driver would send a cancel request when it gives up, or is cancelled itself.
            commit = asyncio.ensure_future(super().execute(query, timeout=_FOR_EVER))
            try:
                await asyncio.wait((commit,), timeout=longest_commit)
            finally:
                if not commit.done():
                    self.terminate()
                    await asyncio.wait((commit,))
                    commit.exception()  # or asyncio complains that nobody looked, if cancelled
            return commit.result()

    return Session
