"""What a device knows about its learner, by pages, results and its own answers, and what is due."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from study_viewer import Due, Outbox
from study_viewer.forgetting import recall
from study_viewer.schemas.attempt_batch import Attempt, AttemptBatch
from study_viewer.schemas.ingest_result import IngestResult
from study_viewer.schemas.progress import ProgressPage, ProgressRequest
from study_viewer.schemas.words import Status
from tests.study_viewer.progress_server import BEGIN, Server
from worker.domain.schedule import Memory, retrievability

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def pages(server: Server, outbox: Outbox, user: int = 1) -> list[ProgressPage]:
    cursor = outbox.progress.cursor(user)
    return server.answer(ProgressRequest(user_id=str(user), cursor=cursor))


def sync(server: Server, outbox: Outbox, user: int = 1) -> None:
    for page in pages(server, outbox, user):
        assert outbox.progress.apply(page)


def answer(
    outbox: Outbox, *numbers: int, at: datetime | None = BEGIN, choice: int | None = 1
) -> UUID:
    attempts = tuple(
        Attempt(
            question_pub_id=f"q-{number}",
            selected_choice=choice,
            answered_at=None if at is None else at.isoformat(),
        )
        for number in numbers
    )
    if choice is None:  # a batch without any answer can't be recorded
        attempts += (
            Attempt(question_pub_id="q-99", is_unsure=True, answered_at=BEGIN.isoformat()),
        )
    batch = AttemptBatch(client_session_uuid=uuid4(), attempts=attempts)
    with closing(sqlite3.connect(outbox.path)) as connection, connection:
        outbox.record(connection, batch)
    return batch.client_session_uuid


def ids(found: Sequence[Due]) -> list[str]:
    return [each.pub_ids[0] for each in found]


def test_a_question_is_due_from_twelve_hours_before_its_time(outbox: Outbox) -> None:
    server = Server()
    server.change(1, {1}, 2 * DAY)
    sync(server, outbox)
    due_at = BEGIN + 2 * DAY
    assert outbox.due(due_at - 12 * HOUR - timedelta.resolution) == []
    (found,) = outbox.due((due_at - 12 * HOUR).astimezone(timezone(5 * HOUR)))
    assert (found.user_id, found.pub_ids, found.due_at) == (1, ("q-1",), due_at)
    assert not found.waiting


def test_the_most_forgotten_comes_first(outbox: Outbox) -> None:
    server = Server()
    for number, days in ((1, 9), (2, 3), (3, 6)):
        server.change(1, {number}, days * DAY)
        known = server.users[1].questions[number]
        server.users[1].questions[number] = known.model_copy(update={"stability": float(days)})
    sync(server, outbox)
    found = outbox.due(BEGIN + 20 * DAY)
    assert ids(found) == ["q-2", "q-3", "q-1"]
    recalls = [each.recall or 0 for each in found]
    assert recalls == sorted(recalls)


@pytest.mark.parametrize("stability", [0.001, 0.2, 2.3065, 100.0, 36_500.0])
@pytest.mark.parametrize("hours", [-5, 0, 11, 12, 36, 24 * 400])
def test_recall_is_what_the_server_s_schedule_predicts(stability: float, hours: int) -> None:
    at = BEGIN + hours * HOUR
    there = retrievability(Memory(stability, 5.0, at), BEGIN, at)
    assert recall(stability, 0.1542, BEGIN, at) == there


def test_a_time_without_a_zone_is_refused(outbox: Outbox) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        outbox.due(datetime(2026, 3, 1))  # noqa: DTZ001


def test_an_answer_of_this_device_counts_before_its_result(outbox: Outbox) -> None:
    server = Server()
    server.change(1, {1, 2}, 2 * DAY)
    sync(server, outbox)
    at = BEGIN + 2 * DAY
    answer(outbox, 1, at=at)
    assert ids(outbox.due(at + HOUR)) == ["q-2"]
    # Nobody knows whether it was right. The earliest that the schedule gives is a day.
    found = {each.pub_ids[0]: each for each in outbox.due(at + 12 * HOUR)}
    assert found["q-1"].waiting
    assert found["q-1"].due_at == at + DAY
    assert not found["q-2"].waiting


def test_an_older_answer_and_one_that_is_none_change_nothing(outbox: Outbox) -> None:
    server = Server()
    server.change(1, {1}, 2 * DAY)
    sync(server, outbox)
    answer(outbox, 1, at=BEGIN - DAY)
    answer(outbox, 1, at=BEGIN + 2 * DAY, choice=None)
    found = {each.pub_ids[0]: each for each in outbox.due(BEGIN + 3 * DAY)}
    assert not found["q-1"].waiting
    assert found["q-1"].last_answered_at == BEGIN


def test_a_question_that_only_this_device_knows_is_due_after_a_day(outbox: Outbox) -> None:
    answer(outbox, 7)
    assert outbox.due(BEGIN + 11 * HOUR) == []
    (found,) = outbox.due(BEGIN + 12 * HOUR)
    assert (found.user_id, found.pub_ids, found.recall, found.waiting) == (
        None,
        ("q-7",),
        None,
        True,
    )


def test_a_missing_time_is_that_of_the_record(outbox: Outbox) -> None:
    answer(outbox, 7, at=None)
    now = datetime.now(UTC)
    assert outbox.due(now + 11 * HOUR) == []
    assert ids(outbox.due(now + 12 * HOUR)) == ["q-7"]


def test_a_result_tells_the_time_until_a_page_does(outbox: Outbox) -> None:
    server = Server()
    server.change(1, {1}, 2 * DAY)
    sync(server, outbox)
    at = BEGIN + 2 * DAY
    uuid = answer(outbox, 1, at=at)
    server.change(1, {1}, 9 * DAY)
    assert outbox.settle(server.result(1, uuid, {1}))
    (found,) = outbox.due(BEGIN + 30 * DAY)
    assert (found.due_at, found.waiting) == (BEGIN + 9 * DAY, False)
    assert found.last_answered_at == at
    sync(server, outbox)
    (found,) = outbox.due(BEGIN + 30 * DAY)
    assert (found.due_at, found.last_answered_at) == (BEGIN + 9 * DAY, BEGIN)


def test_a_result_older_than_the_pages_tells_nothing(outbox: Outbox) -> None:
    """The other device answered the same question again, and its page was here first."""
    server = Server()
    uuid = answer(outbox, 1)
    server.change(1, {1}, 9 * DAY)
    result = server.result(1, uuid, {1})
    server.change(1, {1}, 2 * DAY)
    sync(server, outbox)
    assert outbox.settle(result)
    (found,) = outbox.due(BEGIN + 30 * DAY)
    assert found.due_at == BEGIN + 2 * DAY


def test_of_two_results_the_greater_version_counts(outbox: Outbox) -> None:
    server = Server()
    first, second = answer(outbox, 1), answer(outbox, 1)
    server.change(1, {1}, 9 * DAY)
    older = server.result(1, first, {1})
    server.change(1, {1}, 2 * DAY)
    newer = server.result(1, second, {1})
    for result in (newer, older):
        assert outbox.settle(result)
    (found,) = outbox.due(BEGIN + 30 * DAY)
    assert found.due_at == BEGIN + 2 * DAY


def test_a_result_of_another_epoch_tells_nothing(outbox: Outbox) -> None:
    server = Server()
    server.change(1, {1}, 2 * DAY)
    sync(server, outbox)
    uuid = answer(outbox, 1)
    server.restore(server.snapshot())
    for _ in range(3):
        server.change(1, {1}, 9 * DAY)
    assert outbox.settle(server.result(1, uuid, {1}))
    (found,) = outbox.due(BEGIN + 30 * DAY)
    assert found.due_at == BEGIN + 2 * DAY
    assert outbox.progress.lacks(server.mark(1))
    sync(server, outbox)
    (found,) = outbox.due(BEGIN + 30 * DAY)
    assert found.due_at == BEGIN + 9 * DAY


def test_an_older_worker_s_result_tells_no_time(outbox: Outbox) -> None:
    server = Server()
    server.change(1, {1}, 2 * DAY)
    sync(server, outbox)
    uuid = answer(outbox, 1, at=BEGIN + 2 * DAY)
    server.change(1, {1}, 9 * DAY)
    assert outbox.settle(server.result(1, uuid, {1}).model_copy(update={"progress": None}))
    (found,) = outbox.due(BEGIN + 30 * DAY)
    assert found.due_at == BEGIN + 2 * DAY


def test_a_rejected_batch_stops_waiting(outbox: Outbox) -> None:
    server = Server()
    server.change(1, {1}, 2 * DAY)
    sync(server, outbox)
    at = BEGIN + 2 * DAY
    uuid = answer(outbox, 1, at=at)
    assert outbox.due(at) == []
    rejected = IngestResult(client_session_uuid=uuid, status=Status.REJECTED, received_at=at)
    assert outbox.settle(rejected)
    assert ids(outbox.due(at)) == ["q-1"]


def test_pages_lost_repeated_and_out_of_order_leave_no_wrong_date(outbox: Outbox) -> None:
    server = Server()
    for number in range(1, 5):
        server.change(1, {number}, number * DAY)
    told = pages(server, outbox)
    apply = outbox.progress.apply
    assert [apply(told[place]) for place in (2, 1, 0, 0, 3, 1, 0)] == [
        *(False, False, True, False, False, True, False)
    ]
    assert outbox.progress.cursor(1) == told[1].cursor
    sync(server, outbox)
    assert [each.due_at for each in outbox.progress.all(1)] == [
        BEGIN + number * DAY for number in range(1, 5)
    ]
    # What was on the way from an earlier request is of no use any more.
    assert not any(map(apply, told))


def test_two_users_on_one_device_do_not_mix(outbox: Outbox) -> None:
    server = Server()
    server.change(1, {1, 2}, 2 * DAY)
    server.change(2, {2, 3}, 5 * DAY)
    for user in (1, 2):
        sync(server, outbox, user)
    at = BEGIN + 30 * DAY
    assert {(each.user_id, each.pub_ids[0]) for each in outbox.due(at)} == {
        *((1, "q-1"), (1, "q-2"), (2, "q-2"), (2, "q-3"))
    }
    assert ids(outbox.due(at, user_id=2)) == ["q-2", "q-3"]
    # The batch has a question that only the second user knows, so all of it is that user's.
    answer(outbox, 2, 3, at=at)
    assert sorted(ids(outbox.due(at))) == ["q-1", "q-2"]
    assert ids(outbox.due(at, user_id=1)) == ["q-1", "q-2"] or ids(outbox.due(at, user_id=1)) == [
        *("q-2", "q-1")
    ]
    server.erase(1, at)
    sync(server, outbox, 1)
    assert outbox.progress.all(1) == []
    assert len(outbox.progress.all(2)) == 2


def test_an_erasure_reaches_the_answers_that_this_device_keeps(outbox: Outbox) -> None:
    server = Server()
    at = BEGIN + DAY
    before, after, other, waiting = (
        answer(outbox, 1),
        answer(outbox, 2, at=at + HOUR),
        answer(outbox, 3),
        answer(outbox, 4),
    )
    for user, uuid, number in ((1, before, 1), (1, after, 2), (2, other, 3)):
        server.change(user, {number}, DAY)
        assert outbox.settle(server.result(user, uuid, {number}))
    for user in (1, 2):
        sync(server, outbox, user)
    server.erase(1, at)
    server.change(1, {2}, DAY)
    sync(server, outbox, 1)
    entries = {uuid: outbox.get(uuid) for uuid in (before, after, other, waiting)}
    assert [entry is not None and entry.body == b"" for entry in entries.values()] == [
        *(True, False, False, False)
    ]
    assert [each.question_id for each in outbox.progress.all(1)] == [2]
    with closing(sqlite3.connect(outbox.path)) as connection, connection:
        # The uuid is still known, so recording it again is not another session.
        batch = AttemptBatch(
            client_session_uuid=before, attempts=(Attempt(question_pub_id="q-1", is_unsure=True),)
        )
        assert not outbox.record(connection, batch)


def test_a_withdrawn_question_is_kept_and_not_asked(outbox: Outbox) -> None:
    server = Server()
    server.change(1, {1, 2}, DAY)
    sync(server, outbox)
    server.republish(1, 1, ())
    server.republish(1, 2, ("q-2", "q-2-again"))
    sync(server, outbox)
    (found,) = outbox.due(BEGIN + 30 * DAY)
    assert found.pub_ids == ("q-2", "q-2-again")
    assert len(outbox.progress.all(1)) == 2
    answer(outbox, 1, at=BEGIN + 29 * DAY)
    assert [each.pub_ids for each in outbox.due(BEGIN + 30 * DAY) if not each.waiting] == [
        ("q-2", "q-2-again")
    ]


def test_a_library_without_progress_and_this_one_share_a_file(tmp_path: Path) -> None:
    """The older one must find its version of the tables, and nothing in its way."""
    path = tmp_path / "viewer.db"
    server = Server()
    with Outbox(path) as outbox:
        server.change(1, {1}, DAY)
        sync(server, outbox)
        with closing(sqlite3.connect(path)) as older, older:
            # What it reads to see whether it knows the tables.
            assert older.execute("SELECT version FROM study_outbox_version").fetchall() == [(1,)]
            older.execute(
                "INSERT INTO study_outbox (client_session_uuid, digest, body, traceparent,"
                " recorded_at, state, status, result, settled_at) VALUES (?, x'00', ?, '', 0,"
                " 'settled', 'ingested', ?, 0)",
                (
                    str(uuid4()),
                    b'{"client_session_uuid": "x", "attempts": []}',
                    '{"status": "ingested"}',
                ),
            )
        assert ids(outbox.due(BEGIN + 30 * DAY)) == ["q-1"]
    with closing(sqlite3.connect(path)) as database, database:
        for table in ("study_progress", "study_progress_told", "study_progress_user"):
            database.execute(f"DROP TABLE {table}")  # as in a file of the older library
    with Outbox(path) as outbox:
        assert outbox.due(BEGIN + 30 * DAY) == []
        sync(server, outbox)
        assert ids(outbox.due(BEGIN + 30 * DAY)) == ["q-1"]
