"""Export and import: the same log, the same progress; xAPI as its specification has it."""

import asyncio
import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from typer.testing import CliRunner

from tests import factories as make
from tests.factories import WRONG, at, no_answer, right, sent, unsure, wrong
from worker.cli.main import app
from worker.domain.dispositions import Ingested
from worker.domain.policy import Policy
from worker.errors import IngestError
from worker.ingest.transaction import Ingest
from worker.operate.archive import json_lines
from worker.operate.archive.json_lines import Imported, export, import_lines
from worker.operate.archive.xapi import statements
from worker.operate.repair import verify
from worker.operate.rescore import rescore
from worker.operate.void import void
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate.erase import erase

POLICY = Policy()
BY = By("ops", "moving")


async def _lines(engine: AsyncEngine, user_id: int | None = None) -> list[str]:
    return [line async for line in export(engine, user_id)]


async def _import(engine: AsyncEngine, lines: list[str]) -> Imported:
    return await import_lines(engine, lines, POLICY, BY)


async def _all(engine: AsyncEngine, user_id: int | None = None) -> dict[str, list[object]]:
    """Everything that an import must bring back, to the microsecond."""
    of_user = "" if user_id is None else f" WHERE user_id = {user_id}"
    queries = {
        "inbox": f"SELECT * FROM ingest_inbox{of_user} ORDER BY client_session_uuid",
        "sessions": f"SELECT * FROM study_quiz_sessions{of_user} ORDER BY id",
        "attempts": f"SELECT * FROM study_question_attempts{of_user}"
        " ORDER BY quiz_session_id, position",
        "progress": f"SELECT * FROM study_question_progress{of_user}"
        " ORDER BY user_id, study_question_id",
    }
    found: dict[str, list[object]] = {}
    for name, query in queries.items():
        rows = await make.rows(engine, query)
        drawn = {"attempts": "id", "progress": "version"}.get(name)
        rows = [{key: row[key] for key in row if key != drawn} for row in rows]
        found[name] = [*rows]
    return found


async def _a_life(engine: AsyncEngine) -> None:
    """Two users' sessions with all that may befall them."""
    ingest = Ingest(engine, POLICY)
    mine = await make.publish(engine, 3, user_id=7)
    more = await make.publish(engine, 2, user_id=7)
    yours = await make.publish(engine, 2, user_id=8)
    gone = await make.publish(engine, 1, user_id=9)
    uuid = uuid4()
    await ingest(
        [
            sent(right(mine[0], at(0)), wrong(more[0], at(0)), no_answer(mine[1])),
            sent(*(wrong(each, at(1, minutes=n)) for n, each in enumerate(mine)), uuid=uuid),
            sent(unsure(mine[2], None), right(more[1], "no time at all"), viewer=None),
            sent(right(mine[0], at(-3)), right(yours[0], at(2))),
            sent(right(yours[0], at(0)), unsure(yours[1], at(1), WRONG), viewer="tablet"),
            sent(wrong(gone[0], at(0))),
            sent(right(mine[0], at(0.5)), right(mine[0], at(0.5))),
        ]
    )
    await void(engine, uuid, POLICY, BY)
    await rescore(engine, yours[0].question_id, WRONG, POLICY, BY)
    async with transaction(engine) as connection:
        await erase(connection, 9, [])


async def test_an_export_imported_into_an_empty_database_gives_the_same(
    engine: AsyncEngine, other_engine: AsyncEngine
) -> None:
    await _a_life(engine)

    done = await _import(other_engine, await _lines(engine))

    assert (done.batches, done.known, done.users) == (6, 0, {7, 8})
    assert await _all(other_engine) == await _all(engine)
    for user_id in await make.users(other_engine):
        assert await verify(other_engine, user_id, POLICY) == []
    # The study application has not published there yet.
    lines = [json.loads(line) for line in await _lines(engine)]
    for line in lines:
        if line["record"] == "question":
            line["pub_ids"] = []
    assert [json.loads(line) for line in await _lines(other_engine)] == lines


@pytest.mark.parametrize(
    ("here", "problem"),
    [
        ("UPDATE study_topics SET user_id = 8", "Topic 1 is another owner's topic"),
        ("UPDATE study_questions SET user_id = 8", "Question 1 .* is another question"),
        ("UPDATE published SET pub_id = 'another'", "Question 1 .* is another question"),
        (
            "UPDATE published SET source_id = 77",
            "'mine' is published as question 1 in the export, and as question 77 in this",
        ),
        ("UPDATE published SET pub_id = 'second' WHERE pub_id = 'mine'", None),
        ("UPDATE study_questions SET correct_choice = 2, deleted_at = now()", None),
    ],
)
async def test_an_import_refuses_ids_that_stand_for_other_content(
    engine: AsyncEngine, other_engine: AsyncEngine, here: str, problem: str | None
) -> None:
    for each in (engine, other_engine):
        (question,) = await make.publish(each, user_id=7)
        await make.execute(each, "UPDATE published SET pub_id = 'mine'")
    await Ingest(engine, POLICY)([sent(right(replace(question, pub_id="mine")))])
    if problem is None:
        await make.execute(
            engine,
            "INSERT INTO published (pub_id, kind, source_id) VALUES ('second', 'question', 1)",
        )
    lines = await _lines(engine)
    await make.execute(other_engine, here)

    if problem is None:
        assert (await _import(other_engine, lines)).batches == 1
    else:
        with pytest.raises(IngestError, match=problem):
            await _import(other_engine, lines)
        assert await make.count(other_engine, "ingest_inbox") == 0


async def test_an_import_waits_for_batches_being_ingested_without_deadlock(
    engine: AsyncEngine,
) -> None:
    (question,) = await make.publish(engine)
    ingest, delivery = Ingest(engine, POLICY), sent(right(question))
    await ingest([delivery])
    lines = await _lines(engine)
    await make.forget(engine)
    async with engine.begin() as holder:
        # It has its principal's lock then, and no receipt yet.
        await holder.execute(make.text("LOCK TABLE study_question_progress"))
        ingesting = asyncio.create_task(ingest([delivery]))
        await make.blocked(engine, 1)
        importing = asyncio.create_task(_import(engine, lines))
        await make.blocked(engine, 2)
    assert isinstance((await ingesting)[0], Ingested)
    done = await importing
    assert (done.batches, done.known) == (0, 1)


async def test_ingest_continues_in_the_database_of_an_import(
    engine: AsyncEngine, other_engine: AsyncEngine
) -> None:
    (question,) = await make.publish(engine, user_id=7)
    first = sent(wrong(question, at(0)))
    await Ingest(engine, POLICY)([first])
    await _import(other_engine, await _lines(engine))

    # The study application publishes there, and new questions get new ids.
    (other,) = await make.publish(other_engine, user_id=7)
    assert other.question_id > question.question_id
    await make.execute(
        other_engine,
        "INSERT INTO published (pub_id, kind, source_id) VALUES (:pub_id, 'question', :id)",
        pub_id=question.pub_id,
        id=question.question_id,
    )
    later = sent(right(question, at(1)))
    ingested = [await Ingest(each, POLICY)([first, later]) for each in (engine, other_engine)]
    assert [type(each).__name__ for each in ingested[1]] == ["Duplicate", "Ingested"]
    assert await make.progress(other_engine) == await make.progress(engine)


async def test_one_user_is_exported_without_the_others(
    engine: AsyncEngine, other_engine: AsyncEngine
) -> None:
    await _a_life(engine)
    lines = await _lines(engine, 7)
    assert {json.loads(line)["user_id"] for line in lines} == {7}
    await _import(other_engine, lines)
    assert await _all(other_engine) == await _all(engine, 7)


async def test_an_import_again_or_after_being_stopped_adds_what_is_missing(
    engine: AsyncEngine, other_engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "_LINES_AT_ONCE", 1)
    await _a_life(engine)
    lines = await _lines(engine)
    batches = [n for n, line in enumerate(lines) if json.loads(line)["record"] == "batch"]

    with pytest.raises(IngestError, match="not part of an export"):
        await _import(other_engine, [*lines[: batches[3]], "half a li"])
    done = await _import(other_engine, lines)
    again = await _import(other_engine, lines)

    assert done.batches + done.known == 6 and done.known == 2
    assert (again.batches, again.attempts, again.known) == (0, 0, 6)
    assert await _all(other_engine) == await _all(engine)


async def test_what_was_erased_here_stays_erased_and_is_counted(
    engine: AsyncEngine, other_engine: AsyncEngine
) -> None:
    """As where a user moves back into a cell that has erased them."""
    await _a_life(engine)
    lines = await _lines(engine)
    await _import(other_engine, lines)
    async with transaction(other_engine) as connection:
        await erase(connection, 7, [])

    done = await _import(other_engine, lines)

    assert (done.batches, done.known, done.erased) == (0, 6, 4)
    attempts = await make.rows(other_engine, "SELECT user_id FROM study_question_attempts")
    assert {row["user_id"] for row in attempts} == {8}


async def test_a_long_history_is_imported_where_the_statistics_do_not_know_its_user(
    engine: AsyncEngine, other_engine: AsyncEngine
) -> None:
    """PostgreSQL plans for few rows then, and no plan may be quadratic: one took minutes here."""
    for each, sessions in ((engine, 5_000), (other_engine, 500)):
        (question,) = await make.publish(each)
        await make.execute(each, "UPDATE published SET pub_id = 'q'")
        await Ingest(each, POLICY)([sent(right(replace(question, pub_id="q")))])
        await _multiply(each, sessions)
        await make.execute(
            each, "UPDATE study_question_attempts SET answered_at_sent = answered_at"
        )
    for table in ("ingest_inbox", "study_quiz_sessions", "study_question_attempts"):
        await make.execute(other_engine, f"UPDATE {table} SET user_id = 2")
    await make.execute(other_engine, "ANALYZE")

    done = await _import(other_engine, await _lines(engine))

    assert (done.batches, done.attempts) == (5_001, 5_001)
    assert await verify(other_engine, 1, POLICY) == []


async def test_importing_a_file_that_is_no_export_fails_with_one_sentence(
    engine: AsyncEngine,
) -> None:
    first = '{"record": "export", "version": 1}'
    for lines, problem in (
        (["{}"], "Line 1 is not part"),
        (["{"], "Line 1 is not part"),
        (['{"record": "topic", "id": 1}'], "Line 1 begins another export"),
        ([first, first], "Line 2 begins another export"),
        (['{"record": "export", "version": 3}'], "version is not 2"),
        ([first, '{"record": "topic", "id": "x"}'], "Among the 1 lines up to line 2"),
        ([first, '{"record": "batch", "sessions": 3}'], "Among the 1 lines up to line 2"),
    ):
        with pytest.raises(IngestError, match=problem):
            await _import(engine, lines)
    assert await make.count(engine, "ingest_inbox") == 0


async def test_an_export_of_many_batches_takes_no_more_memory_than_of_few(
    engine: AsyncEngine,
) -> None:
    (question,) = await make.publish(engine)
    await Ingest(engine, POLICY)([sent(right(question, at(n))) for n in range(5)])

    async def peak() -> tuple[int, int]:
        tracemalloc.reset_peak()
        start, _ = tracemalloc.get_traced_memory()
        count = 0
        async for _ in export(engine, None):
            count += 1
        return count, tracemalloc.get_traced_memory()[1] - start

    tracemalloc.start()
    try:
        await peak()
        await _multiply(engine, 1_000)
        few = await peak()
        await _multiply(engine, 6_000)
        many = await peak()
    finally:
        tracemalloc.stop()
    assert many[0] > 5 * few[0] and few[0] > 1_000
    assert many[1] < 1.5 * few[1]


async def _multiply(engine: AsyncEngine, batches: int) -> None:
    """Copies one batch under many uuids, faster than ingest could."""
    await make.execute(
        engine,
        "WITH inbox AS (INSERT INTO ingest_inbox (client_session_uuid, content_digest, user_id)"
        " SELECT gen_random_uuid(), decode(repeat('00', 32), 'hex'), 1"
        " FROM generate_series(1, :n) RETURNING client_session_uuid),"
        " sessions AS (INSERT INTO study_quiz_sessions (id, user_id, study_topic_id, question_ids,"
        " subject_distribution, status, cursor, source, client_session_uuid, correct_count,"
        " wrong_count, unsure_count, finished_at, finalized_at)"
        " SELECT inbox.client_session_uuid, 1, study_topic_id, question_ids,"
        " subject_distribution, status, 1, source, inbox.client_session_uuid, 1, 0, 0,"
        " finished_at, finalized_at FROM inbox, (SELECT * FROM study_quiz_sessions LIMIT 1) AS one"
        " RETURNING id) INSERT INTO study_question_attempts (user_id, study_question_id,"
        " study_topic_id, quiz_session_id, position, selected_choice, correct_choice, is_correct,"
        " outcome, answered_at) SELECT 1, study_question_id, study_topic_id, sessions.id, 0, 1, 1,"
        " true, 'correct', answered_at"
        " FROM sessions, (SELECT * FROM study_question_attempts LIMIT 1) AS one",
        n=batches,
    )


# ---------------------------------------------------------------------------------------- xAPI


async def test_each_attempt_is_a_statement_with_a_stable_id(engine: AsyncEngine) -> None:
    first, second = await make.publish(engine, 2, user_id=7)
    uuid = UUID(int=5)
    delivery = sent(
        right(first, at(0)),
        wrong(second, at(1)),
        unsure(first, at(2)),
        unsure(second, at(3), None),
        uuid=uuid,
    )
    await Ingest(engine, POLICY)([delivery])

    async def exported() -> list[dict[str, object]]:
        records = [json.loads(line) for line in await _lines(engine, 7)]
        return [
            statement
            for record in records
            if record["record"] == "batch"
            for statement in statements(record, "https://study.example")
        ]

    found = await exported()

    assert [each["result"] for each in found] == [
        _result(1.0, True, "correct", "1"),
        _result(0.0, False, "wrong", "2"),
        _result(0.5, False, "unsure", "1"),
        _result(0.0, False, "unsure", None),
    ]
    one = found[0]
    assert one["actor"] == {
        "objectType": "Agent",
        "account": {"homePage": "https://study.example", "name": "7"},
    }
    assert one["verb"]["id"] == "http://adlnet.gov/expapi/verbs/answered"  # type: ignore[index]
    assert one["object"]["id"] == f"urn:study-ingest:question:{first.question_id}"  # type: ignore[index]
    assert one["context"]["registration"] == str(uuid)  # type: ignore[index]
    assert one["timestamp"] == at(0).isoformat()
    assert len({str(each["id"]) for each in found}) == 4
    assert all(UUID(str(each["id"])).version == 5 for each in found)
    assert await exported() == found

    await void(engine, uuid, POLICY, BY)
    after = await exported()
    assert after[::2] == found
    assert [each["object"] for each in after[1::2]] == [
        {"objectType": "StatementRef", "id": each["id"]} for each in found
    ]


def _result(scaled: float, success: bool, outcome: str, response: str | None) -> dict[str, object]:
    return {
        "score": {"scaled": scaled},
        "success": success,
        "completion": True,
        "extensions": {"urn:study-ingest:outcome": outcome},
    } | ({} if response is None else {"response": response})


# ------------------------------------------------------------------------------- the commands


async def test_export_and_import_as_typed(
    engine: AsyncEngine, other_engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    await _a_life(engine)
    file = tmp_path / "log.jsonl"

    async def typed(at: AsyncEngine, *words: str) -> str:
        here = make_url(database_url).set(database=at.url.database)
        url = here.render_as_string(hide_password=False)
        environment = {"INGEST_DATABASE_URL": url, "INGEST_AMQP_URL": "amqp://unused"}
        result = await asyncio.to_thread(CliRunner().invoke, app, words, env=environment)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    assert await typed(engine, "export", "-o", str(file)) == ""
    assert await asyncio.to_thread(os.listdir, tmp_path) == [file.name]
    assert await asyncio.to_thread(file.read_text) == await typed(engine, "export")
    statements = await typed(engine, "export", "--format", "xapi", "--user", "8")
    assert [json.loads(line)["actor"]["account"]["name"] for line in statements.splitlines()] == [
        "8",
        "study-ingest",  # which voids what the rescore replaced
        "8",
        "8",
    ]
    imported = json.loads(await typed(other_engine, "import", str(file), "--json"))
    assert imported == {"batches": 6, "known": 0, "erased": 0, "attempts": 11, "users": 2}
    assert await _all(other_engine) == await _all(engine)
    (line,) = await make.rows(other_engine, "SELECT operation, effect FROM ingest_audit")
    assert line["operation"] == "import" and line["effect"]["users"] == 2
