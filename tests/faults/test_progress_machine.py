"""Random sequences of what happens to progress, and to the messages about it: each device ends up
with exactly what is stored.

The devices are those of tests/worker/progress/device.py, and everything between them and the server
may be lost, repeated and reordered, except that a result comes at last. TEST_MACHINE_EXAMPLES=500
tries more than the default.
"""

import asyncio
import json
import os
from collections.abc import Coroutine
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

import asyncpg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import make_url

from schemas import amqp
from tests import factories as make
from tests.factories import Published
from tests.worker.progress.device import Device
from worker.domain.policy import Policy
from worker.domain.records import Change
from worker.ingest.transaction import Ingest
from worker.operate import erase as erasing
from worker.operate.content import change
from worker.operate.repair import rebuild
from worker.operate.rescore import rescore
from worker.operate.void import void
from worker.progress.requests import Request, answer
from worker.settings import Settings
from worker.store.audit import By
from worker.store.engine import make_engine

EXAMPLES: Final = int(os.environ.get("TEST_MACHINE_EXAMPLES", "12"))
STEPS: Final = 25
USERS: Final = (1, 2)
BY: Final = By("tests", "")
DEVICES: Final = {"phone": (1,), "tablet": (1, 2), "laptop": (2,)}
"""The users of each device."""
T = TypeVar("T")

users = st.sampled_from(USERS)
devices = st.sampled_from(sorted(DEVICES))
numbers = st.integers(0, 3)


class ProgressMachine(RuleBasedStateMachine):
    """One database for each run, a copy of the one that is given, and a loop of its own."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.origin = make_url(url)
        self.made: list[str] = []
        self.devices = {name: Device() for name in DEVICES}
        self.under_way: dict[str, list[tuple[str, str]]] = {name: [] for name in DEVICES}
        """(type, body) of the messages for each device, in the order in which they were sent."""
        self.questions: dict[int, list[Published]] = {}
        self.batches: list[UUID] = []
        self.told = 0
        """Results of the outbox that are under way already."""
        self.use(self.copy(str(self.origin.database)))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def copy(self, database: str) -> str:
        """A copy of the database, to which nobody is connected."""
        name = f"test_{uuid4().hex[:16]}"

        async def make_it() -> None:
            url = self.origin.set(drivername="postgresql", database="postgres")
            server = await asyncpg.connect(url.render_as_string(hide_password=False))
            await server.execute(f"CREATE DATABASE {name} TEMPLATE {database}")
            await server.close()

        self.do(make_it())
        self.made.append(name)
        return name

    def use(self, database: str) -> None:
        self.database = database
        url = self.origin.set(database=database).render_as_string(hide_password=False)
        given = Settings(database_url=url, amqp_url="amqp://unused")  # type: ignore[arg-type]
        self.engine = make_engine(given, connections=4, name="tests")
        self.ingest = Ingest(self.engine, Policy(), on_change=self.nudge)

    def teardown(self) -> None:
        try:
            if self.questions:
                self.all_is_quiet()
        finally:
            self.do(self.engine.dispose())
            for name in self.made:
                self.do(self.drop(name))
            self.runner.close()

    async def drop(self, name: str) -> None:
        url = self.origin.set(drivername="postgresql", database="postgres")
        server = await asyncpg.connect(url.render_as_string(hide_password=False))
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await server.close()

    @initialize()
    def content(self) -> None:
        async def prepare() -> None:
            for user_id in USERS:
                self.questions[user_id] = await make.publish(self.engine, 4, user_id=user_id)
            for name, mine in DEVICES.items():
                for user_id in mine:
                    await make.grant(self.engine, name, user_id)

        self.do(prepare())

    # What learners and operators do.

    @rule(device=devices, data=st.data())
    def answer(self, device: str, data: st.DataObject) -> None:
        self.answered(device, data)

    def answered(self, device: str, data: st.DataObject) -> None:
        user_id = data.draw(st.sampled_from(DEVICES[device]))
        # Without a time it is the time of receipt, which is after an erasure.
        days = st.none() | st.integers(0, 5)
        drawn = data.draw(st.lists(st.tuples(numbers, days, st.booleans()), min_size=1, max_size=4))
        attempts = [
            (make.right if is_right else make.wrong)(
                self.questions[user_id][number], None if day is None else make.at(day)
            )
            for number, day, is_right in drawn
        ]
        sent = make.sent(*attempts, viewer=device)
        assert sent.client_session_uuid is not None
        self.do(self.ingest([sent]))
        self.batches.append(sent.client_session_uuid)
        self.tell_results()

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        uuid = data.draw(st.sampled_from(self.batches))
        self.do(self._void(uuid))
        self.tell_results()

    async def _void(self, uuid: UUID) -> None:
        there = "SELECT id FROM study_quiz_sessions WHERE client_session_uuid = :uuid"
        if await make.rows(self.engine, there, uuid=uuid):
            await void(self.engine, uuid, Policy(), BY)

    @rule(user_id=users, number=numbers, choice=st.integers(1, 2))
    def rescore(self, user_id: int, number: int, choice: int) -> None:
        question = self.questions[user_id][number]
        self.do(rescore(self.engine, question.question_id, choice, Policy(), BY))
        self.tell_results()

    @rule(user_id=users, device=devices)
    def erase(self, user_id: int, device: str) -> None:
        """A device had everything before."""
        self.sync(device)

        async def work() -> None:
            survey = await erasing.survey(self.engine, user_id, lambda *_: None)
            await erasing.erase(self.engine, user_id, survey, BY)

        self.do(work())
        self.tell_results()

    @rule(user_id=users)
    def rebuild(self, user_id: int) -> None:
        sql = "UPDATE study_question_progress SET stability = stability + 1 WHERE user_id = :user"
        self.do(make.execute(self.engine, sql, user=user_id))
        self.do(rebuild(self.engine, user_id, Policy()))

    @rule(user_id=users, number=numbers, withdrawn=st.booleans())
    def withdraw_or_publish(self, user_id: int, number: int, withdrawn: bool) -> None:
        pub_id = self.questions[user_id][number].pub_id
        self.do(change.set_withdrawn(self.engine, [pub_id], BY, withdrawn=withdrawn))

    @rule(device=devices, data=st.data(), before=st.integers(0, 2), after=st.integers(0, 3))
    def restore(self, device: str, data: st.DataObject, before: int, after: int) -> None:
        """The database is as it was before some batches, and others come."""
        self.do(self.engine.dispose())
        saved = self.copy(self.database)
        self.use(self.database)
        for _ in range(before):
            self.answered(device, data)
            self.sync(device)
        self.do(self.engine.dispose())
        self.use(saved)
        self.told = self.do(make.count(self.engine, "outbox"))
        for _ in range(after):
            self.answered(device, data)

    # What happens to messages.

    def nudge(self, changes: Any) -> None:
        each: Change
        for each in changes:
            mark = {"user_id": str(each.user_id), **each.mark._asdict()}
            for name, mine in DEVICES.items():
                if each.user_id in mine and name != each.viewer:
                    self.under_way[name].append((amqp.PROGRESS_NUDGE_TYPE, json.dumps(mark)))

    def tell_results(self) -> None:
        waiting = self.do(make.outbox(self.engine))
        for row in waiting[self.told :]:
            if row["type"] == amqp.INGEST_RESULT_TYPE:
                name = row["routing_key"].removeprefix("result.")
                self.under_way[name].append((row["type"], row["body"]))
        self.told = len(waiting)

    @rule(device=devices, data=st.data(), in_a_page=st.integers(1, 3), pages=st.integers(1, 3))
    def ask(self, device: str, data: st.DataObject, in_a_page: int, pages: int) -> None:
        wants = sorted(self.devices[device].asks) or [str(each) for each in DEVICES[device]]
        user_id = data.draw(st.sampled_from(wants))
        self.asked(device, user_id, in_a_page, pages)

    @rule(device=devices)
    def sync(self, device: str) -> None:
        """A device asks for everything, and nothing is lost."""
        for user_id in map(str, DEVICES[device]):
            self.devices[device].asks.add(user_id)
            for _ in range(100):
                if user_id not in self.devices[device].asks:
                    break
                self.asked(device, user_id, 1, 2)
                self.deliver_all(device)
            assert user_id not in self.devices[device].asks

    def asked(self, device: str, user_id: str, in_a_page: int, pages: int) -> None:
        request = self.devices[device].request(user_id)
        told = self.do(
            answer(
                self.engine,
                Request(device, None, int(request["user_id"]), request["cursor"]),
                lambda viewer, user_id: None,
                in_a_page=in_a_page,
                in_an_answer=in_a_page * pages,
            )
        )
        for message in told:
            assert message.properties.message_type == amqp.PROGRESS_PAGE_TYPE
            body = message.body.decode()
            self.under_way[device].append((amqp.PROGRESS_PAGE_TYPE, body))

    @rule(device=devices, data=st.data(), repeated=st.booleans())
    def deliver(self, device: str, data: st.DataObject, repeated: bool) -> None:
        """Any message that is under way, perhaps again."""
        waiting = self.under_way[device]
        if waiting:
            place = data.draw(st.integers(0, len(waiting) - 1))
            self.delivered(device, *waiting[place])
            if not repeated:
                del waiting[place]

    @rule(device=devices)
    def deliver_all(self, device: str) -> None:
        waiting, self.under_way[device] = self.under_way[device], []
        for each in waiting:
            self.delivered(device, *each)

    @rule(device=devices, count=st.integers(1, 6))
    def lose(self, device: str, count: int) -> None:
        """The oldest messages, but no results."""
        waiting = self.under_way[device]
        self.under_way[device] = [
            each
            for place, each in enumerate(waiting)
            if place >= count or each[0] == amqp.INGEST_RESULT_TYPE
        ]

    def delivered(self, device: str, message_type: str, body: str) -> None:
        match message_type:
            case amqp.PROGRESS_PAGE_TYPE:
                self.devices[device].page(body)
            case amqp.PROGRESS_NUDGE_TYPE:
                self.devices[device].mark(json.loads(body))
            case _:
                self.devices[device].result(body)

    # What must be so at last.

    @rule()
    def all_is_quiet(self) -> None:
        for name in DEVICES:
            self.deliver_all(name)
            self.sync(name)
        for user_id in USERS:
            must = self.do(self.stored(user_id))
            for name, mine in DEVICES.items():
                if user_id in mine:
                    held = self.devices[name].of(str(user_id))
                    assert held.questions == must, name
                    due = {i: each["due_at"] for each in must.values() for i in each["pub_ids"]}
                    for pub_id, (_, due_at) in held.times.items():
                        assert due.get(pub_id, due_at) == due_at

    async def stored(self, user_id: int) -> dict[str, Any]:
        """The user's progress as the database has it, in the words of the wire."""
        found = await make.rows(
            self.engine,
            "SELECT progress.*, (SELECT array_agg(pub_id ORDER BY pub_id) FROM published"
            " WHERE source_id = study_question_id AND NOT deleted) AS pub_ids"
            " FROM study_question_progress AS progress WHERE user_id = :user",
            user=user_id,
        )
        return {
            str(row["study_question_id"]): {
                "question_id": str(row["study_question_id"]),
                "pub_ids": row["pub_ids"] or [],
                "version": row["version"],
                "last_answered_at": _text(row["last_answered_at"]),
                "last_outcome": row["last_outcome"],
                "stability": row["stability"],
                "interval_days": round((row["due_at"] - row["last_answered_at"]).days),
                "due_at": _text(row["due_at"]),
                "correct": row["correct_count"],
                "wrong": row["wrong_count"],
                "unsure": row["unsure_count"],
                "pattern": row["pattern"],
            }
            for row in found
        }


def _text(at: Any) -> str:
    return str(at.isoformat()).replace("+00:00", "Z")


def test_each_device_ends_up_with_what_is_stored(database_url: str) -> None:
    run_state_machine_as_test(
        lambda: ProgressMachine(database_url),  # type: ignore[arg-type]  # any factory will do
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
