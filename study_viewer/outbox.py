"""The outbox: the batches that the viewer has recorded, in the viewer's own SQLite file.

A batch is *pending* until the broker has confirmed it, *confirmed* until its result arrives, and
then *settled*. This module depends on SQLite and on the message models.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self
from uuid import UUID

from pydantic_core import PydanticSerializationError

from study_viewer.errors import BatchRefused, NoTransaction, UuidReused
from study_viewer.progress import Due, ProgressStore
from study_viewer.schemas.attempt_batch import AttemptBatch, decode
from study_viewer.schemas.checks import Checked
from study_viewer.schemas.errors import Rejection
from study_viewer.schemas.ingest_result import IngestResult
from study_viewer.schemas.words import RejectReason, SkipReason, Status
from study_viewer.tables import ERASED, transaction, upgrade
from study_viewer.trace import checked_traceparent


class State(StrEnum):
    """The state of a batch."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    SETTLED = "settled"


@dataclass(frozen=True, slots=True)
class Entry:
    """One recorded batch. Times are in UTC, by this machine's clock.

    `body` is empty once the server has erased the batch.

    `problem` is one sentence about why the last attempt to publish failed, or None if it did not
    fail. `result` is set if, and only if, the state is settled.
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
        """The batch that was recorded, without what the server has erased since.

        Raises ValueError if all of it is erased.
        """
        return AttemptBatch.model_validate_json(self.body)

    @property
    def erased(self) -> bool:
        """Whether the user's history was erased, and this batch with it."""
        return self.state is State.SETTLED and not self.body

    @property
    def rejected(self) -> bool:
        """Whether the user has to learn that this session will not count."""
        return self.result is not None and self.result.status is Status.REJECTED


RESEND_WINDOW: Final = timedelta(days=1)
"""How far back a viewer looks for batches that the server has lost, unless it says otherwise."""

_ENTRY: Final = """
    SELECT client_session_uuid, state, recorded_at, body, traceparent, confirmed_at, problem,
           settled_at, result
    FROM study_outbox
"""

# The window ends with the last batch, because the device may have been away since. A result that
# waited meanwhile in the viewer's queue is settled late, but the server received its batch before:
# so a batch counts that was near the last one by this machine's clock, or by the server's.
_IN_WINDOW: Final = """
    (settled_at > min(:now, (SELECT max(settled_at) FROM study_outbox)) - :window
     OR study_received_at(result)
        > (SELECT max(study_received_at(result)) FROM study_outbox) - :window)
"""

_UNCHECK: Final = """
    UPDATE study_outbox SET unchecked = 1 WHERE state = 'settled' AND length(body) > 0 AND
"""

_PRUNE: Final = """
    DELETE FROM study_outbox
    WHERE state = 'settled' AND settled_at < :now - :age
      AND NOT (unchecked = 1 AND length(body) > 0) AND NOT
"""


class Outbox:
    """The outbox in the SQLite file at `path`. It creates or upgrades its tables there.

    `lock_timeout` is how many seconds a call waits for another connection's transaction before it
    raises sqlite3.OperationalError. You can use an outbox from any thread. Close it, or use it in
    `with`.

    If the server has lost data, the relay publishes again what was settled within `resend_window`
    before the last batch and is missing. `prune` keeps these batches.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        lock_timeout: float = 5.0,
        resend_window: timedelta = RESEND_WINDOW,
    ) -> None:
        if not str(path) or str(path).startswith((":memory:", "file:")):
            raise ValueError(
                f"the outbox path {str(path)!r} is not the path of a file: name a file, because"
                " an outbox must outlive the process"
            )
        self.path = Path(path).resolve()
        self.resend_window = resend_window
        self._connection = sqlite3.connect(
            self.path, timeout=lock_timeout, isolation_level=None, check_same_thread=False
        )
        self._one_at_a_time = threading.RLock()
        try:
            self._connection.create_function(
                "study_received_at", 1, _seconds_of_receipt, deterministic=True
            )
            upgrade(self._connection, self.path)
            self.progress = ProgressStore(self._connection, self._one_at_a_time)
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
        """Records `batch` in the transaction that is open on `connection`, or that this call opens.

        `connection` is the viewer's own connection to the same file. This commits nothing: the
        batch becomes visible with the viewer's commit, and disappears with a rollback. Without a
        W3C `traceparent` it creates one. Returns False, and changes nothing, if the same content is
        already there.

        Raises `UuidReused` for other content under the same uuid, `BatchRefused` for a batch that
        every worker would reject (one without an answer, for example) or one with a time that no
        worker can read, `NoTransaction` on a connection in autocommit mode without a BEGIN,
        and ValueError for an invalid traceparent.
        """
        traceparent = checked_traceparent(traceparent)
        if not (connection.in_transaction or _opens_transactions(connection)):
            raise NoTransaction
        body = body_of(batch)
        digest = batch.digest()
        cursor = connection.cursor()
        cursor.row_factory = None  # independent of what the viewer has set on its connection
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
        if bytes(known[0]) not in (ERASED, digest):
            raise UuidReused(batch.client_session_uuid)
        return False

    def get(self, client_session_uuid: UUID) -> Entry | None:
        """The batch with this uuid. None if it was never recorded, or was pruned."""
        found = self._entries("WHERE client_session_uuid = ?", str(client_session_uuid))
        return found[0] if found else None

    def pending(self, limit: int = 1_000) -> list[Entry]:
        """The first `limit` batches that the broker has not confirmed yet, oldest first."""
        return self._entries("WHERE state = 'pending' ORDER BY seq LIMIT ?", limit)

    def settled(self, limit: int = 1_000) -> list[Entry]:
        """The `limit` batches that were settled last, latest first."""
        return self._entries(
            "WHERE state = 'settled' ORDER BY settled_at DESC, seq DESC LIMIT ?", limit
        )

    def unsettled(self, older_than: timedelta = timedelta(), limit: int = 1_000) -> list[Entry]:
        """The first `limit` batches that the broker has not confirmed yet, oldest first."""
        return self._entries(
            "WHERE state <> 'settled' AND recorded_at <= ? ORDER BY seq LIMIT ?",
            time.time() - older_than.total_seconds(),
            limit,
        )

    def due(self, at: datetime | None = None, user_id: int | None = None) -> list[Due]:
        """The published questions that are due at `at` (the default is now), the most forgotten
        first. Needs no network: it is by what the relay has received until now, and by the answers
        of this device, also those without a result. With `user_id`, only this user's questions.

        Raises ValueError if `at` has no time zone.
        """
        return self.progress.due(at, user_id)

    def prune(self, older_than: timedelta) -> int:
        """Deletes batches that were settled more than `older_than` ago. Returns their number.

        It keeps those that were settled, or that the server received, within `resend_window` before
        the last one, and those of which nobody knows yet whether the server still has them. A
        pruned uuid is unknown. If it is recorded again, it is published again, and the worker
        answers that it already has it.
        """
        return self._change(
            _PRUNE + _IN_WINDOW, self._window() | {"age": older_than.total_seconds()}
        )

    # The following methods are for the relay.

    def next_due(self, result_timeout: float, result_timeout_max: float) -> Entry | None:
        """The batch to publish now. None if there is none.

        This is the oldest pending batch. If nothing is pending, it is the oldest batch that was
        confirmed `result_timeout` seconds ago and has no result. That time doubles each time the
        batch was published, up to `result_timeout_max`, so that a long backlog does not fill with
        duplicates.
        """
        first = self._entries("WHERE state = 'pending' ORDER BY seq LIMIT 1")
        if not first:
            now = time.time()
            first = self._entries(
                # If it was confirmed in the future, the clock was set back, and the wait is
                # unknown.
                """
                WHERE state = 'confirmed' AND (confirmed_at > ? OR
                    confirmed_at + min(? * (1 << min(confirms - 1, 30)), ?) <= ?)
                ORDER BY seq LIMIT 1
                """,
                *(now, result_timeout, result_timeout_max, now),
            )
        return first[0] if first else None

    def confirm(self, client_session_uuid: UUID) -> None:
        """Records that the broker has confirmed the batch."""
        self._change(
            """
            UPDATE study_outbox
            SET state = 'confirmed', confirmed_at = ?, confirms = confirms + 1, problem = NULL
            WHERE client_session_uuid = ? AND state <> 'settled'
            """,
            (time.time(), str(client_session_uuid)),
        )

    def note_problem(self, client_session_uuid: UUID, problem: str) -> None:
        """Stores one sentence about why the batch could not be published."""
        self._change(
            """
            UPDATE study_outbox SET problem = ?
            WHERE client_session_uuid = ? AND state <> 'settled'
            """,
            (problem, str(client_session_uuid)),
        )

    def settle(self, result: IngestResult, epoch: str | None = None) -> bool:
        """Stores `result` as the result of its batch, and the due times that it tells, in one
        transaction. Returns False for an unknown uuid.

        An ingest wins over a rejection, in whatever order they arrive, because an operator may have
        replayed the rejected batch. Of two ingests the later wins: it repeats the first, unless an
        answer key was corrected in between, or the worker has pruned the result: a pruned one
        never replaces that of an ingest. Answers that the result says are erased are deleted here
        as well. `epoch` is that of the message, if it has one: see `saw`.
        """
        with self._transaction():
            if epoch is not None:
                self._saw(epoch)
            return self._settle(result, epoch)

    def saw(self, epoch: str) -> bool:
        """Remembers the epoch of a message. If it is another one than that of the message before,
        what was settled, or what the server received, within `resend_window` before the last batch
        becomes unchecked. Returns whether it is another one.
        """
        with self._transaction():
            return self._saw(epoch)

    def doubt(self, since: datetime) -> int:
        """What the server has answered since then, by its clock, becomes unchecked. Returns the
        number of batches.
        """
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT client_session_uuid, result FROM study_outbox"
                " WHERE state = 'settled' AND length(body) > 0"
            ).fetchall()
            told = [(uuid, IngestResult.model_validate_json(result)) for uuid, result in rows]
            found = [(uuid,) for uuid, result in told if received_since(result, since)]
            connection.executemany(
                "UPDATE study_outbox SET unchecked = 1 WHERE client_session_uuid = ?", found
            )
        return len(found)

    def unchecked(self, limit: int) -> list[UUID]:
        """The first batches of which nobody knows whether the server still has them."""
        with self._one_at_a_time:
            rows = self._connection.execute(
                "SELECT client_session_uuid FROM study_outbox WHERE unchecked = 1"
                " AND length(body) > 0 ORDER BY seq LIMIT ?",
                (limit,),
            ).fetchall()
        return [UUID(row[0]) for row in rows]

    def take_checked(self, checked: Checked) -> int | None:
        """Believes the server about the batches that are unchecked: it has them, or they are
        pending again. Returns the number of those that are pending again.

        An answer of another epoch than that of the message before may be late. Only its
        epoch is remembered, and None is returned.
        """
        with self._transaction() as connection:
            if self._saw(checked.epoch):
                return None
            connection.executemany(
                "UPDATE study_outbox SET unchecked = 0 WHERE client_session_uuid = ?",
                [(str(uuid),) for uuid in checked.has],
            )
            return connection.executemany(
                """
                UPDATE study_outbox
                SET state = 'pending', unchecked = 0, status = NULL, result = NULL,
                    settled_at = NULL, confirmed_at = NULL, confirms = 0
                WHERE client_session_uuid = ? AND unchecked = 1 AND length(body) > 0
                """,
                [(str(uuid),) for uuid in checked.missing],
            ).rowcount

    def _saw(self, epoch: str) -> bool:
        known = self._connection.execute("SELECT epoch FROM study_outbox_server").fetchone()
        if known is not None and known[0] == epoch:
            return False
        self._connection.execute("DELETE FROM study_outbox_server")
        self._connection.execute("INSERT INTO study_outbox_server VALUES (?)", (epoch,))
        if known is not None:
            self._connection.execute(_UNCHECK + _IN_WINDOW, self._window())
        return True

    def _window(self) -> dict[str, float]:
        return {"now": time.time(), "window": self.resend_window.total_seconds()}

    def _settle(self, result: IngestResult, epoch: str | None) -> bool:
        uuid = str(result.client_session_uuid)
        if result.erased_at is not None:
            self._forget(uuid, result)
        if result.status is not Status.REJECTED and (entry := self.get(result.client_session_uuid)):
            self.progress.add_told(result, entry.batch if entry.body else None)
        self._change(
            """
            UPDATE study_outbox
            SET state = 'settled', status = :status, result = :result, problem = NULL,
                settled_at = coalesce(settled_at, :now),
                unchecked = CASE WHEN :epoch IS NULL THEN unchecked ELSE 0 END
            WHERE client_session_uuid = :uuid
              AND (state <> 'settled'
                OR :status <> 'rejected' AND (NOT :pruned OR status = 'rejected'))
            """,
            {
                "status": str(result.status),
                "pruned": bool(result.pruned),
                "result": result.model_dump_json(),
                "now": time.time(),
                "uuid": uuid,
                "epoch": epoch,
            },
        )
        return self.get(result.client_session_uuid) is not None

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entries(self, where: str, *values: Any) -> list[Entry]:
        with self._one_at_a_time:
            rows = self._connection.execute(_ENTRY + where, values).fetchall()
        return [_entry(row) for row in rows]

    def _forget(self, uuid: str, result: IngestResult) -> None:
        """Deletes the answers that the server has erased: those that it skipped, or else all."""
        entry = self.get(result.client_session_uuid)
        if entry is None or not entry.body:
            return
        self._change(
            "UPDATE study_outbox SET body = ?, digest = ? WHERE client_session_uuid = ?",
            (left_of(entry, result), ERASED, uuid),
        )

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._connection, self._one_at_a_time)

    def _change(self, statement: str, values: Sequence[Any] | Mapping[str, Any]) -> int:
        with self._one_at_a_time:
            return self._connection.execute(statement, values).rowcount


def received_since(result: IngestResult, since: datetime) -> bool:
    """Whether the server received the batch then or later, by its own clock."""
    return _in_utc(result.received_at) >= since


def _seconds_of_receipt(result: str | None) -> float | None:
    """When the server received the batch of a stored result. None without a result."""
    if result is None:
        return None
    # It reads nothing else, because it runs for every result in the file.
    return _in_utc(datetime.fromisoformat(json.loads(result)["received_at"])).timestamp()


def _in_utc(at: datetime) -> datetime:
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def body_of(batch: AttemptBatch) -> bytes:
    """The body as it is published. Raises `BatchRefused`."""
    try:
        body = batch.model_dump_json().encode()
        _check(decode(body))
    except PydanticSerializationError:
        sentence = "The batch contains half of a surrogate pair, which is not valid Unicode."
        raise BatchRefused(Rejection(RejectReason.MALFORMED, sentence)) from None
    except Rejection as rejection:
        raise BatchRefused(rejection) from None
    return body


def left_of(entry: Entry, result: IngestResult) -> bytes:
    """The body without the answers that the server has erased: those that it skipped, or else
    all.
    """
    erased = {each.position for each in result.skipped if each.reason == SkipReason.ERASED}
    if not erased:
        return b""
    attempts = tuple(
        attempt for position, attempt in enumerate(entry.batch.attempts) if position not in erased
    )
    return entry.batch.model_copy(update={"attempts": attempts}).model_dump_json().encode()


def _check(batch: AttemptBatch) -> None:
    """Refuses what every worker would reject, and times that every worker would replace because it
    cannot read them.
    """
    for position, attempt in enumerate(batch.attempts):
        if attempt.answered_at is not None and attempt.sent_at() is None:
            raise Rejection(
                RejectReason.MALFORMED,
                f"The time of attempt {position} cannot be read: write it as in RFC 3339, for"
                " example 2026-03-01T09:30:00.250Z, or leave it out if it is unknown.",
            )
    if all(each.selected_choice is None and not each.is_unsure for each in batch.attempts):
        raise Rejection(
            RejectReason.NOTHING_TO_SCORE,
            "No attempt contains an answer: record a session only if something was answered in it.",
        )


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
    # Python 3.12 has the attribute `autocommit` in addition to the older `isolation_level`.
    autocommit = getattr(connection, "autocommit", False) is True
    return connection.isolation_level is not None and not autocommit
