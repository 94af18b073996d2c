"""Any interleaving of changes, requests, pages, results and losses: once all is quiet and each
device has asked, each holds exactly the server's progress.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID, uuid4

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from study_viewer import Outbox
from study_viewer.schemas.attempt_batch import Attempt, AttemptBatch
from study_viewer.schemas.ingest_result import IngestResult
from study_viewer.schemas.progress import ProgressPage, ProgressRequest
from study_viewer.schemas.words import Next
from tests.study_viewer.progress_server import BEGIN, Server

USERS = (1, 2)
LATER = BEGIN + timedelta(days=1_000)

users = st.sampled_from(USERS)
devices = st.integers(0, 3)
numbers = st.sets(st.integers(1, 5), min_size=1, max_size=4)
dues = st.integers(1, 30).map(lambda days: timedelta(days=days))


class Device:
    """A file of its own, with what is on its way to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{uuid4()}.db"
        self.outbox = Outbox(self.path)
        # Nothing loses power here.
        self.outbox._connection.execute("PRAGMA synchronous = OFF")
        self.coming: list[ProgressPage | IngestResult] = []

    def reopen(self) -> None:
        self.outbox.close()
        self.outbox = Outbox(self.path)

    def take(self, told: ProgressPage | IngestResult) -> None:
        if isinstance(told, ProgressPage):
            self.outbox.progress.apply(told)
        else:
            self.outbox.settle(told)

    def record(self, user: int, questions: set[int]) -> UUID:
        answers = tuple(
            Attempt(question_pub_id=f"q-{number}", selected_choice=1, answered_at=BEGIN.isoformat())
            for number in questions
        )
        batch = AttemptBatch(client_session_uuid=uuid4(), attempts=answers)
        with closing(sqlite3.connect(self.path)) as connection, connection:
            self.outbox.record(connection, batch)
        return batch.client_session_uuid


class ProgressMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.server = Server(len(USERS))
        self.devices: list[Device] = []
        self.snapshot = self.server.snapshot()

    @initialize(count=st.integers(2, 4))
    def begin(self, count: int) -> None:
        """Each user has a history, and the first device knows it."""
        self.devices = [Device(Path(self.folder.name)) for _ in range(count)]
        for user in USERS:
            for number in range(1, 5):
                self.server.change(user, {number}, timedelta(days=number))
            self._ask_until_current(self.devices[0], user)
        self.snapshot = self.server.snapshot()

    def teardown(self) -> None:
        try:
            self._all_ask_and_agree()
        finally:
            for device in self.devices:
                device.outbox.close()
            self.folder.cleanup()

    def device(self, number: int) -> Device:
        return self.devices[number % len(self.devices)]

    @rule(user=users, number=devices, questions=numbers, due=dues)
    def batch(self, user: int, number: int, questions: set[int], due: timedelta) -> None:
        device = self.device(number)
        uuid = device.record(user, questions)
        self.server.change(user, questions, due)
        device.coming.append(self.server.result(user, uuid, questions))

    @rule(user=users, questions=numbers, due=dues)
    def correction(self, user: int, questions: set[int], due: timedelta) -> None:
        self.server.change(user, questions, due)

    @rule(user=users, question=st.integers(1, 5))
    def void(self, user: int, question: int) -> None:
        self.server.forget(user, question)

    @rule(user=users, question=st.integers(1, 5), ids=st.sets(st.integers(1, 3)))
    def publish(self, user: int, question: int, ids: set[int]) -> None:
        pub_ids = tuple(f"q-{question}" if n == 1 else f"q-{question}-{n}" for n in sorted(ids))
        self.server.republish(user, question, pub_ids)

    @rule(user=users)
    def erase(self, user: int) -> None:
        self.server.erase(user, BEGIN + timedelta(days=1))

    @rule()
    def back_up(self) -> None:
        self.snapshot = self.server.snapshot()

    @rule()
    def restore(self) -> None:
        self.server.restore(self.snapshot)

    @rule(user=users, number=devices)
    def ask(self, user: int, number: int) -> None:
        device = self.device(number)
        cursor = device.outbox.progress.cursor(user)
        request = ProgressRequest(user_id=str(user), cursor=cursor)
        device.coming += self.server.answer(request)

    @rule(
        user=users,
        number=devices,
        order=st.lists(st.integers(0, 4), min_size=1, max_size=7),
        comes_late=st.booleans(),
    )
    def ask_over_a_bad_network(
        self, user: int, number: int, order: list[int], comes_late: bool
    ) -> None:
        """Pages are lost, repeated and out of order, and the first may come long after."""
        device = self.device(number)
        cursor = device.outbox.progress.cursor(user)
        pages = self.server.answer(ProgressRequest(user_id=str(user), cursor=cursor))
        for place in order:
            device.take(pages[place % len(pages)])
        if comes_late:
            device.coming.append(pages[0])

    @rule(number=devices, place=st.integers(0, 50), repeated=st.booleans())
    def arrives(self, number: int, place: int, repeated: bool) -> None:
        """In any order, and more than once."""
        device = self.device(number)
        if device.coming:
            place %= len(device.coming)
            device.take(device.coming[place] if repeated else device.coming.pop(place))

    @rule(number=devices)
    def all_arrives(self, number: int) -> None:
        device = self.device(number)
        while device.coming:
            device.take(device.coming.pop(0))

    @rule(number=devices, place=st.integers(0, 50))
    def is_lost(self, number: int, place: int) -> None:
        """Only what is not a result, which waits in a durable queue."""
        device = self.device(number)
        pages = [each for each in device.coming if isinstance(each, ProgressPage)]
        if pages:
            device.coming.remove(pages[place % len(pages)])

    @rule(number=devices)
    def reopen(self, number: int) -> None:
        self.device(number).reopen()

    def _all_ask_and_agree(self) -> None:
        for device in self.devices:
            for told in device.coming:
                device.take(told)
            for user in USERS:
                self._ask_until_current(device, user)
                history = self.server.users[user]
                held = {each.question_id: each for each in device.outbox.progress.all(user)}
                assert held.keys() == history.questions.keys()
                for number, stored in history.questions.items():
                    assert _same(held[number], stored)
                assert {each.user_id for each in device.outbox.due(LATER, user)} <= {user}
                due = {each.pub_ids: each.due_at for each in device.outbox.due(LATER, user)}
                assert due == {
                    each.pub_ids: each.due_at for each in history.questions.values() if each.pub_ids
                }

    def _ask_until_current(self, device: Device, user: int) -> None:
        progress = device.outbox.progress
        for _ in range(2):
            request = ProgressRequest(user_id=str(user), cursor=progress.cursor(user))
            pages = self.server.answer(request)
            assert all(progress.apply(page) for page in pages)
            assert pages[-1].next is Next.NOTHING
        assert not self.server.users[user].version or not progress.lacks(self.server.mark(user))


def _same(held: object, stored: object) -> bool:
    get: Callable[[object, str], object] = getattr
    fields = (
        *("pub_ids", "version", "last_answered_at", "last_outcome", "stability", "interval_days"),
        *("due_at", "correct", "wrong", "unsure", "pattern"),
    )
    return all(get(held, name) == get(stored, name) for name in fields)


TestProgress = ProgressMachine.TestCase
TestProgress.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
