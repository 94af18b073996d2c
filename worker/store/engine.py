"""Connections to PostgreSQL, transactions on them, and what their failures mean.

The rest of the store gets a connection inside a transaction and raises what the driver raises. Only
this file translates: the database is unreachable, this transaction failed and may succeed later, or
the failure is a bug and stays as it is.
"""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

from asyncpg import Connection, InterfaceError, InternalClientError, PostgresError
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from worker.errors import DatabaseAway, TransientFault
from worker.settings import Settings
from worker.store.driver import DRIVER, driver_of

_AWAY_CLASSES: Final = ("08", "28", "3D", "53", "58")
"""SQLSTATE classes: connection lost, login refused, no such database, out of resources, disk."""
_AWAY_STATES: Final = ("57P01", "57P02", "57P03", "57P05", "25006", "25P03", "55000")
"""Shut down, crashed, starting, idle too long, read-only (a failover), transaction left idle, not
accepting connections.
"""
_TRANSIENT_STATES: Final = ("40001", "40P01", "55P03", "57014")
"""Serialization failure, deadlock, lock timeout, statement timeout."""

_PLANS: Final = {
    "jit": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
"""A worker's statements are short and find their rows by key. By default the planner would read all
questions in order to join a thousand of them. It would also make plans for empty tables (including
the lookups of the reference checks) that read whole tables when these have grown.
"""

_TLS_WORDS: Final = ("sslmode", "sslrootcert", "sslcert", "sslkey")

Isolation = Literal["repeatable_read"]
"""The isolation levels besides PostgreSQL's default, read committed."""

_CLIENT_MARGIN: Final = 5.0
"""Seconds that the client waits longer than the server's statement timeout. A server that does not
answer even then is unreachable.
"""


def make_engine(settings: Settings, *, connections: int, name: str) -> AsyncEngine:
    """A pool of at most `connections`, each with the server-side timeouts from the settings.

    `name` appears as `application_name` in pg_stat_activity. It opens no connection yet.
    """
    given = make_url(settings.database_url.get_secret_value())
    url = given.set(drivername=DRIVER).difference_update_query(_TLS_WORDS)

    def milliseconds(seconds: float) -> str:
        return str(int(seconds * 1000))

    engine = create_async_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        hide_parameters=True,  # errors end up in logs, and what people answered must not
        # Hand out the connection that was used last, because its backend's plans and caches are
        # warm.
        pool_use_lifo=True,
        pool_timeout=settings.transaction_timeout,
        connect_args={
            "timeout": settings.connect_timeout,
            "command_timeout": settings.statement_timeout + _CLIENT_MARGIN,
            **_tls(given.query),
            "server_settings": {
                "application_name": name,
                "timezone": "UTC",
                **_PLANS,
                "statement_timeout": milliseconds(settings.statement_timeout),
                "lock_timeout": milliseconds(settings.lock_timeout),
                "idle_in_transaction_session_timeout": milliseconds(
                    settings.idle_in_transaction_timeout
                ),
            },
        },
    )
    event.listen(engine.sync_engine, "checkout", _replace_closed)
    return engine


def _replace_closed(connection: Any, *_: object) -> None:
    """Replaces a connection that was closed while it was idle, instead of reporting an outage."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _tls(query: Mapping[str, str | tuple[str, ...]]) -> dict[str, ssl.SSLContext | bool]:
    """Translates libpq's TLS parameters in the URL into the driver's.

    SQLAlchemy does not pass them to the driver, which could read them itself.
    """
    said = {word: str(query[word]) for word in _TLS_WORDS if word in query}
    match said.get("sslmode"):
        case "disable":
            return {"ssl": False}
        case "verify-full":
            context = ssl.create_default_context(cafile=said.get("sslrootcert"))
            if "sslcert" in said:
                context.load_cert_chain(said["sslcert"], said.get("sslkey"))
            return {"ssl": context}
        case _:
            return {}


@asynccontextmanager
async def transaction(
    engine: AsyncEngine, *, isolation: Isolation | None = None
) -> AsyncIterator[AsyncConnection]:
    """One transaction, which is committed when the block ends and rolled back if it raises.

    Raises `DatabaseAway` or `TransientFault`, also if the connection is lost during COMMIT. In that
    case it is unknown whether the transaction took effect. Run the same work again to find out.
    """
    driver = None
    try:
        async with engine.connect() as connection:
            # The driver begins the transaction. SQLAlchemy would do so with the first statement
            # that it sees, but it does not see those of `driver.fetch`.
            connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            driver = driver_of(connection)
            try:
                async with _begun(driver, isolation):
                    yield connection
            except InternalClientError:
                # The server has said why it ends the connection, but the end has not arrived yet.
                # Until then the driver treats the connection as open, and reports a wrong state.
                driver.terminate()
                raise
            finally:
                if driver.is_closed() or driver.is_in_transaction():  # must not be used again
                    await connection.invalidate()
    except PoolTimeout as error:
        raise DatabaseAway(
            "No database connection became free in time: raise `max_connections`."
        ) from error
    except (DBAPIError, PostgresError, InterfaceError) as error:
        said = error.orig if isinstance(error, DBAPIError) else error
        _raise_translated(error, said, is_lost=driver is not None and driver.is_closed())
        _hide_row(said)
        raise
    except InternalClientError as error:
        raise DatabaseAway("The database is away: it closed the connection.") from error
    except (OSError, TimeoutError) as error:
        raise DatabaseAway(f"The database can't be reached: {_first_line(error)}.") from error


@asynccontextmanager
async def _begun(driver: Connection, isolation: Isolation | None) -> AsyncIterator[None]:
    begun = driver.transaction(isolation=isolation)
    await begun.start()
    try:
        yield
    except TimeoutError:
        raise  # the server does not answer, so a rollback would only wait again
    except BaseException:
        if not driver.is_closed():
            await begun.rollback()
        raise
    await begun.commit()


def _raise_translated(error: Exception, said: BaseException | None, *, is_lost: bool) -> None:
    state = getattr(said, "sqlstate", None) or ""
    if state in _TRANSIENT_STATES:
        raise TransientFault(f"The transaction failed with SQLSTATE {state}.") from error
    if is_lost or state in _AWAY_STATES or state[:2] in _AWAY_CLASSES:
        raise DatabaseAway(f"The database is away: {_first_line(said)}.") from error


def _hide_row(said: BaseException | None) -> None:
    # "Failing row contains (...)": tracebacks end up in logs too, and show the driver's error.
    for error in (said, said.__cause__ if said else None):
        if isinstance(error, PostgresError):
            error.detail = None


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


async def is_ready(engine: AsyncEngine) -> bool:
    """Whether the database is reachable and writable now."""
    try:
        async with transaction(engine) as connection:
            read_only = await connection.scalar(text("SHOW transaction_read_only"))
            return bool(read_only == "off")
    except (DatabaseAway, TransientFault):
        return False
