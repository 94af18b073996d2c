"""Random sequences of operations on the outbox: it always agrees with a dictionary."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from study_viewer import Outbox, State, UuidReused
from study_viewer.schemas.words import Status
from tests.study_viewer.support import make_batch, make_result

uuids = st.integers(1, 6).map(lambda number: UUID(int=number))
choices = st.integers(0, 1)

NEVER = 10.0**6
"""Seconds after which a confirmed batch would be due again."""


@dataclass
class Model:
    choice: int
    state: State = State.PENDING
    status: Status | None = None


class OutboxMachine(RuleBasedStateMachine):
    """The model is an ordered dictionary: recorded order, state, and the result that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "viewer.db"
        self.outbox = Outbox(self.path, resend_window=timedelta())
        self.model: dict[UUID, Model] = {}

    def teardown(self) -> None:
        self.outbox.close()
        self.folder.cleanup()

    @rule(uuid=uuids, choice=choices, commit=st.booleans())
    def record(self, uuid: UUID, choice: int, commit: bool) -> None:
        known = self.model.get(uuid)
        with closing(sqlite3.connect(self.path)) as connection:
            try:
                new = self.outbox.record(connection, make_batch(uuid, choice))
            except UuidReused:
                assert known is not None
                assert known.choice != choice
                return
            assert new == (known is None)
            assert known is None or known.choice == choice
            if commit:
                connection.commit()
                self.model.setdefault(uuid, Model(choice))
            else:
                connection.rollback()

    @rule(problem=st.none() | st.just("the queue is full"))
    def publish(self, problem: str | None) -> None:
        entry = self.outbox.next_due(NEVER, NEVER)
        if entry is None:
            return
        if problem is None:
            self.outbox.confirm(entry.client_session_uuid)
            self.model[entry.client_session_uuid].state = State.CONFIRMED
        else:
            self.outbox.note_problem(entry.client_session_uuid, problem)

    @rule(uuid=uuids)
    def confirm_late(self, uuid: UUID) -> None:
        self.outbox.confirm(uuid)
        if uuid in self.model and self.model[uuid].state is State.PENDING:
            self.model[uuid].state = State.CONFIRMED

    @rule(uuid=uuids, status=st.sampled_from(Status))
    def settle(self, uuid: UUID, status: Status) -> None:
        assert self.outbox.settle(make_result(uuid, status)) == (uuid in self.model)
        if uuid in self.model:
            known = self.model[uuid]
            known.state = State.SETTLED
            if known.status is None or status is not Status.REJECTED:
                known.status = status

    @rule()
    def prune(self) -> None:
        gone = [uuid for uuid, known in self.model.items() if known.state is State.SETTLED]
        assert self.outbox.prune(timedelta(seconds=-1)) == len(gone)
        for uuid in gone:
            del self.model[uuid]

    @rule()
    def reopen(self) -> None:
        self.outbox.close()
        self.outbox = Outbox(self.path, resend_window=timedelta())

    @invariant()
    def the_outbox_agrees(self) -> None:
        def in_states(*states: State) -> list[UUID]:
            return [uuid for uuid, known in self.model.items() if known.state in states]

        pending = self.outbox.pending()
        assert [entry.client_session_uuid for entry in pending] == in_states(State.PENDING)
        unsettled = [entry.client_session_uuid for entry in self.outbox.unsettled()]
        assert unsettled == in_states(State.PENDING, State.CONFIRMED)
        assert {entry.client_session_uuid for entry in self.outbox.settled()} == set(
            in_states(State.SETTLED)
        )
        for uuid, known in self.model.items():
            entry = self.outbox.get(uuid)
            assert entry is not None
            assert entry.state is known.state
            assert entry.batch == make_batch(uuid, known.choice)
            assert (entry.result and entry.result.status) == known.status
            assert (entry.settled_at is None) == (known.state is not State.SETTLED)
        due = self.outbox.next_due(NEVER, NEVER)
        assert (due and due.client_session_uuid) == next(iter(in_states(State.PENDING)), None)


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
