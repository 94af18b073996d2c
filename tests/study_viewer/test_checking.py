"""What the outbox does about a server that may have lost batches: it publishes again exactly those
that are missing, whatever is late, repeated or lost on the way.
"""

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID, uuid4

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from study_viewer import Outbox, RelaySettings, State
from study_viewer.checking import Pace
from study_viewer.schemas.checks import Checked
from study_viewer.schemas.ingest_result import IngestResult
from study_viewer.schemas.words import Status
from study_viewer.tables import _VERSION_1
from tests.study_viewer.support import make_batch, make_result, record

ALL = 1_000


def settled(
    outbox: Outbox, count: int = 1, epoch: str | None = "one", *, days_ago: float = 0
) -> list[UUID]:
    """Batches that were published, and whose results came from this epoch, then."""
    uuids = record(outbox, *(make_batch() for _ in range(count)))
    for uuid in uuids:
        outbox.confirm(uuid)
        outbox.settle(make_result(uuid, received_at=ago(days_ago)), epoch)
        change(
            outbox,
            "UPDATE study_outbox SET settled_at = settled_at - ? WHERE client_session_uuid = ?",
            *(days_ago * 86_400, str(uuid)),
        )
    return uuids


def ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def checked(epoch: str, has: list[UUID], missing: list[UUID]) -> Checked:
    return Checked(epoch=epoch, has=tuple(has), missing=tuple(missing))


def pending(outbox: Outbox) -> list[UUID]:
    return [entry.client_session_uuid for entry in outbox.pending()]


def change(outbox: Outbox, statement: str, *values: object) -> None:
    """As time or another program does."""
    with closing(sqlite3.connect(outbox.path)) as connection, connection:
        connection.execute(statement, values)


def test_another_epoch_leaves_what_was_settled_unchecked_and_the_first_does_not(
    outbox: Outbox,
) -> None:
    old = settled(outbox, 2, epoch=None)
    assert outbox.saw("one") and outbox.unchecked(ALL) == []
    before = settled(outbox, 2)
    (waiting,) = record(outbox, make_batch())
    assert not outbox.saw("one")
    (after,) = settled(outbox, epoch="two")
    assert outbox.unchecked(ALL) == [*old, *before]
    assert outbox.unchecked(3) == [*old, before[0]]
    assert waiting not in outbox.unchecked(ALL) and after not in outbox.unchecked(ALL)


def test_missing_batches_are_pending_again_in_their_order_and_the_others_stay(
    outbox: Outbox,
) -> None:
    first, kept, last = settled(outbox, 3)
    outbox.saw("two")
    (newer,) = record(outbox, make_batch())
    assert outbox.take_checked(checked("two", [kept], [last, first])) == 2
    assert pending(outbox) == [first, last, newer] and outbox.unchecked(ALL) == []
    entry = outbox.get(first)
    assert entry is not None and entry.state is State.PENDING
    assert (entry.result, entry.settled_at, entry.confirmed_at) == (None, None, None)
    # As for every batch that was never published.
    outbox.confirm(first)
    outbox.settle(make_result(first), "two")
    entry = outbox.get(first)
    assert entry is not None and entry.state is State.SETTLED and entry.result is not None


def test_nothing_is_published_again_where_nothing_is_missing(outbox: Outbox) -> None:
    uuids = settled(outbox, 5)
    outbox.saw("two")
    assert outbox.take_checked(checked("two", uuids, [])) == 0
    assert pending(outbox) == [] and outbox.unchecked(ALL) == []


def test_a_hostile_late_or_repeated_answer_changes_nothing(outbox: Outbox) -> None:
    uuids = settled(outbox, 2)
    # Nobody has asked.
    assert outbox.take_checked(checked("one", [], uuids)) == 0
    outbox.saw("two")
    # Another viewer's batches, and what is not settled.
    (mine,) = record(outbox, make_batch())
    assert outbox.take_checked(checked("two", [uuid4()], [uuid4(), mine])) == 0
    # From a former server: not believed, in either direction, and asked again.
    for has, missing in ((uuids, []), ([], uuids)):
        assert outbox.take_checked(checked("one", has, missing)) is None
        assert outbox.unchecked(ALL) == uuids
        assert outbox.saw("two")
    answer = checked("two", uuids[:1], uuids[1:])
    assert outbox.take_checked(answer) == 1
    assert outbox.take_checked(answer) == 0
    outbox.settle(make_result(uuids[1]), "two")
    assert outbox.take_checked(answer) == 0
    assert pending(outbox) == [mine]


def test_an_answer_that_says_both_publishes_nothing(outbox: Outbox) -> None:
    (uuid,) = settled(outbox)
    outbox.saw("two")
    assert outbox.take_checked(checked("two", [uuid], [uuid])) == 0
    assert pending(outbox) == []


def test_a_result_of_the_new_server_needs_no_check_and_that_of_an_older_worker_does(
    outbox: Outbox,
) -> None:
    one, other = settled(outbox, 2)
    outbox.saw("two")
    outbox.settle(make_result(one), "two")
    outbox.settle(make_result(other), None)
    assert outbox.unchecked(ALL) == [other]


def test_a_late_result_of_the_former_server_is_checked(outbox: Outbox) -> None:
    outbox.saw("one")
    outbox.saw("two")
    (late,) = settled(outbox, epoch="one")
    assert outbox.take_checked(checked("two", [], [late])) is None  # as if nobody had told of two
    assert outbox.unchecked(ALL) == [late]
    assert outbox.take_checked(checked("two", [], [late])) == 1


def test_erased_answers_are_neither_asked_about_nor_published(outbox: Outbox) -> None:
    gone, unchecked, other = settled(outbox, 3)
    erased = {"erased_at": datetime.now(UTC)}
    outbox.settle(make_result(gone, Status.ALREADY_INGESTED, **erased), "one")
    outbox.saw("two")
    # An older worker tells of it after the change.
    outbox.settle(make_result(unchecked, Status.ALREADY_INGESTED, **erased), None)
    assert outbox.unchecked(ALL) == [other]
    outbox.doubt(datetime(2026, 1, 1, tzinfo=UTC))
    assert outbox.unchecked(ALL) == [other]
    assert outbox.take_checked(checked("two", [], [gone, unchecked])) == 0


def test_the_window_ends_with_the_last_batch_and_not_now(outbox: Outbox) -> None:
    # A phone that was switched off for a week since.
    before, _, last = (settled(outbox, days_ago=days)[0] for days in (7.5, 8.5, 7.0))
    assert outbox.prune(timedelta(days=1)) == 1
    outbox.saw("two")
    assert outbox.unchecked(ALL) == [before, last]


def test_a_result_that_waited_for_the_phone_does_not_move_the_window(outbox: Outbox) -> None:
    # The phone was switched off for a week, and its queue has kept a result of the former server.
    before, _, last = (settled(outbox, days_ago=days)[0] for days in (7.5, 8.5, 7.0))
    (waited,) = record(outbox, make_batch())
    outbox.settle(make_result(waited, received_at=ago(7.0)), "one")
    assert outbox.prune(timedelta(days=1)) == 1
    outbox.saw("two")
    assert outbox.unchecked(ALL) == [before, last, waited]


def test_a_result_that_waited_is_checked_also_if_it_comes_after_the_new_server(
    outbox: Outbox,
) -> None:
    (before,) = settled(outbox, days_ago=7.0)
    (new,) = settled(outbox, epoch="two")
    (waited,) = record(outbox, make_batch())
    outbox.settle(make_result(waited, received_at=ago(7.0)), "one")
    assert outbox.unchecked(ALL) == [before, new]
    outbox.saw("two")
    assert outbox.unchecked(ALL) == [before, new, waited]


def test_pruning_keeps_what_is_unchecked_until_the_server_has_said_that_it_has_it(
    outbox: Outbox,
) -> None:
    old, erased = settled(outbox, 2, days_ago=3.0)
    (new,) = settled(outbox)
    assert outbox.doubt(ago(4.0)) == 3
    # An app that prunes when it starts, before a worker has answered.
    assert outbox.prune(timedelta(days=2)) == 0
    assert outbox.unchecked(ALL) == [old, erased, new]
    # Nobody will ever ask about what was erased.
    gone = make_result(erased, received_at=ago(3.0), erased_at=ago(0))
    outbox.settle(gone, None)
    assert outbox.prune(timedelta(days=2)) == 1
    assert outbox.take_checked(checked("one", [old, new], [])) == 0
    assert outbox.prune(timedelta(days=2)) == 1
    assert outbox.get(old) is None and outbox.get(new) is not None


def test_a_clock_that_was_set_back_leaves_the_window_open(outbox: Outbox) -> None:
    ahead, now = settled(outbox, 2)
    change(
        outbox,
        "UPDATE study_outbox SET settled_at = settled_at + 1e9 WHERE client_session_uuid = ?",
        str(ahead),
    )
    outbox.saw("two")
    assert outbox.unchecked(ALL) == [ahead, now]


def test_a_recall_goes_by_the_servers_clock_and_any_age(outbox: Outbox) -> None:
    restored = datetime(2026, 3, 1, 2, tzinfo=UTC)
    uuids = record(outbox, *(make_batch() for _ in range(3)))
    for uuid, hours in zip(uuids, (-1, 0, 1), strict=True):
        at = restored + timedelta(hours=hours)
        outbox.settle(make_result(uuid, received_at=at), "one")
    rejected = make_result(uuids[2], Status.REJECTED, reason="expired", detail="x")
    outbox.settle(rejected, "one")
    change(outbox, "UPDATE study_outbox SET settled_at = 0")
    assert outbox.doubt(restored) == 2
    assert outbox.doubt(restored) == 2
    assert outbox.unchecked(ALL) == uuids[1:]
    # The same epoch, where the operator has put the rows into the same tables.
    assert outbox.take_checked(checked("one", [uuids[1]], [uuids[2]])) == 1


def test_a_recall_on_a_device_that_knows_no_epoch_is_believed_at_the_second_answer(
    outbox: Outbox,
) -> None:
    (uuid,) = settled(outbox, epoch=None)
    assert outbox.doubt(datetime(2020, 1, 1, tzinfo=UTC)) == 1
    assert outbox.take_checked(checked("one", [], [uuid])) is None
    assert outbox.take_checked(checked("one", [], [uuid])) == 1


def test_the_file_of_an_older_library_gets_what_is_new_and_keeps_its_version(
    tmp_path: Path,
) -> None:
    path = tmp_path / "viewer.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in (
            *_VERSION_1,
            "CREATE TABLE study_outbox_version (version INTEGER NOT NULL)",
            "INSERT INTO study_outbox_version VALUES (1)",
        ):
            connection.execute(statement)
    with Outbox(path) as outbox:
        (uuid,) = settled(outbox)
        outbox.saw("two")
        assert outbox.unchecked(ALL) == [uuid]
    with closing(sqlite3.connect(path)) as connection:
        # What the older library writes and reads.
        connection.execute(
            "INSERT INTO study_outbox (client_session_uuid, digest, body, traceparent, recorded_at)"
            " VALUES ('u', x'00', x'00', 't', 0)"
        )
        assert connection.execute("SELECT version FROM study_outbox_version").fetchall() == [(1,)]


def test_checks_come_ever_more_slowly_and_what_is_published_again_at_a_bounded_rate() -> None:
    now = 100.0
    given = RelaySettings(check_patience=10, check_patience_max=60, resend_rate=5)
    pace = Pace(given, lambda: now)
    waits = []
    for _ in range(5):
        assert pace.wait() == 0
        pace.asked()
        waits.append(pace.wait())
        now += waits[-1]
    assert waits == [10, 20, 40, 60, 60]
    pace.answered(0)
    assert pace.wait() == 0
    pace.answered(100)
    assert pace.wait() == 20
    pace.asked()
    assert pace.wait() == 10


# ------------------------------------------------------------------------------ any order of all


@dataclass
class Server:
    """What a server has, of those that follow each other."""

    epoch: str
    has: set[UUID] = field(default_factory=set)


class LossMachine(RuleBasedStateMachine):
    """A device, and servers that take over from each other and forget. Results and answers come in
    any order, late, twice or never.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.outbox = Outbox(Path(self.folder.name) / "viewer.db")
        self.servers = [Server("e0")]
        self.under_way: list[tuple[str, IngestResult | Checked]] = []
        self.recorded: set[UUID] = set()
        self.sent_again = 0
        self.lost = 0
        self.former_were_asked = False

    @property
    def server(self) -> Server:
        return self.servers[-1]

    @rule()
    def record(self) -> None:
        self.recorded |= {*record(self.outbox, make_batch())}

    @rule()
    def publish(self) -> None:
        if entry := self.outbox.next_due(0, 0):
            uuid = entry.client_session_uuid
            self.outbox.confirm(uuid)
            self.server.has.add(uuid)
            self.under_way.append((self.server.epoch, make_result(uuid)))

    @rule(fraction=st.floats(0, 1))
    def fail_over(self, fraction: float) -> None:
        has = sorted(self.server.has)
        left = {*has[: round(len(has) * fraction)]}
        self.lost += len(has) - len(left)
        self.servers.append(Server(f"e{len(self.servers)}", left))

    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        """Perhaps of a former server that does not know that it is no more."""
        server = data.draw(st.sampled_from(self.servers[-2:]))
        self.former_were_asked |= server is not self.server
        if uuids := self.outbox.unchecked(2):
            has = [uuid for uuid in uuids if uuid in server.has]
            missing = [uuid for uuid in uuids if uuid not in server.has]
            self.under_way.append((server.epoch, checked(server.epoch, has, missing)))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: st.DataObject, again: bool) -> None:
        place = data.draw(st.integers(0, len(self.under_way) - 1))
        epoch, message = self.under_way[place] if again else self.under_way.pop(place)
        if isinstance(message, Checked):
            self.sent_again += self.outbox.take_checked(message) or 0
        else:
            self.outbox.settle(message, epoch)

    @precondition(lambda self: self.under_way)
    @rule()
    def lose_an_answer(self) -> None:
        if isinstance(self.under_way[0][1], Checked):
            del self.under_way[0]

    def teardown(self) -> None:
        try:
            self.under_way.reverse()
            for epoch, message in self.under_way:  # all that is late, from whichever server
                if isinstance(message, IngestResult):
                    self.outbox.settle(message, epoch)
                else:
                    self.sent_again += self.outbox.take_checked(message) or 0
            self.under_way.clear()
            # Something is published at last, or a page of progress comes.
            self.outbox.saw(self.server.epoch)
            for _ in range(10 * len(self.recorded) + 10):
                self.publish()
                self.ask_the_last()
                for epoch, message in self.under_way:
                    if isinstance(message, IngestResult):
                        self.outbox.settle(message, epoch)
                    else:
                        self.sent_again += self.outbox.take_checked(message) or 0
                self.under_way.clear()
            assert self.outbox.unchecked(ALL) == []
            assert self.server.has == self.recorded
            assert {each.client_session_uuid for each in self.outbox.settled()} == self.recorded
            if not self.lost and not self.former_were_asked:
                assert self.sent_again == 0
        finally:
            self.outbox.close()
            self.folder.cleanup()

    def ask_the_last(self) -> None:
        if uuids := self.outbox.unchecked(2):
            has = [uuid for uuid in uuids if uuid in self.server.has]
            missing = [uuid for uuid in uuids if uuid not in self.server.has]
            self.under_way.append((self.server.epoch, checked(self.server.epoch, has, missing)))


TestLosses = LossMachine.TestCase
TestLosses.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
