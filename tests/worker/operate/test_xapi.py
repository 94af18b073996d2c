"""xAPI: what a learning record store holds after uploads with corrections between them."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from tests.factories import RIGHT, WRONG, at, right, sent, unsure, wrong
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.operate.archive.json_lines import export, import_lines
from worker.operate.archive.xapi import statements
from worker.operate.repair import rebuild
from worker.operate.rescore import rescore
from worker.operate.void import void
from worker.store.audit import By

POLICY = Policy()
BY = By("ops", "the key was wrong")
HOME = "https://study.example"
_VOIDED = "http://adlnet.gov/expapi/verbs/voided"


class RecordStore:
    """A learning record store, as strict as any: it refuses an id that comes back with other
    content, to void what it does not have, and to void twice.
    """

    def __init__(self) -> None:
        self.statements: dict[str, dict[str, Any]] = {}
        self.voided: set[str] = set()

    def take(self, statement: dict[str, Any]) -> bool:
        """Returns whether the statement is new."""
        assert UUID(statement["id"]).version == 5
        known = self.statements.setdefault(statement["id"], statement)
        assert known == statement, "409 Conflict"
        if known is not statement:
            return False
        if statement["verb"]["id"] == _VOIDED:
            target = statement["object"]["id"]
            assert target in self.statements and target not in self.voided
            assert self.statements[target]["verb"]["id"] != _VOIDED
            self.voided.add(target)
        return True

    async def upload(self, engine: AsyncEngine) -> int:
        """Takes an export. Returns the number of new statements."""
        records = [json.loads(line) async for line in export(engine, None)]
        batches = [record for record in records if record["record"] == "batch"]
        return sum(self.take(each) for batch in batches for each in statements(batch, HOME))

    def answers(self) -> list[tuple[str, int, str, str, str]]:
        """What the store tells whoever asks: session, position, key, outcome and time."""
        return sorted(
            (
                each["context"]["registration"],
                each["context"]["extensions"]["urn:study-ingest:position"],
                each["object"]["definition"]["correctResponsesPattern"][0],
                each["result"]["extensions"]["urn:study-ingest:outcome"],
                # PostgreSQL writes no zeros at the end.
                datetime.fromisoformat(each["timestamp"]).astimezone(UTC).isoformat(),
            )
            for each in self.statements.values()
            if each["verb"]["id"] != _VOIDED and each["id"] not in self.voided
        )


async def _on_record(engine: AsyncEngine) -> list[tuple[str, int, str, str, str]]:
    """The attempts that count, in the same form."""
    found = await make.rows(
        engine,
        "SELECT session.client_session_uuid, attempt.* FROM study_question_attempts AS attempt"
        " JOIN study_quiz_sessions AS session ON session.id = attempt.quiz_session_id"
        " WHERE session.voided_at IS NULL",
    )
    return sorted(
        (
            str(row["client_session_uuid"]),
            row["position"],
            str(row["correct_choice"]),
            row["outcome"],
            row["answered_at"].astimezone(UTC).isoformat(),
        )
        for row in found
    )


async def test_two_rescores_with_an_export_between_and_after(engine: AsyncEngine) -> None:
    asked, other = await make.publish(engine, 2, user_id=7)
    await Ingest(engine, POLICY)(
        [sent(right(asked, at(0)), wrong(other, at(0))), sent(unsure(asked, at(1)))]
    )
    store = RecordStore()
    assert await store.upload(engine) == 3

    for key in (WRONG, RIGHT):  # the second goes back to what the key was
        await rescore(engine, asked.question_id, key, POLICY, BY)
        assert await store.upload(engine) == 4, "each of two answers is voided and stated again"
        assert store.answers() == await _on_record(engine)
    assert await store.upload(engine) == 0

    kept = await make.rows(engine, "SELECT replaced FROM study_question_attempts ORDER BY id")
    assert [[each["outcome"] for each in row["replaced"] or ()] for row in kept] == [
        ["correct", "wrong"],
        [],
        ["unsure", "unsure"],
    ]


async def test_a_store_that_saw_nothing_before_the_rescores_takes_all_of_it(
    engine: AsyncEngine,
) -> None:
    (question,) = await make.publish(engine)
    await Ingest(engine, POLICY)([sent(right(question))])
    await rescore(engine, question.question_id, WRONG, POLICY, BY)
    await rescore(engine, question.question_id, RIGHT, POLICY, BY)
    store = RecordStore()
    assert await store.upload(engine) == 5
    assert store.answers() == await _on_record(engine)


async def test_a_time_that_a_rebuild_replaces_is_a_correction_too(engine: AsyncEngine) -> None:
    (question,) = await make.publish(engine)
    await Ingest(engine, POLICY)([sent(right(question, "1970-01-01T00:00:00Z"))])
    # As a worker of 0.1.0 stored it.
    await make.execute(
        engine,
        "UPDATE study_question_attempts SET answered_at = answered_at_sent, time_was = NULL",
    )
    store = RecordStore()
    await store.upload(engine)

    assert (await rebuild(engine, 1, POLICY)).times == 1

    assert await store.upload(engine) == 2
    assert store.answers() == await _on_record(engine)


@pytest.mark.parametrize("exported_between", [True, False])
async def test_a_void_is_final_whatever_is_rescored_after_it(
    engine: AsyncEngine, exported_between: bool
) -> None:
    (question,) = await make.publish(engine)
    uuid = uuid4()
    await Ingest(engine, POLICY)([sent(right(question), uuid=uuid), sent(right(question))])
    await rescore(engine, question.question_id, WRONG, POLICY, BY)
    await void(engine, uuid, POLICY, BY)
    store = RecordStore()
    if exported_between:
        await store.upload(engine)
    await rescore(engine, question.question_id, 3, POLICY, BY)

    await store.upload(engine)

    assert store.answers() == await _on_record(engine) and len(store.answers()) == 1
    await rescore(engine, question.question_id, RIGHT, POLICY, BY)
    assert await store.upload(engine) == 2


async def test_an_import_takes_along_what_was_replaced(
    engine: AsyncEngine, other_engine: AsyncEngine
) -> None:
    (question,) = await make.publish(engine)
    await Ingest(engine, POLICY)([sent(right(question))])
    await rescore(engine, question.question_id, WRONG, POLICY, BY)
    store = RecordStore()
    await store.upload(engine)
    lines = [line async for line in export(engine, None)]
    await import_lines(other_engine, lines, POLICY, BY)
    assert await store.upload(other_engine) == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("rescore"), st.integers(0, 1), st.integers(1, 4)),
        st.tuples(st.just("void"), st.integers(0, 3), st.none()),
        st.tuples(st.just("export"), st.none(), st.none()),
    ),
    min_size=2,
    max_size=10,
)


@given(steps=STEPS)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_whatever_is_corrected_and_exported_a_store_agrees_with_the_record(
    engine: AsyncEngine, steps: list[tuple[str, int, int]]
) -> None:
    questions = await make.publish(engine, 2)
    uuids = [uuid4() for _ in range(4)]
    await Ingest(engine, POLICY)(
        [
            sent(right(questions[n % 2], at(n)), unsure(questions[n // 2], at(n)), uuid=uuid)
            for n, uuid in enumerate(uuids)
        ]
    )
    store = RecordStore()
    for what, which, choice in steps:
        if what == "rescore":
            await rescore(engine, questions[which].question_id, choice, POLICY, BY)
        elif what == "void":
            await void(engine, uuids[which], POLICY, BY)
        else:
            await store.upload(engine)
            assert store.answers() == await _on_record(engine)
    await store.upload(engine)
    assert store.answers() == await _on_record(engine)
    await make.forget(engine)


async def test_the_time_of_a_statement_is_as_it_was_exported_before(engine: AsyncEngine) -> None:
    """With a fraction of a second, too: what is kept reads like what was exported."""
    (question,) = await make.publish(engine)
    times = [at(0) + timedelta(microseconds=n) for n in (0, 1, 100_000, 123_456)]
    await Ingest(engine, POLICY)([sent(*(right(question, each) for each in times))])
    store = RecordStore()
    await store.upload(engine)
    await rescore(engine, question.question_id, WRONG, POLICY, BY)
    assert await store.upload(engine) == 8
