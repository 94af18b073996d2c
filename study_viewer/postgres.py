"""An outbox in the application's own PostgreSQL, for an application whose users answer on a server.

A batch is recorded in the application's transaction, next to its own rows, and any number of relays
publish it. The table belongs to the application's metadata, so its own Alembic creates it. This
module needs SQLAlchemy 2, which the rest of the library does not (`study-ingest-viewer[postgres]`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, overload
from uuid import UUID

from aio_pika.abc import AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    and_,
    cast,
    extract,
    false,
    func,
    not_,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from study_viewer.checking import epoch_of, patience
from study_viewer.errors import NoTransaction, UuidReused
from study_viewer.outbox import RESEND_WINDOW, Entry, State, body_of, left_of
from study_viewer.publishing import publish
from study_viewer.relay import RelayBase, first_of
from study_viewer.results import Results
from study_viewer.schemas.attempt_batch import AttemptBatch
from study_viewer.schemas.checks import MAX_CHECKED, Checked, Recall
from study_viewer.schemas.ingest_result import IngestResult
from study_viewer.schemas.words import Status
from study_viewer.settings import RelaySettings
from study_viewer.tables import ERASED
from study_viewer.trace import checked_traceparent

log = logging.getLogger(__name__)

_PUBLISHED_AT_ONCE: Final = 50
"""Batches that one relay holds, and publishes at the same time."""

_TIME = DateTime(timezone=True)


def outbox_table(
    metadata: MetaData, name: str = "study_outbox", schema: str | None = None
) -> Table:
    """Adds the outbox to the application's metadata, from which its Alembic creates it.

    Beside it is a table of one row, `<name>_server`, for what is known of the server.
    """
    Table(
        f"{name}_server",
        metadata,
        Column("id", SmallInteger, primary_key=True, autoincrement=False),
        Column("epoch", Text, nullable=False),
        Column("ask_at", _TIME, nullable=False, server_default=func.now()),
        Column("tries", Integer, nullable=False, server_default="0"),
        schema=schema,
    )
    return Table(
        name,
        metadata,
        Column("seq", BigInteger, Identity(), primary_key=True),
        Column("client_session_uuid", Uuid, nullable=False, unique=True),
        Column("user_id", BigInteger),
        Column("digest", LargeBinary, nullable=False),
        Column("body", LargeBinary, nullable=False),
        Column("traceparent", Text, nullable=False),
        Column("state", Text, nullable=False, server_default="pending"),
        Column("recorded_at", _TIME, nullable=False, server_default=func.now()),
        Column("confirmed_at", _TIME),
        Column("confirms", Integer, nullable=False, server_default="0"),
        Column("problem", Text),
        Column("settled_at", _TIME),
        Column("status", Text),
        Column("result", Text),
        Column("unchecked", Boolean, nullable=False, server_default=false()),
        Index(f"{name}_unsettled", "seq", postgresql_where=text("state <> 'settled'")),
        Index(f"{name}_unchecked", "seq", postgresql_where=text("unchecked")),
        schema=schema,
    )


class PostgresOutbox:
    """The outbox in the table that `outbox_table` made.

    If the server has lost data, relays publish again what was settled within `resend_window` before
    the last batch and is missing. `prune` keeps these batches.
    """

    def __init__(self, table: Table, *, resend_window: timedelta = RESEND_WINDOW) -> None:
        self.table = table
        self.resend_window = resend_window
        self._server = table.metadata.tables[f"{table.fullname}_server"]

    @overload
    def record(
        self,
        session: Session | Connection,
        batch: AttemptBatch,
        *,
        user_id: int | None = None,
        traceparent: str | None = None,
    ) -> bool: ...

    @overload
    def record(
        self,
        session: AsyncSession | AsyncConnection,
        batch: AttemptBatch,
        *,
        user_id: int | None = None,
        traceparent: str | None = None,
    ) -> Awaitable[bool]: ...

    def record(
        self,
        session: Session | Connection | AsyncSession | AsyncConnection,
        batch: AttemptBatch,
        *,
        user_id: int | None = None,
        traceparent: str | None = None,
    ) -> bool | Awaitable[bool]:
        """Records `batch` in the transaction of `session`. Await it if the session is asynchronous.

        This commits nothing: the batch becomes visible with the application's commit, and
        disappears with a rollback. `user_id` names the user whose session it is; it is needed for
        questions of a shared bank, if the application's viewer may write for several users.
        Returns False, and changes nothing, if the same content is already there.

        Raises `UuidReused` for other content under the same uuid, `BatchRefused` for a batch that
        every worker would reject or one with a time that no worker can read, `NoTransaction` in
        autocommit mode, and ValueError for an invalid traceparent.
        """
        values = {
            "client_session_uuid": batch.client_session_uuid,
            "user_id": user_id,
            "digest": batch.digest(),
            "body": body_of(batch),
            "traceparent": checked_traceparent(traceparent),
        }
        if isinstance(session, AsyncSession | AsyncConnection):
            return session.run_sync(self._record, values)
        return self._record(session, values)

    def _record(self, session: Session | Connection, values: dict[str, Any]) -> bool:
        connection = session.connection() if isinstance(session, Session) else session
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            raise NoTransaction
        table = self.table
        added = insert(table).values(values).on_conflict_do_nothing().returning(table.c.seq)
        if session.execute(added).one_or_none() is not None:
            return True
        uuid = values["client_session_uuid"]
        known = session.execute(
            select(table.c.digest).where(table.c.client_session_uuid == uuid)
        ).scalar_one()
        if bytes(known) not in (ERASED, values["digest"]):
            raise UuidReused(uuid)
        return False

    async def get(self, connection: AsyncConnection, client_session_uuid: UUID) -> Entry | None:
        """The batch with this uuid. None if it was never recorded, or was deleted."""
        found = await self._entries(
            connection, self.table.c.client_session_uuid == client_session_uuid
        )
        return found[0][0] if found else None

    async def prune(self, connection: AsyncConnection, before: datetime) -> int:
        """Deletes batches that were settled before a time. Returns their number.

        It keeps those that were settled, or that the server received, within `resend_window` before
        the last one, and those of which nobody knows yet whether the server still has them.
        """
        table = self.table
        done = await connection.execute(
            table.delete().where(
                table.c.state == State.SETTLED,
                table.c.settled_at < before,
                # It may have to be published again.
                not_(and_(table.c.unchecked, func.length(table.c.body) > 0)),
                not_(self._in_window()),
            )
        )
        return done.rowcount

    # The following methods are for the relay.

    async def claim(
        self, connection: AsyncConnection, result_timeout: float, result_timeout_max: float
    ) -> list[tuple[Entry, int | None]]:
        """The batches to publish now, with their users, oldest first. Until the transaction ends,
        no other relay gets them.

        These are pending batches, and those that were confirmed `result_timeout` seconds ago and
        have no result. That time doubles each time the batch was published.
        """
        columns = self.table.c
        wait = func.least(
            result_timeout * func.power(2.0, func.least(columns.confirms - 1, 30)),
            result_timeout_max,
        )
        again = columns.confirmed_at + wait * text("interval '1 second'") <= func.now()
        return await self._entries(
            connection,
            columns.state != State.SETTLED,
            or_(columns.state == State.PENDING, again),
            claimed=True,
        )

    async def confirm(self, connection: AsyncConnection, uuids: Sequence[UUID]) -> None:
        """Records that the broker has confirmed the batches."""
        columns = self.table.c
        await connection.execute(
            update(self.table)
            .where(columns.client_session_uuid.in_(uuids), columns.state != State.SETTLED)
            .values(
                state=State.CONFIRMED,
                confirmed_at=func.now(),
                confirms=columns.confirms + 1,
                problem=None,
            )
        )

    async def note_problem(
        self, connection: AsyncConnection, uuids: Sequence[UUID], problem: str
    ) -> None:
        """Stores one sentence about why the batches could not be published."""
        columns = self.table.c
        await connection.execute(
            update(self.table)
            .where(columns.client_session_uuid.in_(uuids), columns.state != State.SETTLED)
            .values(problem=problem)
        )

    async def settle(
        self, connection: AsyncConnection, result: IngestResult, epoch: str | None = None
    ) -> bool:
        """Stores `result` as the result of its batch. Returns False for an unknown uuid.

        An ingest wins over a rejection, in whatever order they arrive, and a pruned result never
        replaces that of an ingest. Answers that the result says are erased are deleted here as
        well. `epoch` is that of the message, if it has one: see `saw`.
        """
        if epoch is not None:
            await self.saw(connection, epoch)
        columns, uuid = self.table.c, result.client_session_uuid
        own = columns.client_session_uuid == uuid
        found = await self._entries(connection, own, locked=True)
        if not found:
            return False
        ((entry, _),) = found
        erased: dict[str, Any] = {}
        if result.erased_at is not None and entry.body:
            erased = {"body": left_of(entry, result), "digest": ERASED}
        is_less = result.status is Status.REJECTED or (result.pruned and not entry.rejected)
        if entry.state is State.SETTLED and is_less:
            values = erased
        else:
            values = erased | {
                "state": State.SETTLED,
                "status": str(result.status),
                "result": result.model_dump_json(),
                "problem": None,
                "settled_at": func.coalesce(columns.settled_at, func.now()),
            }
            if epoch is not None:
                values["unchecked"] = False
        if values:
            await connection.execute(update(self.table).where(own).values(values))
        return True

    async def saw(self, connection: AsyncConnection, epoch: str) -> bool:
        """Remembers the epoch of a message. If it is another one than that of the message before,
        what was settled, or what the server received, within `resend_window` before the last batch
        becomes unchecked. Returns whether it is another one.
        """
        server, columns = self._server.c, self.table.c
        known = await connection.scalar(select(server.epoch))
        if known == epoch:
            return False
        if known is None:
            first = insert(self._server).values(id=1, epoch=epoch).on_conflict_do_nothing()
            await connection.execute(first)
            return True
        changed = await connection.execute(
            update(self._server)
            .where(server.epoch != epoch)
            .values(epoch=epoch, ask_at=func.now(), tries=0)
        )
        if changed.rowcount:
            await connection.execute(
                update(self.table)
                .where(
                    columns.state == State.SETTLED,
                    func.length(columns.body) > 0,
                    self._in_window(),
                )
                .values(unchecked=True)
            )
        return True

    async def doubt(self, connection: AsyncConnection, since: datetime) -> int:
        """What the server has answered since then, by its clock, becomes unchecked. Returns the
        number of batches.
        """
        columns = self.table.c
        await self._lock_server(connection)
        await self._ask_in(connection, 0, 0)
        done = await connection.execute(
            update(self.table)
            .where(
                columns.state == State.SETTLED,
                func.length(columns.body) > 0,
                self._received_at() >= since,
            )
            .values(unchecked=True)
        )
        return done.rowcount

    async def claim_check(
        self, connection: AsyncConnection, settings: RelaySettings
    ) -> tuple[list[UUID], float]:
        """The batches to ask the server about now, which no other relay asks about meanwhile, and
        the seconds until the next look.
        """
        columns, server = self.table.c, self._server.c
        rest = settings.check_patience
        some = await connection.scalars(
            select(columns.client_session_uuid)
            .where(columns.unchecked, func.length(columns.body) > 0)
            .order_by(columns.seq)
            .limit(MAX_CHECKED)
        )
        if not (uuids := [*some]):
            return [], rest
        await self._lock_server(connection)
        one = await connection.execute(
            select(server.tries, extract("epoch", server.ask_at - func.now()).label("wait"))
        )
        tries, wait = one.one()
        if wait > 0:
            return [], min(float(wait), rest)
        await self._ask_in(connection, patience(settings, tries), tries + 1)
        return uuids, rest

    async def take_checked(
        self, connection: AsyncConnection, checked: Checked, settings: RelaySettings
    ) -> int | None:
        """Believes the server about the batches that are unchecked: it has them, or they are
        pending again. Returns the number of those that are pending again.

        An answer of another epoch than that of the message before may be late. Only its
        epoch is remembered, and None is returned.
        """
        columns = self.table.c
        await self._lock_server(connection)
        if await self.saw(connection, checked.epoch):
            return None
        await connection.execute(
            update(self.table)
            .where(columns.client_session_uuid.in_(checked.has), columns.unchecked)
            .values(unchecked=False)
        )
        lost = await connection.execute(
            update(self.table)
            .where(
                columns.client_session_uuid.in_(checked.missing),
                columns.unchecked,
                func.length(columns.body) > 0,
            )
            .values(
                state=State.PENDING,
                unchecked=False,
                status=None,
                result=None,
                settled_at=None,
                confirmed_at=None,
                confirms=0,
            )
        )
        await self._ask_in(connection, lost.rowcount / settings.resend_rate, 0)
        return lost.rowcount

    async def _lock_server(self, connection: AsyncConnection) -> None:
        """Locks the row of the server, before any batch: two relays that lock them in different
        orders would wait for each other.
        """
        # Where nobody has told an epoch, there is no row yet.
        first = insert(self._server).values(id=1, epoch="").on_conflict_do_nothing()
        await connection.execute(first)
        await connection.execute(select(self._server.c.id).with_for_update())

    async def _ask_in(self, connection: AsyncConnection, seconds: float, tries: int) -> None:
        at = func.now() + timedelta(seconds=seconds)
        await connection.execute(update(self._server).values(ask_at=at, tries=tries))

    def _in_window(self) -> ColumnElement[bool]:
        # The window ends with the last batch, because nothing may have been published since. A
        # result that waited meanwhile in the viewer's queue is settled late, but the server
        # received its batch before: so a batch counts that was near the last one by this
        # database's clock, or by the server's.
        settled_at, received_at = self.table.c.settled_at, self._received_at()
        last_settled = select(func.max(settled_at)).scalar_subquery()
        last_received = select(func.max(received_at)).scalar_subquery()
        return or_(
            settled_at > func.least(last_settled, func.now()) - self.resend_window,
            received_at > last_received - self.resend_window,
        )

    def _received_at(self) -> ColumnElement[datetime]:
        """When the server received the batch, by its own clock."""
        return cast(cast(self.table.c.result, JSON)["received_at"].as_string(), _TIME)

    async def _entries(
        self,
        connection: AsyncConnection,
        *where: Any,
        claimed: bool = False,
        locked: bool = False,
    ) -> list[tuple[Entry, int | None]]:
        columns = self.table.c
        query = (
            select(
                columns.client_session_uuid,
                columns.state,
                columns.recorded_at,
                columns.body,
                columns.traceparent,
                columns.confirmed_at,
                columns.problem,
                columns.settled_at,
                columns.result,
                columns.user_id,
            )
            .where(*where)
            .order_by(columns.seq)
        )
        if claimed:
            query = query.limit(_PUBLISHED_AT_ONCE).with_for_update(skip_locked=True)
        elif locked:
            query = query.with_for_update()
        return [(_entry(row), row.user_id) for row in await connection.execute(query)]


class PostgresRelay(RelayBase):
    """Publishes the batches in `outbox` as `viewer`, and settles them when their results arrive.

    Any number of relays may run at once, in any processes, with the same viewer. `engine` is the
    application's own, for asyncpg. If a server is unreachable, the relay waits without limit, and
    shows that in `status`. Raises ValueError like `Relay`.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        outbox: PostgresOutbox,
        url: str,
        viewer: str,
        settings: RelaySettings | None = None,
    ) -> None:
        super().__init__(url, viewer, settings)
        self._engine = engine
        self._outbox = outbox

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Relays until `stop` is set, or until the calling task is cancelled."""
        relaying = asyncio.create_task(self._relay())
        ending = asyncio.create_task((stop or asyncio.Event()).wait())
        try:
            await asyncio.wait({relaying, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (relaying, ending):
                task.cancel()
            await asyncio.wait({relaying, ending})
            self.status.connected = False
        if not relaying.cancelled():
            relaying.result()  # a bug of ours and not a problem with a server: raise it

    async def _relay(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await first_of(self._session())
            except SQLAlchemyError as error:
                self._show(f"the outbox can't be used: {str(error).partition(chr(10))[0]}")
            except (*CONNECTION_EXCEPTIONS, TimeoutError) as error:
                self._show(f"a server can't be used: {error or type(error).__name__}")
            self.status.connected = False
            if clock() - began > self._settings.retry_delay_max:
                self._failures = 0
            await asyncio.sleep(self._next_delay())

    async def _session(self) -> None:
        """Runs one connection to the broker. It never returns without an error."""
        async with self._connected() as (connection, results, exchange):
            await first_of(
                self._publish_all(exchange),
                self._settle_all(results),
                results.lost(),
                self._check_all(connection, self._claim_check),
            )

    async def _publish_all(self, exchange: AbstractExchange) -> None:
        while True:
            if not await self._publish_some(exchange):
                await self._pause(self._settings.poll_interval)

    async def _publish_some(self, exchange: AbstractExchange) -> int:
        """Publishes what one transaction holds. What was published and not marked, because this
        process died, is published again.
        """
        settings = self._settings
        async with self._engine.begin() as connection:
            claimed = await self._outbox.claim(
                connection, settings.result_timeout, settings.result_timeout_max
            )
            async with asyncio.timeout(settings.publish_timeout):
                problems = await asyncio.gather(
                    *(
                        publish(exchange, entry, self._routing_key, self._user_id, user_id)
                        for entry, user_id in claimed
                    )
                )
            confirmed: list[UUID] = []
            refused: dict[str, list[UUID]] = {}
            for (entry, _), problem in zip(claimed, problems, strict=True):
                of_this = confirmed if problem is None else refused.setdefault(problem, [])
                of_this.append(entry.client_session_uuid)
            if confirmed:
                await self._outbox.confirm(connection, confirmed)
            for problem, uuids in refused.items():
                await self._outbox.note_problem(connection, uuids, problem)
        if refused:
            self._show(next(iter(refused)))
            await self._pause(self._next_delay())
        elif confirmed:
            self._failures = 0
            self._show(None)
        return len(confirmed)

    async def _settle_all(self, results: Results) -> None:
        while True:
            message = await results.next()
            await self._settle(message)
            await message.ack()  # only now is the result stored

    async def _settle(self, message: AbstractIncomingMessage) -> None:
        told = self._told(message)
        if told is None:
            return
        async with self._engine.begin() as connection:
            if isinstance(told, IngestResult):
                if not await self._outbox.settle(connection, told, epoch_of(message)):
                    self._note_unknown(told)
            elif isinstance(told, Recall):
                await self._outbox.doubt(connection, told.since)
            else:
                again = await self._outbox.take_checked(connection, told, self._settings)
        if isinstance(told, Checked) and again is not None:
            self._took_checked(again)
        self._doubtful.set()

    async def _claim_check(self) -> tuple[Sequence[UUID], float]:
        async with self._engine.begin() as connection:
            return await self._outbox.claim_check(connection, self._settings)


def _entry(row: Any) -> Entry:
    return Entry(
        client_session_uuid=UUID(str(row.client_session_uuid)),
        state=State(row.state),
        recorded_at=row.recorded_at.astimezone(UTC),
        body=bytes(row.body),
        traceparent=row.traceparent,
        confirmed_at=row.confirmed_at,
        problem=row.problem,
        settled_at=row.settled_at,
        result=None if row.result is None else IngestResult.model_validate_json(row.result),
    )
