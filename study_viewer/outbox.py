"""The outbox: what the viewer has recorded, in its own SQLite file, and what became of it.

A batch is *pending* until the broker has confirmed it, *confirmed* until its result arrives, and
then *settled* for good. Knows SQLite and the message models; nothing of brokers or event loops.
"""

import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self
from uuid import UUID

from pydantic_core import PydanticSerializationError

from study_viewer.errors import BatchRefused, NoTransaction, UuidReused
from study_viewer.schemas.attempt_batch import AttemptBatch, decode
from study_viewer.schemas.errors import Rejection
from study_viewer.schemas.ingest_result import IngestResult
from study_viewer.schemas.words import RejectReason, Status
from study_viewer.tables import upgrade
from study_viewer.trace import is_traceparent, new_traceparent


class State(StrEnum):
    """How far a batch has come."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    SETTLED = "settled"


@dataclass(frozen=True, slots=True)
class Entry:
    """One recorded batch. Times are in UTC, by this machine's clock.

    `problem` is one sentence on why the last attempt to publish failed, None when it did not.
    `result` is there when, and only when, the state is settled.
    """

    client_session_uuid: UUID
    state: State
    recorded_at: datetime
    body: bytes
    traceparent: str
    confirmed_at: datetime | None
    problem: str | None
    settled_at: datetime | None
    result: IngestResult | None

    @property
    def batch(self) -> AttemptBatch:
        """What was recorded."""
        return AttemptBatch.model_validate_json(self.body)

    @property
    def rejected(self) -> bool:
        """Whether the person has to be told that this session will not count."""
        return self.result is not None and self.result.status is Status.REJECTED


_ENTRY: Final = """
    SELECT client_session_uuid, state, recorded_at, body, traceparent, confirmed_at, problem,
           settled_at, result
    FROM study_outbox
"""


class Outbox:
    """The outbox in the SQLite file at `path`; makes or upgrades its tables there.

    `lock_timeout` is how many seconds a call waits for another connection's transaction before it
    raises sqlite3.OperationalError. May be used from any thread; close it, or use it in `with`.
    """

    def __init__(self, path: Path | str, *, lock_timeout: float = 5.0) -> None:
        if not str(path) or str(path).startswith((":memory:", "file:")):
            raise ValueError(
                f"the outbox path {str(path)!r} is not that of a file: an outbox must outlive"
                " the process, so name a file"
            )
        self.path = Path(path).resolve()
        self._connection = sqlite3.connect(
            self.path, timeout=lock_timeout, isolation_level=None, check_same_thread=False
        )
        self._one_at_a_time = threading.Lock()
        try:
            upgrade(self._connection, self.path)
        except BaseException:
            self._connection.close()
            raise

    def record(
        self,
        connection: sqlite3.Connection,
        batch: AttemptBatch,
        *,
        traceparent: str | None = None,
    ) -> bool:
        """Records `batch` in the transaction that is open, or that this opens, on `connection`.

        `connection` is the viewer's own, to the same file. Commits nothing: the batch becomes
        visible with the viewer's commit, and a rollback forgets it. Without a W3C `traceparent`
        one is made. Returns False when the same content was there already, and then changes
        nothing. Raises `UuidReused` for other content under the same uuid, `BatchRefused` for a
        batch that no worker would take, `NoTransaction` on a connection in autocommit mode
        without a BEGIN, and ValueError for a traceparent that is none.
        """
        if traceparent is None:
            traceparent = new_traceparent()
        elif not is_traceparent(traceparent):
            raise ValueError(
                f"traceparent {traceparent!r} is not of the form 00-<32 hex>-<16 hex>-<2 hex>:"
                " leave it out to begin a new trace"
            )
        if not (connection.in_transaction or _opens_transactions(connection)):
            raise NoTransaction
        body = _body(batch)
        digest = batch.digest()
        cursor = connection.cursor()
        cursor.row_factory = None  # whatever the viewer has set on its connection
        cursor.execute(
            """
            INSERT INTO study_outbox (client_session_uuid, digest, body, traceparent, recorded_at)
            VALUES (?, ?, ?, ?, ?) ON CONFLICT (client_session_uuid) DO NOTHING
            """,
            (str(batch.client_session_uuid), digest, body, traceparent, time.time()),
        )
        if cursor.rowcount:
            return True
        known = cursor.execute(
            "SELECT digest FROM study_outbox WHERE client_session_uuid = ?",
            (str(batch.client_session_uuid),),
        ).fetchone()
        if bytes(known[0]) != digest:
            raise UuidReused(batch.client_session_uuid)
        return False

    def get(self, client_session_uuid: UUID) -> Entry | None:
        """The batch of that uuid; None when it was never recorded, or was pruned."""
        found = self._entries("WHERE client_session_uuid = ?", str(client_session_uuid))
        return found[0] if found else None

    def pending(self, limit: int = 1_000) -> list[Entry]:
        """The first `limit` batches that the broker has not confirmed yet, oldest first."""
        return self._entries("WHERE state = 'pending' ORDER BY seq LIMIT ?", limit)

    def settled(self, limit: int = 1_000) -> list[Entry]:
        """The `limit` batches that have a result and were settled last, latest first."""
        return self._entries(
            "WHERE state = 'settled' ORDER BY settled_at DESC, seq DESC LIMIT ?", limit
        )

    def unsettled(self, older_than: timedelta = timedelta(), limit: int = 1_000) -> list[Entry]:
        """The first `limit` batches recorded `older_than` ago that have no result yet."""
        return self._entries(
            "WHERE state <> 'settled' AND recorded_at <= ? ORDER BY seq LIMIT ?",
            time.time() - older_than.total_seconds(),
            limit,
        )

    def prune(self, older_than: timedelta) -> int:
        """Forgets what was settled more than `older_than` ago; returns how many batches.

        A pruned uuid is not known any more: recorded again, it is published again, and the
        worker answers that it has it.
        """
        return self._change(
            "DELETE FROM study_outbox WHERE state = 'settled' AND settled_at < ?",
            (time.time() - older_than.total_seconds(),),
        )

    # What follows is the relay's side.

    def next_due(self, result_timeout: float, result_timeout_max: float) -> Entry | None:
        """The batch to publish now, None when there is none.

        That is the oldest pending one; when nothing is pending, the oldest that was confirmed
        `result_timeout` seconds ago and has no result: twice as many for every time that it was
        published before, up to `result_timeout_max`, so that a long backlog is not fed with its
        own duplicates.
        """
        first = self._entries("WHERE state = 'pending' ORDER BY seq LIMIT 1")
        if not first:
            now = time.time()
            first = self._entries(
                # Confirmed in the future: the clock was set back, so the wait can't be known.
                """
                WHERE state = 'confirmed' AND (confirmed_at > ? OR
                    confirmed_at + min(? * (1 << min(confirms - 1, 30)), ?) <= ?)
                ORDER BY seq LIMIT 1
                """,
                *(now, result_timeout, result_timeout_max, now),
            )
        return first[0] if first else None

    def confirm(self, client_session_uuid: UUID) -> None:
        """The broker has the batch and is answerable for it."""
        self._change(
            """
            UPDATE study_outbox
            SET state = 'confirmed', confirmed_at = ?, confirms = confirms + 1, problem = NULL
            WHERE client_session_uuid = ? AND state <> 'settled'
            """,
            (time.time(), str(client_session_uuid)),
        )

    def note_problem(self, client_session_uuid: UUID, problem: str) -> None:
        """Keeps one sentence on why the batch could not be published."""
        self._change(
            """
            UPDATE study_outbox SET problem = ?
            WHERE client_session_uuid = ? AND state <> 'settled'
            """,
            (problem, str(client_session_uuid)),
        )

    def settle(self, result: IngestResult) -> bool:
        """Keeps `result` as what became of its batch; returns False for an unknown uuid.

        An ingest beats a rejection in whatever order they come: a batch that was parked and
        replayed by an operator counts after all. Of two ingests the later stands: it repeats the
        first, unless a wrong answer key was mended in between.
        """
        self._change(
            """
            UPDATE study_outbox
            SET state = 'settled', status = :status, result = :result, problem = NULL,
                settled_at = coalesce(settled_at, :now)
            WHERE client_session_uuid = :uuid
              AND (state <> 'settled' OR :status <> 'rejected')
            """,
            {
                "status": str(result.status),
                "result": result.model_dump_json(),
                "now": time.time(),
                "uuid": str(result.client_session_uuid),
            },
        )
        return self.get(result.client_session_uuid) is not None

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entries(self, where: str, *values: Any) -> list[Entry]:
        with self._one_at_a_time:
            rows = self._connection.execute(_ENTRY + where, values).fetchall()
        return [_entry(row) for row in rows]

    def _change(self, statement: str, values: Sequence[Any] | Mapping[str, Any]) -> int:
        with self._one_at_a_time:
            return self._connection.execute(statement, values).rowcount


def _body(batch: AttemptBatch) -> bytes:
    try:
        body = batch.model_dump_json().encode()
        decode(body)  # the worker's own reader is the judge
    except PydanticSerializationError:
        sentence = "The batch holds half a surrogate pair, which is not Unicode."
        raise BatchRefused(Rejection(RejectReason.MALFORMED, sentence)) from None
    except Rejection as rejection:
        raise BatchRefused(rejection) from None
    return body


def _entry(row: Sequence[Any]) -> Entry:
    uuid, state, recorded_at, body, traceparent, confirmed_at, problem, settled_at, result = row
    return Entry(
        client_session_uuid=UUID(uuid),
        state=State(state),
        recorded_at=_utc(recorded_at),
        body=bytes(body),
        traceparent=traceparent,
        confirmed_at=None if confirmed_at is None else _utc(confirmed_at),
        problem=problem,
        settled_at=None if settled_at is None else _utc(settled_at),
        result=None if result is None else IngestResult.model_validate_json(result),
    )


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _opens_transactions(connection: sqlite3.Connection) -> bool:
    """Whether sqlite3 opens a transaction by itself for an INSERT on this connection."""
    # Python 3.12 has the attribute `autocommit` beside the older `isolation_level`.
    autocommit = getattr(connection, "autocommit", False) is True
    return connection.isolation_level is not None and not autocommit
