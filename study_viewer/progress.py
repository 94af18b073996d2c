"""The learner's progress on this device, in the viewer's own SQLite file, and what is due by it.

Pages of progress and results come in as docs/progress.md describes it: a page applies only at the
cursor that it names, and of a result and a page the newer counts. Each method is one transaction.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from study_viewer.forgetting import SHORTEST_INTERVAL, due_from, recall
from study_viewer.schemas.attempt_batch import Attempt, AttemptBatch
from study_viewer.schemas.ingest_result import IngestResult
from study_viewer.schemas.progress import ProgressMark, ProgressPage, QuestionProgress
from study_viewer.tables import ERASED, transaction


@dataclass(frozen=True, slots=True)
class Progress:
    """What the server last told about one user and question. Times are in UTC."""

    user_id: int
    question_id: int
    """Identifies the question for ever, whatever it is published as."""
    pub_ids: tuple[str, ...]
    """All ids under which it is published. Empty if it is not, so that it can't be asked."""
    version: int
    """Of two states of a user's question, that with the greater version is the newer."""
    last_answered_at: datetime
    last_outcome: str
    stability: float
    """In days."""
    interval_days: int
    due_at: datetime
    """As the schedule has it. It is due from 12 hours earlier on."""
    correct: int
    """The number of attempts with this outcome."""
    wrong: int
    unsure: int
    pattern: str


@dataclass(frozen=True, slots=True)
class Due:
    """A question that should be asked."""

    user_id: int | None
    """None for answers of this device if it does not know its user yet."""
    pub_ids: tuple[str, ...]
    """All ids under which it is published: ask any of them."""
    due_at: datetime
    last_answered_at: datetime
    recall: float | None
    """The predicted probability, 0..1, that the user still knows it. None if nothing is known but
    that it was answered on this device.
    """
    waiting: bool
    """Whether an answer of this device has no result yet. Nobody knows then whether it was right,
    so `due_at` is the earliest that the schedule can come to.
    """


class _Told(NamedTuple):
    """What a result that is newer than the pages told about a published id."""

    version: int
    due_at: datetime
    answered_at: datetime


class _State(NamedTuple):
    """Where a published question stands by the newer of page and result."""

    user_id: int
    pub_ids: tuple[str, ...]
    stability: float
    last_answered_at: datetime
    due_at: datetime


# Times are text in ISO 8601 and UTC, always with microseconds, so that their order is that of the
# text. The version is of its own, because libraries that know only the outbox must still open it.
_TABLES: Final = (
    """
    CREATE TABLE IF NOT EXISTS study_progress_user (
        user_id INTEGER PRIMARY KEY,
        cursor TEXT NOT NULL,
        epoch TEXT NOT NULL,
        version INTEGER NOT NULL,
        decay REAL NOT NULL
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS study_progress (
        user_id INTEGER NOT NULL,
        question_id INTEGER NOT NULL,
        pub_ids TEXT NOT NULL,
        version INTEGER NOT NULL,
        last_answered_at TEXT NOT NULL,
        last_outcome TEXT NOT NULL,
        stability REAL NOT NULL,
        interval_days INTEGER NOT NULL,
        due_at TEXT NOT NULL,
        correct INTEGER NOT NULL,
        wrong INTEGER NOT NULL,
        unsure INTEGER NOT NULL,
        pattern TEXT NOT NULL,
        PRIMARY KEY (user_id, question_id)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS study_progress_told (
        user_id INTEGER NOT NULL,
        pub_id TEXT NOT NULL,
        epoch TEXT NOT NULL,
        version INTEGER NOT NULL,
        due_at TEXT NOT NULL,
        answered_at TEXT NOT NULL,
        PRIMARY KEY (user_id, pub_id)
    ) WITHOUT ROWID
    """,
)
_TABLES_EXIST: Final = (
    "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN"
    " ('study_progress_user', 'study_progress', 'study_progress_told')"
)
_ALL: Final = """
    SELECT user_id, question_id, pub_ids, version, last_answered_at, last_outcome, stability,
           interval_days, due_at, correct, wrong, unsure, pattern
    FROM study_progress WHERE user_id = ?1 OR ?1 IS NULL ORDER BY user_id, question_id
"""
_REPLACE: Final = """
    INSERT OR REPLACE INTO study_progress
        (user_id, question_id, pub_ids, version, last_answered_at, last_outcome, stability,
         interval_days, due_at, correct, wrong, unsure, pattern)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_TELL: Final = """
    INSERT INTO study_progress_told (user_id, pub_id, epoch, version, due_at, answered_at)
    VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (user_id, pub_id) DO UPDATE SET epoch = excluded.epoch, version = excluded.version,
        due_at = excluded.due_at, answered_at = excluded.answered_at
    WHERE excluded.epoch <> epoch OR excluded.version >= version
"""
_DECAY_OF_FSRS_6: Final = 0.1542
"""That of the default parameters. It serves until the first page."""


class ProgressStore:
    """The progress in the file of an outbox. `Outbox.progress` is one; it may be used from any
    thread.
    """

    def __init__(self, connection: sqlite3.Connection, one_at_a_time: threading.RLock) -> None:
        """`connection` is in autocommit mode, and whoever uses it holds `one_at_a_time`."""
        self._connection = connection
        self._one_at_a_time = one_at_a_time
        (found,) = connection.execute(_TABLES_EXIST).fetchone()
        if found < len(_TABLES):
            with self._transaction():
                for statement in _TABLES:
                    connection.execute(statement)

    def due(self, at: datetime | None = None, user_id: int | None = None) -> list[Due]:
        """The published questions that are due at `at` (the default is now), the most forgotten
        first. Needs no network.

        Answers of this device count also before their result is here. With `user_id`, only this
        user's questions. Raises ValueError if `at` has no time zone.
        """
        at = datetime.now(UTC) if at is None else at
        if at.tzinfo is None:
            raise ValueError(f"the time {at} has no time zone: give it one, such as datetime.UTC")
        found = [each for each in self._standing(at) if due_from(each.due_at) <= at]
        if user_id is not None:
            found = [each for each in found if each.user_id == user_id]
        return sorted(
            found,
            key=lambda each: (each.recall is None, each.recall or 0.0, each.due_at, each.pub_ids),
        )

    def all(self, user_id: int | None = None) -> list[Progress]:
        """What the server has told about all questions, by user and question."""
        rows = self._rows(_ALL, (user_id,))
        return [_progress(*row) for row in rows]

    # The following methods are for the relay.

    def users(self) -> list[int]:
        """The users about whom the server has told anything."""
        rows = self._rows(
            "SELECT user_id FROM study_progress_user UNION SELECT user_id FROM study_progress_told"
        )
        return sorted(row[0] for row in rows)

    def cursor(self, user_id: int) -> str | None:
        """How far this device is. None if it has nothing yet."""
        rows = self._rows("SELECT cursor FROM study_progress_user WHERE user_id = ?", (user_id,))
        return str(rows[0][0]) if rows else None

    def lacks(self, mark: ProgressMark) -> bool:
        """Whether there is something to ask for."""
        rows = self._rows(
            "SELECT epoch, version FROM study_progress_user WHERE user_id = ?",
            (int(mark.user_id),),
        )
        return not rows or rows[0][0] != mark.epoch or rows[0][1] < mark.version

    def apply(self, page: ProgressPage) -> bool:
        """Applies a page. Returns False, and changes nothing, if it is not for this device's
        cursor: it is late, was repeated, or one before it was lost.
        """
        user_id = int(page.user_id)
        with self._transaction() as connection:
            if page.since != self.cursor(user_id):
                return False
            if page.erased_at is not None:
                self._forget_answers(user_id, page.erased_at)
            if page.starts_over is not None:
                connection.execute("DELETE FROM study_progress WHERE user_id = ?", (user_id,))
                connection.execute("DELETE FROM study_progress_told WHERE user_id = ?", (user_id,))
            connection.executemany(
                _REPLACE,
                [_row(user_id, question) for question in page.questions],
            )
            connection.executemany(
                "DELETE FROM study_progress WHERE user_id = ? AND question_id = ?",
                [(user_id, int(question_id)) for question_id in page.forget],
            )
            connection.execute(
                "DELETE FROM study_progress_told"
                " WHERE user_id = ? AND (version <= ? OR epoch <> ?)",
                (user_id, page.version, page.epoch),
            )
            connection.execute(
                "INSERT OR REPLACE INTO study_progress_user VALUES (?, ?, ?, ?, ?)",
                (user_id, page.cursor, page.epoch, page.version, page.decay),
            )
        return True

    def add_told(self, result: IngestResult, batch: AttemptBatch | None) -> None:
        """Keeps the due times of a result until a page has them, unless the pages are newer.

        The caller has opened a transaction, so that the answers of the batch stop to wait at the
        moment at which their times are here.
        """
        mark = result.progress
        if mark is None or batch is None or not result.due:
            return
        user_id = int(mark.user_id)
        stored = self._rows(
            "SELECT epoch, version FROM study_progress_user WHERE user_id = ?", (user_id,)
        )
        if stored and (stored[0][0] != mark.epoch or stored[0][1] >= mark.version):
            return
        effective = {each.position: each.answered_at for each in result.replaced_times}
        answered: dict[str, datetime] = {}
        for position, attempt in enumerate(batch.attempts):
            at = effective.get(position) or attempt.sent_at() or result.received_at
            answered[attempt.question_pub_id] = max(at, answered.get(attempt.question_pub_id, at))
        self._connection.executemany(
            _TELL,
            [
                (
                    *(user_id, due.question_pub_id, mark.epoch, mark.version, _text(due.due_at)),
                    _text(answered.get(due.question_pub_id, result.received_at)),
                )
                for due in result.due
            ],
        )

    def _standing(self, at: datetime) -> Iterator[Due]:
        """The state of every published question, by pages, results and answers of this device."""
        with self._one_at_a_time:
            # One transaction, so that a result never counts without its answers' end of waiting.
            self._connection.execute("BEGIN")
            try:
                questions = self.all()
                told = self._told()
                waiting = self._waiting(questions, told)
                decays = dict(self._rows("SELECT user_id, decay FROM study_progress_user"))
            finally:
                self._connection.execute("COMMIT")
        states = [_State(*_of(each)) for each in questions if each.pub_ids]
        in_pages = {(each.user_id, pub_id) for each in states for pub_id in each.pub_ids}
        states += [_by_result(*key, newer) for key, newer in told.items() if key not in in_pages]
        for state in states:
            keys = [(state.user_id, pub_id) for pub_id in state.pub_ids]
            newest = max((told[key] for key in keys if key in told), default=None)
            if newest is not None:
                state = _by_result(state.user_id, "", newest)._replace(pub_ids=state.pub_ids)
            answered = max((waiting.pop(key) for key in keys if key in waiting), default=None)
            decay = decays.get(state.user_id, _DECAY_OF_FSRS_6)
            yield _as_due(state, answered, decay, at)
        for (user, pub_id), answered in waiting.items():
            # Of a question that is new here, nothing else is known.
            due_at = answered + SHORTEST_INTERVAL
            yield Due(user, (pub_id,), due_at, answered, None, waiting=True)

    def _told(self) -> dict[tuple[int, str], _Told]:
        rows = self._rows(
            "SELECT user_id, pub_id, version, due_at, answered_at FROM study_progress_told"
        )
        return {
            (user_id, pub_id): _Told(version, _time(due_at), _time(answered_at))
            for user_id, pub_id, version, due_at, answered_at in rows
        }

    def _waiting(
        self, questions: Iterable[Progress], told: Iterable[tuple[int, str]]
    ) -> dict[tuple[int | None, str], datetime]:
        """When each question was last answered in a batch without a result, by its user.

        A batch belongs to one user, who is the one that knows any of its questions. Where that is
        not clear, it counts for nobody.
        """
        users_of: dict[str, set[int]] = {}
        for user_id, pub_id in [
            *((each.user_id, pub_id) for each in questions for pub_id in each.pub_ids),
            *told,
        ]:
            users_of.setdefault(pub_id, set()).add(user_id)
        known = self.users()
        found: dict[tuple[int | None, str], datetime] = {}
        for body, recorded_at in self._rows(
            "SELECT body, recorded_at FROM study_outbox WHERE state <> 'settled'"
        ):
            batch = AttemptBatch.model_validate_json(body)
            of_it = [users_of.get(attempt.question_pub_id, set()) for attempt in batch.attempts]
            users = {next(iter(users)) for users in of_it if len(users) == 1} or set(known)
            if len(users) > 1:
                continue
            user = next(iter(users), None)
            for attempt in filter(_is_answer, batch.attempts):
                at = attempt.sent_at() or datetime.fromtimestamp(recorded_at, UTC)
                key = (user, attempt.question_pub_id)
                found[key] = max(at, found.get(key, at))
        return found

    def _forget_answers(self, user_id: int, erased_at: datetime) -> None:
        """Deletes the answers from before the user's history was erased. The server has done so,
        and this device must not keep them either.

        Batches that have no result yet are left alone: theirs will say what was erased.
        """
        others = [each for each in self.users() if each != user_id]
        for uuid, body, recorded_at, result in self._rows(
            "SELECT client_session_uuid, body, recorded_at, result FROM study_outbox"
            " WHERE state = 'settled' AND length(body) > 0"
        ):
            mark = json.loads(result).get("progress")
            if (int(mark["user_id"]) != user_id) if mark else others:
                continue
            batch = AttemptBatch.model_validate_json(body)
            recorded = datetime.fromtimestamp(recorded_at, UTC)
            left = tuple(
                attempt
                for attempt in batch.attempts
                if (attempt.sent_at() or recorded) >= erased_at
            )
            if len(left) < len(batch.attempts):
                kept = batch.model_copy(update={"attempts": left}).model_dump_json()
                self._connection.execute(
                    "UPDATE study_outbox SET body = ?, digest = ? WHERE client_session_uuid = ?",
                    (kept.encode() if left else b"", ERASED, uuid),
                )

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._one_at_a_time:
            return self._connection.execute(query, values).fetchall()

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._connection, self._one_at_a_time)


def _progress(
    user_id: int,
    question_id: int,
    pub_ids: str,
    version: int,
    last_answered_at: str,
    last_outcome: str,
    stability: float,
    interval_days: int,
    due_at: str,
    *counts_and_pattern: Any,
) -> Progress:
    """From a row of `_ALL`."""
    return Progress(
        user_id,
        question_id,
        tuple(json.loads(pub_ids)),
        version,
        _time(last_answered_at),
        last_outcome,
        stability,
        interval_days,
        _time(due_at),
        *counts_and_pattern,
    )


def _of(question: Progress) -> _State:
    return _State(
        question.user_id,
        question.pub_ids,
        question.stability,
        question.last_answered_at,
        question.due_at,
    )


def _by_result(user_id: int, pub_id: str, told: _Told) -> _State:
    # At the usual target, a recall of 90 %, the interval is the stability, rounded to whole days.
    interval = max(told.due_at - told.answered_at, SHORTEST_INTERVAL)
    stability = interval / timedelta(days=1)
    return _State(user_id, (pub_id,), stability, told.answered_at, told.due_at)


def _as_due(state: _State, answered: datetime | None, decay: float, at: datetime) -> Due:
    """The state with an answer of this device that has no result yet, if there is a newer one."""
    last, due_at, waiting = state.last_answered_at, state.due_at, False
    if answered is not None and answered > last:
        last, due_at, waiting = answered, answered + SHORTEST_INTERVAL, True
    known = recall(state.stability, decay, last, at)
    return Due(state.user_id, state.pub_ids, due_at, last, known, waiting)


def _row(user_id: int, question: QuestionProgress) -> tuple[object, ...]:
    """The values of `_REPLACE`."""
    return (
        *(user_id, int(question.question_id), json.dumps(question.pub_ids), question.version),
        *(_text(question.last_answered_at), str(question.last_outcome), question.stability),
        *(question.interval_days, _text(question.due_at), question.correct, question.wrong),
        *(question.unsure, str(question.pattern)),
    )


def _is_answer(attempt: Attempt) -> bool:
    return attempt.is_unsure or attempt.selected_choice is not None


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
