"""Connections to PostgreSQL, transactions on them, and what their failures mean.

The rest of the store gets a connection inside a transaction and raises what the driver raises. Only
this file translates: the database is unreachable, this transaction failed and may succeed later, or
the failure is a bug and stays as it is.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

from asyncpg import (
    Connection,
    InterfaceError,
    InternalClientError,
    InvalidCachedStatementError,
    PostgresError,
    TargetServerAttributeNotMatched,
)
from sqlalchemy import URL, Engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from worker.errors import BehindPooler, DatabaseAway, SessionStale, TransientFault
from worker.settings import Settings, libpq
from worker.store import ours
from worker.store.connecting import arguments
from worker.store.driver import DRIVER, driver_of

_AWAY_CLASSES: Final = ("08", "28", "3D", "53", "58")
"""SQLSTATE classes: connection lost, login refused, no such database, out of resources, disk."""
_AWAY_STATES: Final = ("57P01", "57P02", "57P03", "57P05", "25006", "55000")
"""Shut down, crashed, starting, idle too long, read-only (a failover), not accepting connections.
"""
_READ_ONLY: Final = "25006"
_PROTOCOL_VIOLATION: Final = "08P01"
_OTHER_SESSIONS: Final = ("42P05", "26000")
"""A statement is prepared already, or is not: each transaction has somebody else's session."""
_LEFT_IDLE: Final = "25P03"
_TRANSIENT_STATES: Final = {
    "40001": "The transaction met another one at the same rows (SQLSTATE 40001): run it again.",
    "40P01": "The transaction and another one waited for each other (SQLSTATE 40P01):"
    " run it again.",
    "55P03": "Somebody else held a lock for longer than INGEST_LOCK_TIMEOUT (SQLSTATE 55P03):"
    " run it again later, or raise that setting.",
    "57014": "A statement took longer than INGEST_STATEMENT_TIMEOUT (SQLSTATE 57014):"
    " run it again later, or raise that setting.",
    _LEFT_IDLE: "The transaction sent no statement for INGEST_IDLE_IN_TRANSACTION_TIMEOUT, and the"
    " database ended it (SQLSTATE 25P03): do less in one transaction, or raise that setting.",
}
"""The failures that may pass, by SQLSTATE, and what an operator can do about them."""

Isolation = Literal["read_committed", "repeatable_read"]

_opened: Final = count(1)
"""Numbers the sessions, and the moments at which all earlier ones were declared doubtful."""
_addressed: Final[WeakKeyDictionary[Engine, str]] = WeakKeyDictionary()
"""Where each engine connects, for errors: ` at host:port`, without its login."""
_idle_timeouts: Final[WeakKeyDictionary[Engine, float]] = WeakKeyDictionary()
"""The seconds after which the server ends a transaction that is left idle."""
_doubted: Final[WeakKeyDictionary[Engine, int]] = WeakKeyDictionary()
"""The last such moment of each engine."""


def make_engine(settings: Settings, *, connections: int, name: str) -> AsyncEngine:
    """A pool of at most `connections`, each with the server-side timeouts from the settings.

    `name` appears as `application_name` in pg_stat_activity, unless the URL gives another one. It
    opens no connection yet. Raises `SettingsError` if a certificate in the URL cannot be read.
    """
    address = libpq.parse(settings.database_url.get_secret_value())
    engine = create_async_engine(
        URL.create(
            DRIVER,
            username=address.user,
            password=address.password,
            database=address.database,
        ),
        pool_size=connections,
        max_overflow=0,
        hide_parameters=True,  # errors end up in logs, and what people answered must not
        # Hand out the connection that was used last, because its backend's plans and caches are
        # warm.
        pool_use_lifo=True,
        pool_timeout=settings.transaction_timeout,
        connect_args=arguments(address, settings, name),
        execution_options={ours.OPTION: settings.database_schema},
    )
    pool = engine.sync_engine
    _idle_timeouts[pool] = settings.idle_in_transaction_timeout
    if places := address.places:
        _addressed[pool] = f" at {places}"

    def number(_: object, record: Any) -> None:
        record.info["opened"] = next(_opened)

    def replace(connection: Any, record: Any, _: object) -> None:
        """Lets the pool open a new session in the place of one that ended while nobody used it, or
        that is older than the moment at which sessions became doubtful.
        """
        is_doubtful = record.info["opened"] < _doubted.get(pool, 0)
        if is_doubtful or connection.driver_connection.is_closed():
            raise DisconnectionError

    def name_schema(*execution: Any) -> tuple[str, Any]:
        """What the driver's own statements get from `worker.store.driver`."""
        _, _, statement, parameters, *_ = execution
        return ours.named(statement, settings.database_schema), parameters

    event.listen(pool, "before_cursor_execute", name_schema, retval=True)
    event.listen(pool, "connect", number)
    event.listen(pool, "checkout", replace)
    return engine


def doubt_sessions(engine: AsyncEngine) -> None:
    """Has every session of the pool replaced before it is used again.

    What a session reports about the server may be true for that session only: it may lead to a
    server that is no longer the primary, or have begun with settings that no longer apply.
    """
    _doubted[engine.sync_engine] = next(_opened)


@asynccontextmanager
async def transaction(
    engine: AsyncEngine, *, isolation: Isolation = "read_committed"
) -> AsyncIterator[AsyncConnection]:
    """One transaction, which is committed when the block ends and rolled back if it raises.

    The isolation level is always named, because a database or a role can have another default.
    Raises `DatabaseAway` or `TransientFault`, also if the connection is lost during COMMIT. In that
    case it is unknown whether the transaction took effect. Run the same work again to find out.
    """
    driver = None
    began = time.monotonic()
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
            "No database connection became free in time",
            "raise `max_connections`.",
        ) from error
    except (DBAPIError, PostgresError, InterfaceError, InternalClientError) as error:
        said = error.orig if isinstance(error, DBAPIError) else error
        cause = said.__cause__ if said else None
        if isinstance(cause, TargetServerAttributeNotMatched):
            where = _addressed.get(engine.sync_engine, "")
            raise DatabaseAway(
                f"No database{where} is of the kind that target_session_attrs asks for."
            ) from error
        if isinstance(said, InternalClientError) or isinstance(cause, InternalClientError):
            if _was_left_idle(engine, error, began):
                raise TransientFault(_TRANSIENT_STATES[_LEFT_IDLE]) from error
            raise DatabaseAway("The database is away: it closed the connection.") from error
        if _is_stale(error, said):
            doubt_sessions(engine)
        is_lost = driver is not None and driver.is_closed()
        if is_lost and _was_left_idle(engine, error, began):
            raise TransientFault(_TRANSIENT_STATES[_LEFT_IDLE]) from error
        _raise_translated(error, said, is_lost=is_lost)
        _hide_row(said)
        raise
    except (OSError, TimeoutError) as error:
        where = _addressed.get(engine.sync_engine, "")
        raise DatabaseAway(
            f"The database{where} can't be reached: {_first_line(error)}."
        ) from error


@asynccontextmanager
async def _begun(driver: Connection, isolation: Isolation) -> AsyncIterator[None]:
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


def _is_stale(error: Exception, said: BaseException | None) -> bool:
    """Whether this is about the session, and another one may see it differently."""
    return getattr(said, "sqlstate", None) == _READ_ONLY or _plan_is_stale(error)


def _plan_is_stale(error: Exception) -> bool:
    # SQLAlchemy's own error of that name does not keep the SQLSTATE, only the cause.
    return isinstance(error, InvalidCachedStatementError) or (
        isinstance(error, DBAPIError)
        and error.orig is not None
        and isinstance(error.orig.__cause__, InvalidCachedStatementError)
    )


def _was_left_idle(engine: AsyncEngine, error: BaseException, began: float) -> bool:
    """Whether the server has ended a session because its transaction was left idle.

    That says nothing about the server: this process took too long between two statements. Unless it
    stood still meanwhile, the driver has forgotten what the server said, and only reports that the
    session ended between two statements.
    """
    can_be = time.monotonic() - began >= _idle_timeouts[engine.sync_engine]
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "sqlstate", None) == _LEFT_IDLE:
            return True
        if can_be and isinstance(cause, InterfaceError | InternalClientError):
            return True
        cause = cause.__cause__
    return False


def behind_a_pooler(why: str) -> BehindPooler:
    """What a connection is refused with that does not begin as the driver asked it to."""
    return BehindPooler(
        "INGEST_DATABASE_URL leads to a connection pooler, which does not pass on the settings of a"
        f" worker's sessions ({why})",
        "use the address of PostgreSQL itself. Workers have a small pool of their own.",
    )


def _raise_translated(error: Exception, said: BaseException | None, *, is_lost: bool) -> None:
    state = getattr(said, "sqlstate", None) or ""
    is_start = state == _PROTOCOL_VIOLATION and "startup parameter" in str(said)
    if is_start or state in _OTHER_SESSIONS:
        raise behind_a_pooler(_first_line(said)) from error
    if _plan_is_stale(error):
        raise SessionStale("A table was changed under a session: run it again.") from error
    if state in _TRANSIENT_STATES:
        raise TransientFault(_TRANSIENT_STATES[state]) from error
    if is_lost or state in _AWAY_STATES or state[:2] in _AWAY_CLASSES:
        raise DatabaseAway(f"The database is away: {_first_line(said)}.") from error


def _hide_row(said: BaseException | None) -> None:
    # "Failing row contains (...)": tracebacks end up in logs too, and show the driver's error.
    for error in (said, said.__cause__ if said else None):
        if isinstance(error, PostgresError):
            error.detail = None


def reason_of(error: BaseException) -> str:
    """What the server or the driver said of a failure: one line, without a full stop."""
    return _first_line(getattr(error, "orig", None) or error)


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
