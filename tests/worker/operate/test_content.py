"""Content: what a file brings in, what stops it, and what the commands say about it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from tests.database_fixtures import THEIRS
from tests.factories import RIGHT, right, sent, wrong
from tests.worker.operate.commands import invoke
from tests.worker.operate.conftest import Site
from tests.worker.operate.test_answers import one
from worker.domain.policy import Policy
from worker.errors import ContentError
from worker.ingest.transaction import Ingest
from worker.operate import repair
from worker.operate.content import change
from worker.operate.content.bring_in import Imported, bring_in
from worker.operate.content.lines import Line
from worker.operate.lines import LONGEST_LINE
from worker.store.audit import By

pytestmark = pytest.mark.broker

BY = By("tests", "")
MINE: dict[str, Any] = {"user_id": 7, "topic": "Algebra", "correct_choice": RIGHT}
CONTENT = (
    "SELECT json_build_array((SELECT json_agg(study_topics ORDER BY id) FROM study_topics),"
    " (SELECT json_agg(study_questions ORDER BY id) FROM study_questions),"
    " (SELECT json_agg(published ORDER BY pub_id) FROM published)) AS all"
)
"""All rows."""


def question(pub_id: str, number: int = 1, **fields: Any) -> Line:
    return Line.model_validate({"number": number, "pub_id": pub_id} | MINE | fields)


async def imported(engine: AsyncEngine, *lines: Line, dry_run: bool = False) -> Imported:
    return await bring_in(engine, lines, BY, dry_run=dry_run, progress=lambda done, total: None)


def written(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def objects(*lines: dict[str, Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


# ------------------------------------------------------------------------------------ importing


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
async def test_an_imported_question_can_be_answered(site: Site, tmp_path: Path, kind: str) -> None:
    text = {
        "csv": "\ufeffpub_id;user_id;topic;correct_choice;title;text\r\n"
        'q-1;7;Algebra;1;Sum;"What is 1 + 1?\nThink."\r\nq-2;7;Algebra;2;;\r\n'
        ";;;;;\r\n;7;Empty;;;\r\n",
        "jsonl": objects(
            {"pub_id": "q-1", "title": "Sum", "text": "What is 1 + 1?\nThink."} | MINE,
            {"pub_id": "q-2"} | MINE | {"correct_choice": 2},
            {"topic": "Empty", "user_id": 7},
        )
        + "\n",
    }[kind]
    file = written(tmp_path, f"content.{kind}", text)

    result = await invoke(site, "content", "import", file, "--json", "--reason", "a start")

    assert result.exit_code == 0, result.output
    said = one("content import", result.stdout)
    assert (said["lines"], said["topics"], said["questions"]) == (3, 2, 2)
    assert await make.rows(site.engine, "SELECT user_id, name FROM study_topics ORDER BY id") == [
        {"user_id": 7, "name": "Algebra"},
        {"user_id": 7, "name": "Empty"},
    ]
    assert await make.rows(site.engine, "SELECT title, text FROM study_question_texts") == [
        {"title": "Sum", "text": "What is 1 + 1?\nThink."}
    ]
    await Ingest(site.engine, Policy())([sent(right("q-1"), right("q-2"))])
    outcomes = await make.rows(
        site.engine, "SELECT user_id, outcome FROM study_question_attempts ORDER BY position"
    )
    assert outcomes == [
        {"user_id": 7, "outcome": "correct"},
        {"user_id": 7, "outcome": "wrong"},
    ]
    (entry,) = await make.rows(site.engine, "SELECT operation, reason, effect FROM ingest_audit")
    assert (entry["operation"], entry["reason"]) == ("content import", "a start")
    assert entry["effect"]["questions"] == 2


async def test_questions_without_an_owner_are_answered_by_many(engine: AsyncEngine) -> None:
    done = await imported(
        engine, question("own"), *[question(f"q-{n}", user_id=None) for n in range(2)]
    )
    # A topic of the bank is another than a user's topic of the same name.
    assert (done.topics, done.questions) == (2, 3)
    for user in (7, 8):
        await make.grant(engine, f"viewer-{user}", user)
        batch = sent(right("q-0"), wrong("q-1"), viewer=f"viewer-{user}")
        await Ingest(engine, Policy())([batch])
    assert {user for user, _ in await make.progress(engine)} == {7, 8}
    assert await make.count(engine, "study_questions") == 3


async def test_an_import_changes_nothing_the_second_time(engine: AsyncEngine) -> None:
    lines = [question("q-1", title="One"), question("q-2", 2, text="Two")]
    await imported(engine, *lines)
    before = await make.rows(engine, CONTENT)

    again = await imported(engine, *lines)

    assert again == Imported(unchanged=2)
    assert await make.rows(engine, CONTENT) == before
    assert await make.count(engine, "ingest_audit") == 1


async def test_a_dry_run_counts_and_changes_nothing(site: Site, tmp_path: Path) -> None:
    file = written(tmp_path, "content.jsonl", objects({"pub_id": "q-1"} | MINE))

    result = await invoke(site, "content", "import", file, "--dry-run", "--json")

    said = one("content import", result.stdout)
    assert (said["dry_run"], said["topics"], said["questions"]) == (True, 1, 1)
    for table in ("study_topics", "study_questions", "published", "ingest_audit"):
        assert await make.count(site.engine, table) == 0, table


async def test_a_known_question_moves_and_gets_its_title(engine: AsyncEngine) -> None:
    await imported(engine, question("q-1", text="kept"), question("q-2", 2))
    await make.execute(engine, "UPDATE published SET deleted = true WHERE pub_id = 'q-2'")

    done = await imported(
        engine, question("q-1", topic="Geometry", title="New"), question("q-2", 2)
    )

    assert done == Imported(topics=1, moved=1, texts=1, unchanged=1, withdrawn=1)
    (row,) = await make.rows(
        engine,
        "SELECT topic.name, told.title, told.text FROM study_questions AS question"
        " JOIN study_topics AS topic ON topic.id = question.study_topic_id"
        " JOIN study_question_texts AS told ON told.study_question_id = question.id",
    )
    assert row == {"name": "Geometry", "title": "New", "text": "kept"}


HEADER = "pub_id,user_id,topic,correct_choice,text\n"
FIRST = "q-1,7,Algebra,1,\n"
FIRST_JSON = objects({"pub_id": "q-1"} | MINE)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.csv", HEADER + FIRST + "q-1,7,Algebra,1,\n", "Line 3 has the pub_id 'q-1' of line 2"),
        ("a.jsonl", FIRST_JSON * 2, "Line 2 has the pub_id 'q-1' of line 1"),
        ("a.csv", HEADER + FIRST + "q-2,7,Algebra,B,\n", "Line 3: correct_choice is 'B'"),
        ("a.csv", HEADER + FIRST + "q-2,7,Algebra,,\n", "Line 3: correct_choice is missing"),
        ("a.csv", HEADER + FIRST + "q-2,7,Algebra,4294967296,\n", "Line 3: correct_choice is"),
        ("a.csv", HEADER + FIRST + "q-2,7,,1,\n", "Line 3: a line needs either topic or topic_id"),
        ("a.csv", HEADER + FIRST + "q-2,0,Algebra,1,\n", "Line 3: user_id is '0'"),
        ("a.csv", HEADER + FIRST + ' "q",7,Algebra,1,\n', "Line 3: pub_id is"),
        ("a.csv", HEADER + FIRST + '"q"x,7,Algebra,1,\n', "Line 3 is not valid CSV"),
        ("a.csv", HEADER + FIRST + '"q-2,7,Algebra,1,\n', "Line 3 is not valid CSV"),
        ("a.csv", HEADER + FIRST + "q-2,7,Algebra,1,a,b\n", "Line 3 has 6 cells"),
        (
            "a.csv",
            (HEADER + FIRST + "q-2,7,Algèbre,1,\n").encode("windows-1252"),
            "Line 3 is not UTF-8 (byte 0xe8 at column 10)",
        ),
        ("a.csv", (HEADER + FIRST).encode("utf-16"), "Line 1 is not UTF-8"),
        (
            "a.csv",
            HEADER + FIRST + f"q-2,7,Algebra,1,{'x' * 10_000_000}\n",
            f"Line 3 has more than {LONGEST_LINE:,} bytes",
        ),
        (
            "a.csv",
            HEADER
            + FIRST
            + f'q-2,7,Algebra,1,"{"x" * 1000 + chr(10)}' * 1
            + "y\n" * 200_000
            + '"\n',
            "Line 3 has a cell of more than 131,072 characters",
        ),
        ("a.csv", (HEADER + FIRST).replace("\n", "\r"), "Line 1 has a line end of CR alone"),
        (
            "a.csv",
            HEADER + FIRST + "q-2,7,Algebra,1,\rq-3,7,Algebra,1,\n",
            "Line 3 has a line end of",
        ),
        ("a.jsonl", FIRST_JSON + "x" * 10_000_000, "Line 2 has more than"),
        ("a.jsonl", FIRST_JSON + "{'pub_id': 1}\n", "Line 2 is not a JSON object"),
        ("a.jsonl", FIRST_JSON + "[" * 100_000 + "\n", "Line 2 is not a JSON object"),
        ("a.jsonl", FIRST_JSON + "[]\n", "Line 2 is not a JSON object"),
        ("a.jsonl", FIRST_JSON + objects({"pub_id": "q-2", "titel": "x"} | MINE), "'titel'"),
        (
            "a.jsonl",
            FIRST_JSON + objects({"pub_id": "q-2"} | MINE | {"correct_choice": True}),
            "Line 2: correct_choice is True",
        ),
        (
            "a.jsonl",
            FIRST_JSON + objects({"pub_id": "q-2"} | MINE | {"correct_choice": "1"}),
            "Line 2: correct_choice is '1'",
        ),
        ("a.jsonl", FIRST_JSON + objects({"pub_id": "q\x002"} | MINE), "Line 2: pub_id is"),
        (
            "a.jsonl",
            FIRST_JSON + objects({"pub_id": "q-2", "text": "\ud800"} | MINE),
            "Line 2: text",
        ),
        ("a.jsonl", FIRST_JSON + objects({"pub_id": "q" * 129} | MINE), "Line 2: pub_id is"),
        ("a.csv", "pub_id,topik\n", "Line 1 names the unknown field 'topik'"),
        ("a.csv", "topic,topic\n", "Line 1 names the field topic twice"),
        ("a.csv", "", "Line 1 names neither topic nor topic_id"),
        ("a.csv", HEADER, "The file has no questions"),
        ("a.jsonl", "", "The file has no questions"),
    ],
    ids=lambda value: repr(value[-30:]) if isinstance(value, str | bytes) else None,
)
async def test_a_bad_line_is_named_and_nothing_is_imported(
    site: Site, tmp_path: Path, name: str, content: str | bytes, found: str
) -> None:
    await _refused(site, written(tmp_path, name, content), found)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ({"topic_id": 1, "user_id": 8}, "topic 1 belongs to user 7, not to user 8"),
        ({"topic_id": 1}, "topic 1 belongs to user 7, not to the shared bank"),
        ({"topic_id": 99, "user_id": 7}, "there is no topic 99"),
        ({"topic": "Twice", "user_id": 7}, "user 7 has 2 topics named 'Twice'"),
        ({"pub_id": "mine", "topic": "x", "user_id": 8}, "belongs to user 7, not to user 8"),
        (
            {"pub_id": "mine", "topic_id": 1, "user_id": 7, "correct_choice": 3},
            "has the correct choice 1, not 3",
        ),
        ({"pub_id": "gone", "topic_id": 1, "user_id": 7}, "a question that was deleted"),
        ({"pub_id": "dangling", "topic_id": 1, "user_id": 7}, "a question that was deleted"),
        ({"pub_id": "page", "topic_id": 1, "user_id": 7}, "is published as a 'topic'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_line_that_contradicts_the_database_is_named_and_nothing_is_imported(
    site: Site, tmp_path: Path, line: dict[str, Any], found: str
) -> None:
    for statement in (
        "INSERT INTO study_topics (user_id, name) VALUES (7, 'Mine'), (7, 'Twice'), (7, 'Twice')",
        "INSERT INTO study_questions (user_id, study_topic_id, correct_choice, deleted_at)"
        " VALUES (7, 1, 1, NULL), (7, 1, 1, now())",
        "INSERT INTO published (pub_id, kind, source_id) VALUES ('mine', 'question', 1),"
        " ('gone', 'question', 2), ('dangling', 'question', 99), ('page', 'topic', 1)",
    ):
        await make.execute(site.engine, statement)
    given = {"pub_id": "q-2", "correct_choice": RIGHT} | line
    file = written(tmp_path, "a.jsonl", FIRST_JSON + objects(given))
    await _refused(site, file, f"Line 2: {found}" if "pub_id" not in line else found)


async def _refused(site: Site, file: str, found: str) -> None:
    before = await make.rows(site.engine, CONTENT)
    result = await invoke(site, "content", "import", file)
    assert isinstance(result.exception, ContentError), result.output
    assert found in result.exception.found
    assert len(str(result.exception)) < 400, "one sentence, whatever the file contains"
    assert await make.rows(site.engine, CONTENT) == before


async def test_an_id_that_the_application_took_is_named(engine: AsyncEngine) -> None:
    await imported(engine, question("q-1"))
    await make.execute(
        engine,
        "INSERT INTO study_questions (id, user_id, study_topic_id, correct_choice)"
        " SELECT max(id) + 1, 7, max(study_topic_id), 1 FROM study_questions",
    )
    with pytest.raises(ContentError, match="The next id of study_questions is taken"):
        await imported(engine, question("q-2"))
    assert await make.count(engine, "published") == 1


# ----------------------------------------------------------- content of the application's own


@pytest.mark.parametrize("content", [THEIRS], indirect=True)
@pytest.mark.parametrize("command", ["import", "withdraw", "restore"])
async def test_content_of_the_application_s_own_is_not_changed(
    site: Site, tmp_path: Path, command: str
) -> None:
    (known,) = await make.publish(site.engine, user_id=7)
    await make.execute(site.engine, "UPDATE published SET deleted = :it", it=command == "restore")
    line = {"pub_id": "q-1", "topic_id": known.topic_id, "user_id": 7, "correct_choice": 1}
    file = written(tmp_path, "content.jsonl", objects(line))
    before = await make.rows(site.engine, CONTENT)

    given = file if command == "import" else known.pub_id
    result = await invoke(site, "content", command, given)

    assert isinstance(result.exception, ContentError), result.output
    assert "the application's own" in result.exception.found
    assert await make.rows(site.engine, CONTENT) == before
    assert await make.count(site.engine, "ingest_audit") == 0


@pytest.mark.parametrize("content", [THEIRS], indirect=True)
async def test_content_of_the_application_s_own_is_listed_checked_and_followed(
    site: Site,
) -> None:
    first, _ = await make.publish(site.engine, 2, user_id=7)
    (elsewhere,) = await make.publish(site.engine, user_id=7)
    await Ingest(site.engine, Policy())([sent(right(first))])
    await make.execute(
        site.engine,
        "UPDATE study_questions SET study_topic_id = :topic WHERE id = :id",
        topic=elsewhere.topic_id,
        id=first.question_id,
    )

    said = one("content list", (await invoke(site, "content", "list", "--json")).stdout)
    assert [each["questions"] for each in said["topics"]] == [1, 2]
    result = await invoke(site, "content", "check", "--json")
    found = one("content check", result.stdout)
    assert found["healthy"], found
    result = await invoke(site, "content", "touched", "--json")
    assert one("content touched", result.stdout)["moved"] == 1
    (row,) = await make.rows(site.engine, "SELECT study_topic_id FROM study_question_progress")
    assert row["study_topic_id"] == elsewhere.topic_id


# ----------------------------------------------------------------------- withdrawing, restoring


async def test_answers_to_a_withdrawn_question_are_skipped_until_it_is_restored(
    site: Site,
) -> None:
    await imported(site.engine, question("q-1"), question("q-2", 2))
    ingest = Ingest(site.engine, Policy())

    result = await invoke(site, "content", "withdraw", "q-1", "--json")
    assert one("content withdraw", result.stdout) == {"changed": 1, "unchanged": 0}
    await ingest([sent(right("q-1"), right("q-2"))])
    assert await make.count(site.engine, "study_question_attempts") == 1

    result = await invoke(site, "content", "restore", "q-1", "q-2", "--json")
    assert one("content restore", result.stdout) == {"changed": 1, "unchanged": 1}
    await ingest([sent(right("q-1"))])
    assert await make.count(site.engine, "study_question_attempts") == 2
    entries = await make.rows(
        site.engine, "SELECT operation, subject FROM ingest_audit ORDER BY id"
    )
    assert [entry["operation"] for entry in entries[1:]] == ["content withdraw", "content restore"]
    assert entries[1]["subject"] == "q-1"


@pytest.mark.parametrize("command", ["withdraw", "restore"])
async def test_an_unknown_id_is_named_and_nothing_changes(site: Site, command: str) -> None:
    await imported(site.engine, question("q-1"))
    await make.execute(site.engine, "UPDATE published SET deleted = :it", it=command == "restore")
    before = await make.rows(site.engine, CONTENT)
    result = await invoke(site, "content", command, "q-1", "q-9")
    assert isinstance(result.exception, ContentError) and "'q-9'" in result.exception.found
    assert await make.rows(site.engine, CONTENT) == before


# ------------------------------------------------------------------------- listing and checking


async def test_topics_and_questions_are_listed_with_their_state(site: Site) -> None:
    await imported(
        site.engine,
        question("q-1", title="One"),
        question("q-2", 2),
        question("q-3", 3),
        question("q-4", 4, topic="Other", user_id=8),
    )
    await make.execute(site.engine, "UPDATE published SET deleted = true WHERE pub_id = 'q-2'")
    await make.execute(
        site.engine,
        "UPDATE study_questions SET deleted_at = now() WHERE id ="
        " (SELECT source_id FROM published WHERE pub_id = 'q-3')",
    )

    result = await invoke(site, "content", "list", "--user", "7", "--json")
    (topic,) = one("content list", result.stdout)["topics"]
    counts = {"questions": 3, "published": 1, "withdrawn": 1, "deleted": 1}
    assert topic == {"topic_id": topic["topic_id"], "user_id": 7, "name": "Algebra"} | counts

    result = await invoke(site, "content", "list", "--topic", str(topic["topic_id"]), "--json")
    questions = one("content list", result.stdout)["questions"]
    assert [(each["pub_id"], each["state"], each["title"]) for each in questions] == [
        ("q-1", "published", "One"),
        ("q-2", "withdrawn", None),
        ("q-3", "deleted", None),
    ]
    result = await invoke(site, "content", "list")
    assert result.stdout.splitlines()[1].endswith(
        "1 questions (1 published, 0 withdrawn, 0 deleted)"
    )


BROKEN: Sequence[tuple[str, str, str]] = (
    ("owners", "UPDATE study_questions SET user_id = 8", "warning"),
    ("dangling", "INSERT INTO published VALUES ('q-9', 'question', 99)", "danger"),
    ("deleted", "UPDATE study_questions SET deleted_at = now()", "warning"),
    ("duplicates", "INSERT INTO published SELECT 'q-9', kind, source_id FROM published", "note"),
    ("unpublished", "DELETE FROM published", "note"),
    ("topics", "INSERT INTO study_topics (user_id, name) VALUES (7, 'Algebra')", "note"),
    (
        "orphans",
        "ALTER TABLE study_questions DROP CONSTRAINT study_questions_study_topic_id_fkey;"
        "UPDATE study_questions SET study_topic_id = 99",
        "danger",
    ),
)


@pytest.mark.parametrize(("kind", "statements", "severity"), BROKEN)
async def test_check_finds_each_kind_of_trouble(
    site: Site, kind: str, statements: str, severity: str
) -> None:
    await imported(site.engine, question("q-1"))
    result = await invoke(site, "content", "check", "--json")
    assert result.exit_code == 0
    assert {each["severity"] for each in one("content check", result.stdout)["findings"]} == {"ok"}
    for statement in statements.split(";"):
        await make.execute(site.engine, statement)

    result = await invoke(site, "content", "check", "--json")

    assert result.exit_code == (0 if severity == "note" else 1)
    found = one("content check", result.stdout)["findings"]
    assert [(each["check"], each["severity"]) for each in found if each["severity"] != "ok"] == [
        (f"content {kind}", severity)
    ]


# -------------------------------------------------------------------------------------- touched


async def test_progress_follows_a_question_that_the_application_moved(site: Site) -> None:
    await imported(site.engine, question("q-1"), question("q-2", 2), question("q-3", 3, topic="B"))
    await Ingest(site.engine, Policy())([sent(right("q-1"), wrong("q-2"))])
    await make.execute(
        site.engine,
        "UPDATE study_questions SET study_topic_id = (SELECT max(id) FROM study_topics)",
    )
    await make.execute(
        site.engine,
        "UPDATE study_questions SET correct_choice = 3 WHERE id ="
        " (SELECT source_id FROM published WHERE pub_id = 'q-2')",
    )

    result = await invoke(site, "content", "touched", "q-1", "--json")
    assert one("content touched", result.stdout) == {
        "moved": 1,
        "users": 1,
        "to_rescore": [],
    }
    result = await invoke(site, "content", "touched", "--json")
    said = one("content touched", result.stdout)
    assert said["moved"] == 1 and len(said["to_rescore"]) == 1

    assert await repair.rebuild(site.engine, 7, Policy()) == (0, 0), "it is as a rebuild leaves it"
    assert await change.touched(site.engine, (), (), BY) == (0, 0, said["to_rescore"])
    result = await invoke(site, "content", "touched", "q-9")
    assert isinstance(result.exception, ContentError)
