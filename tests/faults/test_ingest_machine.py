"""Random sequences of operations on the ingest transaction: the tables always agree with a model.

TEST_MACHINE_EXAMPLES=500 tries more than the default.
"""

import asyncio
import json
import math
import os
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from chaos.expected import digest
from schemas.attempt_batch import AttemptBatch
from tests import factories as make
from tests.faults.model import Model, Said, as_said
from worker.domain.dispositions import Busy, Disposition, Rejected
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest, transact
from worker.operate.repair import rebuild
from worker.operate.void import void
from worker.settings import Settings
from worker.store.audit import By
from worker.store.engine import make_engine, transaction

EXAMPLES: Final = int(os.environ.get("TEST_MACHINE_EXAMPLES", "12"))
STEPS: Final = 14
USERS: Final = (1, 2)
T = TypeVar("T")

# Few of each, so that things meet.
uuids = st.integers(1, 8).map(lambda number: UUID(int=number))
new_uuids = st.integers(1, 80).map(lambda number: UUID(int=number))
questions = st.tuples(st.sampled_from(USERS), st.integers(0, 2))
times = st.one_of(
    st.integers(0, 4).map(lambda hours: make.at(hours=hours).isoformat()),
    st.sampled_from([None, "yesterday", "2999-01-01T00:00:00Z", "2024-03-04T10:00:00"]),
)
answers = st.fixed_dictionaries(
    {
        "selected_choice": st.sampled_from([make.RIGHT, make.RIGHT, make.WRONG, None]),
        "is_unsure": st.sampled_from([False, False, True]),
        "answered_at": times,
    }
)
attempts = st.lists(st.tuples(questions, answers), min_size=1, max_size=5)
whose = st.sampled_from([*USERS, *USERS, *USERS, None])
"""Whose questions a batch is about; None: whoever's, perhaps nobody's."""


class IngestMachine(RuleBasedStateMachine):
    """One database, emptied for each run; a loop of its own."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.engine = make_engine(
            Settings(database_url=url, amqp_url="amqp://unused"),  # type: ignore[arg-type]
            connections=6,
            name="tests",
        )
        self.ingest = Ingest(self.engine, Policy())
        self.model = Model()
        self.sent: dict[UUID, dict[str, Any]] = {}

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.do(self.engine.dispose())
        self.runner.close()

    @initialize()
    def an_empty_log(self) -> None:
        async def prepare() -> None:
            await make.forget(self.engine)
            for table in ("published", "study_questions", "study_topics"):
                await make.execute(self.engine, f"DELETE FROM {table}")
            for user_id in USERS:
                for topic, count in ((1, 2), (2, 1)):
                    topic_id = user_id * 10 + topic
                    await make.execute(
                        self.engine,
                        "INSERT INTO study_topics (id, user_id) OVERRIDING SYSTEM VALUE"
                        " VALUES (:id, :user_id)",
                        id=topic_id,
                        user_id=user_id,
                    )
                    for question in await make.publish(
                        self.engine, count, user_id=user_id, topic_id=topic_id
                    ):
                        self.model.published[question.pub_id] = {
                            "id": question.question_id,
                            "user_id": user_id,
                            "topic_id": topic_id,
                            "correct_choice": make.RIGHT,
                            "withdrawn": False,
                            "deleted": False,
                        }

        self.do(prepare())

    # What viewers, workers and operators do.

    @rule(drawn=st.lists(st.tuples(uuids, attempts, whose), min_size=1, max_size=3))
    def deliver(self, drawn: list[Any]) -> None:
        """A group of batches; a uuid that was used may come with other content."""
        self.delivered([self.body(*each) for each in drawn])

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        """The broker hands out again what it had handed out."""
        some = st.sampled_from(sorted(self.sent))
        again = data.draw(st.lists(some, min_size=1, max_size=3))
        self.delivered([self.sent[uuid] for uuid in again])

    @rule(
        first=st.tuples(new_uuids, attempts, whose),
        again=st.booleans(),
        commits=st.booleans(),
        second=st.tuples(new_uuids, attempts, whose),
    )
    def two_at_once(self, first: Any, second: Any, again: bool, commits: bool) -> None:
        """One transaction is open, all its work done, when another begins."""
        one = self.body(*first)
        other = one if again else self.body(*second)

        async def both() -> tuple[list[Disposition], list[Disposition | Busy], bool]:
            done: list[Disposition] = []
            is_before = False
            try:
                async with transaction(self.engine) as connection:
                    alone = await transact(connection, {0: _incoming(one)}, Policy())
                    done = [alone[0]]
                    late = asyncio.create_task(self.ingest([_incoming(other)]))
                    await _done_or_blocked(self.engine, late)
                    # Refused without waiting: it looked when the first was not there yet. What
                    # was not refused and did not wait shares nothing with the first.
                    is_before = late.done() and isinstance(late.result()[0], Rejected)
                    if not commits:
                        raise _Dies
            except _Dies:
                done = []
            return done, await late, is_before

        done, late, is_before = self.do(both())
        received = self.do(self.received())
        if commits and not is_before:
            self.agrees([one], done, received)
        begun = len(self.model.outbox)
        self.agrees([other], late, received)
        if commits and is_before:
            # Decided before the first, and written after it.
            said = self.model.outbox[begun:]
            del self.model.outbox[begun:]
            self.agrees([one], done, received)
            self.model.outbox += said

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        """An operator voids a batch, perhaps a second time."""
        if self.model.inbox:
            uuid = data.draw(st.sampled_from(sorted(self.model.inbox)))
            self.do(void(self.engine, uuid, Policy(), By("ops", "a child")))
            self.model.void(uuid)

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """A publication is taken back, or put back."""
        pub_id = data.draw(st.sampled_from(sorted(self.model.published)))
        row = self.model.published[pub_id]
        row["withdrawn"] = not row["withdrawn"]
        sql = "UPDATE published SET deleted = :deleted WHERE pub_id = :pub_id"
        self.do(make.execute(self.engine, sql, deleted=row["withdrawn"], pub_id=pub_id))

    @rule(data=st.data())
    def delete_question(self, data: st.DataObject) -> None:
        """A question is deleted, or restored."""
        pub_id = data.draw(st.sampled_from(sorted(self.model.published)))
        row = self.model.published[pub_id]
        row["deleted"] = not row["deleted"]
        sql = "UPDATE study_questions SET deleted_at = CASE WHEN :deleted THEN now() END"
        sql += " WHERE id = :id"
        self.do(make.execute(self.engine, sql, deleted=row["deleted"], id=row["id"]))

    @rule(user_id=st.sampled_from(USERS))
    def rebuild(self, user_id: int) -> None:
        """There is nothing to mend."""
        assert self.do(rebuild(self.engine, user_id, Policy())) == (0, 0)

    @rule(user_id=st.sampled_from(USERS))
    def rebuild_what_was_spoilt(self, user_id: int) -> None:
        """Every figure comes back from the log."""
        sql = "UPDATE study_question_progress SET stability = stability + 1, pattern = 'leech',"
        sql += " due_at = due_at - interval '1 day' WHERE user_id = :user_id"
        self.do(make.execute(self.engine, sql, user_id=user_id))
        spoilt = sum(user == user_id for user, _ in self.model.replay.histories)
        assert self.do(rebuild(self.engine, user_id, Policy())).progress == spoilt

    @rule()
    def relay(self) -> None:
        """What waits has left: it can't be taken back any more."""
        self.do(make.execute(self.engine, "DELETE FROM outbox"))
        self.model.relay()

    # What must be so after each.

    @invariant()
    def the_tables_agree(self) -> None:
        self.do(self.compared())

    async def compared(self) -> None:
        inbox = await make.rows(self.engine, "SELECT * FROM ingest_inbox")
        assert {row["client_session_uuid"] for row in inbox} == self.model.inbox.keys()
        for row in inbox:
            kept = self.model.inbox[row["client_session_uuid"]]
            assert row["content_digest"] == kept.verdict.digest
            assert row["user_id"] == kept.verdict.user_id
            assert as_said("result", row["summary"], {})[1] == kept.told

        sessions = {
            (row["client_session_uuid"], row["study_topic_id"]): row
            for row in await make.rows(
                self.engine,
                "SELECT *, voided_at IS NOT NULL AS is_voided FROM study_quiz_sessions",
            )
        }
        same(sessions, dict(self.model.sessions()))
        stored = await make.rows(
            self.engine,
            "SELECT attempt.*, client_session_uuid AS uuid FROM study_question_attempts AS attempt"
            " JOIN study_quiz_sessions AS session ON session.id = quiz_session_id",
        )
        same({(row["uuid"], row["position"]): row for row in stored}, dict(self.model.attempts()))
        same(await make.progress(self.engine), self.model.progress())

        batch_of = {str(row["id"]): uuid for (uuid, _), row in sessions.items()}
        outbox = [
            as_said(row["routing_key"], json.loads(row["body"]), batch_of)
            for row in await make.outbox(self.engine)
        ]
        results = [each for each in outbox if each[0].startswith("result.")]
        assert results == [each for each in self.model.outbox if each[0].startswith("result.")]
        assert sorted(map(plain, outbox)) == sorted(map(plain, self.model.outbox))

    # How it is done.

    def body(self, uuid: UUID, drawn: list[Any], user_id: int | None) -> dict[str, Any]:
        """A batch as drawn; about one user's questions where one is given."""
        of = {
            user: [p for p, row in self.model.published.items() if row["user_id"] == user]
            for user in USERS
        }
        batch = AttemptBatch.model_validate(
            {
                "client_session_uuid": str(uuid),
                "attempts": [
                    {"question_pub_id": of[user_id or user][number]} | answer
                    for (user, number), answer in drawn
                ],
            }
        )
        body = batch.model_dump(mode="json")
        assert digest(body) == batch.digest()
        self.sent.setdefault(uuid, body)
        return body

    def delivered(self, bodies: list[dict[str, Any]]) -> None:
        dispositions = self.do(self.ingest([_incoming(body) for body in bodies]))
        self.agrees(bodies, dispositions, self.do(self.received()))

    def agrees(
        self,
        bodies: list[dict[str, Any]],
        dispositions: Sequence[Disposition | Busy],
        received: Any,
    ) -> None:
        """Each was disposed of as the model says."""
        musts = self.model.deliver(bodies, received)
        for must, disposition in zip(musts, dispositions, strict=True):
            if isinstance(disposition, Rejected):
                assert str(disposition.reason) == must
            else:
                assert type(disposition).__name__.lower() == must

    async def received(self) -> dict[UUID, Any]:
        sql = "SELECT client_session_uuid AS uuid, received_at FROM ingest_inbox"
        return {row["uuid"]: row["received_at"] for row in await make.rows(self.engine, sql)}


class _Dies(Exception):
    """Rolls a transaction back."""


def _incoming(body: dict[str, Any]) -> Any:
    return make.incoming(AttemptBatch.model_validate(body))


async def _done_or_blocked(engine: AsyncEngine, late: asyncio.Task[Any]) -> None:
    """Waits until `late` has ended, or waits for the other transaction."""
    waiting = asyncio.create_task(make.blocked(engine, 1))
    try:
        await asyncio.wait([late, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


def plain(said: Said) -> str:
    """For comparing, whatever the order."""
    return json.dumps(said, sort_keys=True, default=str)


def same(rows: dict[Any, Any], must: dict[Any, Any]) -> None:
    """The rows are those, in every column that the model has."""
    assert rows.keys() == must.keys()
    for key, columns in must.items():
        for name, value in columns.items():
            found = rows[key][name]
            if isinstance(value, float):
                assert math.isclose(found, value, rel_tol=1e-9), (key, name)
            else:
                assert found == value, (key, name)


def test_the_tables_agree_with_the_model(database_url: str) -> None:
    run_state_machine_as_test(
        lambda: IngestMachine(database_url),  # type: ignore[arg-type]  # any factory will do
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
