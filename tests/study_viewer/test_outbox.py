"""The outbox in SQLite: what a viewer's own transaction keeps, forgets, and is refused."""

import sqlite3
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from study_viewer import (
    BatchRefused,
    NoTransaction,
    Outbox,
    OutboxTooNew,
    RelayRunning,
    State,
    UuidReused,
)
from study_viewer.lock import only_relay
from study_viewer.schemas.attempt_batch import MAX_ATTEMPTS, Attempt, AttemptBatch
from study_viewer.schemas.ingest_result import IngestResult, SessionSummary
from study_viewer.schemas.words import RejectReason, Status
from study_viewer.tables import VERSIONS
from tests.study_viewer.support import make_batch, make_result, record

HOUR = 3_600.0
DAY = 24 * HOUR


def rejected(uuid: UUID, detail: str) -> IngestResult:
    reason = RejectReason.NOTHING_RESOLVED
    return make_result(uuid, Status.REJECTED, reason=reason, detail=detail)


def test_a_batch_is_visible_after_the_viewers_commit_and_not_before(outbox: Outbox) -> None:
    made = make_batch()
    with closing(sqlite3.connect(outbox.path)) as connection:
        assert outbox.record(connection, made)
        assert outbox.pending() == []
        connection.commit()
    (entry,) = outbox.pending()
    assert entry.state is State.PENDING
    assert entry.batch == made
    assert (entry.problem, entry.confirmed_at, entry.settled_at, entry.result) == (None,) * 4


def test_a_rollback_forgets_the_batch_with_the_session(outbox: Outbox) -> None:
    with closing(sqlite3.connect(outbox.path)) as connection:
        connection.execute("CREATE TABLE sessions (uuid TEXT)")
        connection.execute("INSERT INTO sessions VALUES ('one')")
        outbox.record(connection, make_batch())
        connection.rollback()
        assert connection.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
    assert outbox.pending() == []


def test_recording_the_same_again_changes_nothing(outbox: Outbox) -> None:
    made = make_batch()
    record(outbox, made)
    before = outbox.get(made.client_session_uuid)
    with closing(sqlite3.connect(outbox.path)) as connection:
        assert outbox.record(connection, made) is False
        connection.commit()
    assert outbox.get(made.client_session_uuid) == before


def test_other_content_under_a_known_uuid_is_refused_and_the_first_stays(outbox: Outbox) -> None:
    made = make_batch()
    record(outbox, made)
    with pytest.raises(UuidReused, match=str(made.client_session_uuid)):
        record(outbox, make_batch(made.client_session_uuid, choice=2))
    assert [entry.batch for entry in outbox.pending()] == [made]


def test_another_spelling_of_the_same_time_is_the_same_content(outbox: Outbox) -> None:
    uuid = uuid4()
    for spelling in ("2026-03-01T10:00:00+01:00", "2026-03-01T09:00:00Z"):
        attempt = Attempt(question_pub_id="q", selected_choice=1, answered_at=spelling)
        record(outbox, AttemptBatch(client_session_uuid=uuid, attempts=(attempt,)))
    assert len(outbox.pending()) == 1


def test_autocommit_needs_an_open_transaction(outbox: Outbox) -> None:
    with closing(sqlite3.connect(outbox.path, isolation_level=None)) as connection:
        with pytest.raises(NoTransaction, match="BEGIN"):
            outbox.record(connection, make_batch())
        connection.execute("BEGIN")
        outbox.record(connection, make_batch())
        assert outbox.pending() == []
        connection.execute("COMMIT")
    assert len(outbox.pending()) == 1


def test_the_viewers_row_factory_does_not_matter(outbox: Outbox) -> None:
    made = make_batch()
    with closing(sqlite3.connect(outbox.path)) as connection:
        connection.row_factory = lambda cursor, row: {"only": row[0]}
        assert outbox.record(connection, made)
        assert not outbox.record(connection, made)


def _unchecked(pub_id: str) -> Attempt:
    attempt = Attempt(question_pub_id="q")
    object.__setattr__(attempt, "question_pub_id", pub_id)
    return attempt


@pytest.mark.parametrize(
    ("attempts", "sentence"),
    [
        ([Attempt(question_pub_id="q")] * (MAX_ATTEMPTS + 1), "1001 attempts"),
        ([Attempt(question_pub_id="q", answered_at="x" * 1_050_000)], "bytes"),
        ([_unchecked("")], "at least 1 character"),
        ([Attempt(question_pub_id="q", answered_at="\ud800")], "surrogate"),
    ],
)
def test_a_batch_that_no_worker_would_accept_is_refused_at_once(
    outbox: Outbox, attempts: list[Attempt], sentence: str
) -> None:
    hopeless = AttemptBatch.model_construct(client_session_uuid=uuid4(), attempts=tuple(attempts))
    with pytest.raises(BatchRefused, match=sentence):
        record(outbox, hopeless)
    assert outbox.pending() == []


ANSWER = Attempt(question_pub_id="q", selected_choice=1)


@pytest.mark.parametrize(
    "attempts",
    [
        [Attempt(question_pub_id="q")],
        [Attempt(question_pub_id="q"), Attempt(question_pub_id="r", answered_at="2026-03-01")],
        [ANSWER, Attempt(question_pub_id="q", selected_choice=1, answered_at="noon")],
        [Attempt(question_pub_id="q", is_unsure=True, answered_at="2026-02-30T10:00:00Z")],
        [Attempt(question_pub_id="q", selected_choice=1, answered_at="")],
    ],
    ids=["no answer", "no answers", "a word", "no such day", "empty"],
)
def test_what_every_worker_would_refuse_or_replace_is_refused_at_once(
    outbox: Outbox, attempts: list[Attempt]
) -> None:
    made = make_batch().model_copy(update={"attempts": tuple(attempts)})
    with pytest.raises(BatchRefused):
        record(outbox, made)
    assert outbox.pending() == []


@pytest.mark.parametrize("at", [None, "2026-03-01T24:00:00Z", "2026-03-01t10:00:60z", "1970-01-01"])
def test_a_time_that_is_missing_or_that_only_a_worker_can_judge_is_recorded(
    outbox: Outbox, at: str | None
) -> None:
    """What the earliest credible time is, and whether a clock is ahead, the worker knows."""
    attempts = (ANSWER, Attempt(question_pub_id="r", selected_choice=1, answered_at=at))
    assert record(outbox, make_batch().model_copy(update={"attempts": attempts}))


def test_a_trace_is_kept_or_begun(outbox: Outbox) -> None:
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with closing(sqlite3.connect(outbox.path)) as connection:
        outbox.record(connection, make_batch(), traceparent=given)
        outbox.record(connection, make_batch())
        for wrong in (
            "",
            given.upper(),
            given.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        ):
            with pytest.raises(ValueError, match="leave it out"):
                outbox.record(connection, make_batch(), traceparent=wrong)
        connection.commit()
    kept, begun = outbox.pending()
    assert kept.traceparent == given
    assert begun.traceparent.startswith("00-")
    assert begun.traceparent != given


def test_a_batch_goes_from_pending_to_confirmed_to_settled(outbox: Outbox) -> None:
    made = make_batch()
    uuid = made.client_session_uuid
    record(outbox, made)
    outbox.note_problem(uuid, "offline")
    assert [entry.problem for entry in outbox.pending()] == ["offline"]
    outbox.confirm(uuid)
    (entry,) = outbox.unsettled()
    assert (entry.state, entry.problem) == (State.CONFIRMED, None)
    assert entry.confirmed_at is not None
    assert outbox.pending() == []
    assert outbox.settle(make_result(uuid))
    (entry,) = outbox.settled()
    assert (entry.state, entry.rejected) == (State.SETTLED, False)
    assert entry.settled_at is not None
    assert outbox.unsettled() == []


def test_a_rejection_is_kept_for_the_person(outbox: Outbox) -> None:
    made = make_batch()
    record(outbox, made)
    outbox.settle(rejected(made.client_session_uuid, "None of it is published."))
    (entry,) = outbox.settled()
    assert entry.rejected
    assert entry.result is not None
    assert entry.result.reason is RejectReason.NOTHING_RESOLVED
    assert entry.result.detail == "None of it is published."


def test_a_result_that_overtakes_the_confirm_stands(outbox: Outbox) -> None:
    made = make_batch()
    record(outbox, made)
    outbox.settle(make_result(made.client_session_uuid))
    before = outbox.get(made.client_session_uuid)
    outbox.confirm(made.client_session_uuid)
    outbox.note_problem(made.client_session_uuid, "too late")
    assert outbox.get(made.client_session_uuid) == before


def test_of_two_ingests_the_later_result_stands(outbox: Outbox) -> None:
    made = make_batch()
    record(outbox, made)
    first = make_result(made.client_session_uuid)
    session = SessionSummary(
        topic_id=1,
        quiz_session_id=uuid4(),
        correct=1,
        wrong=0,
        unsure=0,
        newly_correct=1,
        recovered=0,
        relapsed=0,
    )
    rescored = first.model_copy(update={"status": Status.ALREADY_INGESTED, "sessions": (session,)})
    outbox.settle(first)
    outbox.settle(rescored)
    outbox.settle(rejected(made.client_session_uuid, "Too late."))
    entry = outbox.get(made.client_session_uuid)
    assert entry is not None
    assert entry.result == rescored


def test_an_unknown_result_is_told_from_a_known_one(outbox: Outbox) -> None:
    assert outbox.settle(make_result(uuid4())) is False


def test_the_oldest_pending_batch_is_due_and_no_other(outbox: Outbox) -> None:
    made = [make_batch() for _ in range(3)]
    record(outbox, *made)
    due = []
    while (entry := outbox.next_due(HOUR, DAY)) is not None:
        due.append(entry.batch)
        again = outbox.next_due(HOUR, DAY)
        assert again == entry
        outbox.confirm(entry.client_session_uuid)
    assert due == made


def test_a_batch_without_result_is_due_again_after_longer_and_longer(outbox: Outbox) -> None:
    made = make_batch()
    uuid = made.client_session_uuid
    record(outbox, made)
    for confirms, wait in [(1, HOUR), (2, 2 * HOUR), (3, 4 * HOUR), (4, 5 * HOUR), (5, 5 * HOUR)]:
        outbox.confirm(uuid)
        _confirmed(outbox, uuid, seconds_ago=wait - 10)
        assert outbox.next_due(HOUR, 5 * HOUR) is None, confirms
        _confirmed(outbox, uuid, seconds_ago=wait + 10)
        assert outbox.next_due(HOUR, 5 * HOUR) is not None, confirms
    outbox.settle(make_result(uuid))
    assert outbox.next_due(HOUR, 5 * HOUR) is None


def test_a_clock_that_was_set_back_does_not_hold_a_batch_for_ever(outbox: Outbox) -> None:
    made = make_batch()
    record(outbox, made)
    outbox.confirm(made.client_session_uuid)
    _confirmed(outbox, made.client_session_uuid, seconds_ago=-365 * DAY)
    assert outbox.next_due(HOUR, DAY) is not None


def test_new_batches_go_before_repeated_ones(outbox: Outbox) -> None:
    old, new = make_batch(), make_batch()
    record(outbox, old)
    outbox.confirm(old.client_session_uuid)
    _confirmed(outbox, old.client_session_uuid, seconds_ago=DAY)
    record(outbox, new)
    due = outbox.next_due(HOUR, DAY)
    assert due is not None
    assert due.batch == new


def test_a_pruned_result_never_replaces_that_of_an_ingest(outbox: Outbox) -> None:
    held, refused, new = made = [make_batch() for _ in range(3)]
    for each in made:
        record(outbox, each)
    first = make_result(held.client_session_uuid)
    outbox.settle(first)
    outbox.settle(rejected(refused.client_session_uuid, "not yet"))
    for each in made:
        pruned = make_result(each.client_session_uuid, Status.ALREADY_INGESTED, pruned=True)
        assert outbox.settle(pruned)
    results = [entry.result for each in made if (entry := outbox.get(each.client_session_uuid))]
    assert results[0] == first
    # It counts, whatever was told before.
    assert [each and (each.pruned, each.status) for each in results[1:]] == [
        (True, Status.ALREADY_INGESTED)
    ] * 2
    whole = make_result(new.client_session_uuid, Status.ALREADY_INGESTED)
    outbox.settle(whole)
    entry = outbox.get(new.client_session_uuid)
    assert entry is not None and entry.result == whole


def test_pruning_forgets_only_what_was_settled_long_ago(outbox: Outbox) -> None:
    kept, gone = make_batch(), make_batch()
    record(outbox, kept, gone)
    outbox.settle(make_result(gone.client_session_uuid))
    outbox.resend_window = timedelta()
    assert outbox.prune(timedelta(hours=1)) == 0
    assert outbox.prune(timedelta()) == 1
    assert outbox.get(gone.client_session_uuid) is None
    assert outbox.get(kept.client_session_uuid) is not None


def test_after_pruning_a_new_batch_still_comes_last(outbox: Outbox) -> None:
    first, last, newer = make_batch(), make_batch(), make_batch()
    record(outbox, first, last)
    outbox.settle(make_result(last.client_session_uuid))
    outbox.resend_window = timedelta()
    assert outbox.prune(timedelta()) == 1
    record(outbox, newer)
    assert [entry.batch for entry in outbox.pending()] == [first, newer]


def test_only_old_batches_are_listed_as_unsettled(outbox: Outbox) -> None:
    record(outbox, make_batch())
    assert len(outbox.unsettled()) == 1
    assert outbox.unsettled(older_than=timedelta(minutes=1)) == []


def test_opening_again_keeps_everything(outbox: Outbox) -> None:
    record(outbox, make_batch())
    with Outbox(outbox.path) as again:
        assert again.pending() == outbox.pending()


def test_a_newer_librarys_tables_are_left_alone(outbox: Outbox) -> None:
    with closing(sqlite3.connect(outbox.path)) as connection, connection:
        connection.execute("UPDATE study_outbox_version SET version = 99")
    with pytest.raises(OutboxTooNew, match=f"version 99 and this library knows {len(VERSIONS)}"):
        Outbox(outbox.path)


def test_the_viewers_database_keeps_its_journal_mode(tmp_path: Path) -> None:
    for mode in ("wal", "delete"):
        path = tmp_path / f"{mode}.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA journal_mode = {mode}")
        with Outbox(path) as outbox:
            record(outbox, make_batch())
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == (mode,)


@pytest.mark.parametrize("path", ["", ":memory:", "file:x?mode=memory"])
def test_an_outbox_is_a_file(path: str) -> None:
    with pytest.raises(ValueError, match="name a file"):
        Outbox(path)


def test_one_relay_for_one_outbox(tmp_path: Path) -> None:
    path, other = tmp_path / "viewer.db", tmp_path / "other.db"
    with only_relay(path):
        with pytest.raises(RelayRunning, match=r"viewer\.db"), only_relay(path):
            pass
        with only_relay(other):
            pass
    with only_relay(path):
        pass


def _confirmed(outbox: Outbox, uuid: UUID, *, seconds_ago: float) -> None:
    with closing(sqlite3.connect(outbox.path)) as connection, connection:
        connection.execute(
            "UPDATE study_outbox SET confirmed_at = ? WHERE client_session_uuid = ?",
            (time.time() - seconds_ago, str(uuid)),
        )
