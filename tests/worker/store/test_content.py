"""Content that is the application's: used as it is, and never touched."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.words import SkipReason
from tests import factories as make
from tests.database_fixtures import CONTENT_OF_AN_APPLICATION, THEIRS
from tests.factories import WRONG, at, right, sent, wrong
from tests.worker.store.test_schema import shape
from worker.domain.dispositions import Ingested
from worker.domain.policy import Policy
from worker.errors import IngestError, SchemaError
from worker.ingest.transaction import Ingest
from worker.operate import erase
from worker.operate.archive.json_lines import export, import_lines
from worker.operate.repair import rebuild, verify
from worker.operate.rescore import rescore
from worker.settings import Settings
from worker.store import schema
from worker.store.audit import By
from worker.store.content import RELATIONS
from worker.store.driver import driver_of
from worker.store.engine import make_engine, transaction
from worker.store.operate import report

POLICY = Policy()
BY = By("ops", "a test")

on_content_of_an_application = pytest.mark.parametrize("content", [THEIRS], indirect=True)

_TABLES = (
    "CREATE TABLE study_topics (id integer PRIMARY KEY, user_id integer, name varchar(80), x text)",
    "CREATE TABLE study_questions (id bigint PRIMARY KEY, user_id bigint, study_topic_id integer"
    " REFERENCES study_topics, correct_choice smallint NOT NULL, deleted_at timestamptz)",
    "CREATE TABLE published (pub_id varchar PRIMARY KEY, kind text, source_id bigint,"
    " deleted boolean)",
    "CREATE INDEX ON published (source_id)",
)


@pytest.fixture
async def empty(empty_database_url: str) -> AsyncIterator[AsyncEngine]:
    """A database without any schema."""
    given = Settings(database_url=empty_database_url, amqp_url="amqp://unused")  # type: ignore[arg-type]
    engine = make_engine(given, connections=3, name="tests")
    yield engine
    await engine.dispose()


async def _objects(engine: AsyncEngine) -> set[tuple[object, ...]]:
    """Everything that the database has: relations, constraints, triggers and functions."""
    found = await make.rows(
        engine,
        "SELECT 'relation', relnamespace::regnamespace::text, relname, relkind::text FROM pg_class"
        " WHERE relnamespace::regnamespace::text IN ('public', 'app')"
        " UNION SELECT 'constraint', conrelid::regclass::text, conname, contype::text"
        " FROM pg_constraint WHERE connamespace::regnamespace::text IN ('public', 'app')"
        " UNION SELECT 'trigger', tgrelid::regclass::text, tgname, tgtype::text FROM pg_trigger"
        " UNION SELECT 'function', '', proname, '' FROM pg_proc"
        " WHERE pronamespace::regnamespace::text IN ('public', 'app')",
    )
    return {tuple(row.values()) for row in found}


@pytest.mark.parametrize(
    "theirs",
    [
        pytest.param(_TABLES, id="tables"),
        pytest.param(CONTENT_OF_AN_APPLICATION, id="views"),
        pytest.param(_TABLES[:1], id="topics only"),
        pytest.param(_TABLES[:2], id="no publications"),
        pytest.param(_TABLES[2:], id="publications only"),
    ],
)
async def test_content_that_is_there_is_used_and_left_as_it_was(
    theirs: tuple[str, ...], empty: AsyncEngine
) -> None:
    for statement in theirs:
        await make.execute(empty, statement)
    before = await _objects(empty)

    assert await schema.migrate(empty) == (None, schema.head())
    assert await schema.migrate(empty) == (schema.head(), schema.head())
    of_theirs = {row for row in await _objects(empty) if row in before}
    assert of_theirs == before
    names = {row[2] for row in before if row[0] == "relation"}
    laid = {row for row in await _objects(empty) - before if row[1] in names}
    assert laid == set()
    with pytest.raises(SchemaError, match=r"^An older program can't use the application's own"):
        await schema.migrate(empty, "0007")

    assert await schema.migrate(empty, "base") == (schema.head(), None)
    assert await _objects(empty) == before
    assert await schema.migrate(empty, "base") == (None, None)
    with pytest.raises(SchemaError, match=r"^Schema 0007 can't use the application's own content"):
        await schema.migrate(empty, "0007")
    assert await _objects(empty) == before


@on_content_of_an_application
async def test_a_schema_beside_an_application_s_content_moves_like_any_other(
    engine: AsyncEngine,
) -> None:
    before = await _objects(engine)
    (question,) = await make.publish(engine, 1, user_id=7)
    await Ingest(engine, POLICY)([sent(right(question))])

    assert await schema.migrate(engine, "0015") == (schema.head(), "0015")
    older = await _objects(engine)
    replaced = "study_question_attempts_quiz_session_id_position_key"
    assert {each for each in older if replaced not in each} < before
    with pytest.raises(SchemaError, match=r"^Schema 0015 beside the application's own content"):
        await schema.migrate(engine, "base")
    assert await _objects(engine) == older

    assert await schema.migrate(engine) == ("0015", schema.head())
    assert await _objects(engine) == before
    assert await make.count(engine, "study_progress") == 1
    assert await verify(engine, 7, POLICY) == []


async def test_what_is_made_beside_an_application_s_content_is_what_migrations_make(
    engine: AsyncEngine, empty: AsyncEngine
) -> None:
    for statement in CONTENT_OF_AN_APPLICATION:
        await make.execute(empty, statement)
    await schema.migrate(empty)
    migrated, beside = await shape(engine), await shape(empty)
    for kind, found in migrated.items():
        assert beside[kind] == {row for row in found if row[0] not in RELATIONS}, kind
    for query in (
        "SELECT proname AS name, pg_get_functiondef(oid) AS made FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace",
        "SELECT tgname AS name, pg_get_triggerdef(oid) AS made FROM pg_trigger"
        " WHERE NOT tgisinternal",
    ):
        references = {row["name"]: row["made"] for row in await make.rows(engine, query)}
        assert {row["name"]: row["made"] for row in await make.rows(empty, query)} == {
            name: made
            for name, made in references.items()
            if "study_question_id" not in name and "study_topic_id" not in name
        }
    views = (
        "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY viewname"
    )
    theirs = [row for row in await make.rows(empty, views) if row["viewname"] not in RELATIONS]
    assert theirs == await make.rows(engine, views)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "ALTER TABLE study_questions ALTER id TYPE uuid USING gen_random_uuid()",
            "study_questions.id is uuid instead of smallint or integer or bigint",
        ),
        ("ALTER TABLE study_topics DROP name", "study_topics has no column name"),
        (
            "ALTER TABLE published DROP CONSTRAINT published_pkey",
            "looking up published by pub_id reads all of published",
        ),
        (
            "DROP INDEX published_source_id_idx",
            "looking up published by source_id reads all of published",
        ),
        (
            "ALTER TABLE study_questions ALTER correct_choice TYPE text",
            "study_questions.correct_choice is text instead of smallint or integer",
        ),
    ],
)
async def test_content_that_cannot_be_used_is_named_and_nothing_changes(
    change: str, said: str, empty: AsyncEngine
) -> None:
    for statement in (*_TABLES, change):
        await make.execute(empty, statement)
    before = await _objects(empty)
    with pytest.raises(SchemaError) as refused:
        await schema.migrate(empty)
    assert refused.value.found == f"The application's content can't be used: {said}"
    assert await _objects(empty) == before


async def test_a_view_that_reads_all_of_a_table_for_each_lookup_is_refused(
    empty: AsyncEngine,
) -> None:
    for statement in (*_TABLES[:1], *_TABLES[2:]):
        await make.execute(empty, statement)
    await make.execute(empty, "CREATE TABLE items (item_no text PRIMARY KEY, topic integer)")
    await make.execute(
        empty,
        "CREATE VIEW study_questions AS SELECT CAST(item_no AS bigint) AS id,"
        " CAST(7 AS bigint) AS user_id, topic AS study_topic_id, 1 AS correct_choice,"
        " CAST(NULL AS timestamptz) AS deleted_at FROM items",
    )
    with pytest.raises(SchemaError, match="looking up study_questions by id reads all of items"):
        await schema.migrate(empty)


@pytest.mark.parametrize("name", ["outbox", "study_question_progress", "study_history"])
async def test_a_table_that_has_a_name_of_ours_is_named_and_nothing_changes(
    name: str, empty: AsyncEngine
) -> None:
    await make.execute(empty, f"CREATE TABLE {name} (mine text)")
    before = await _objects(empty)
    with pytest.raises(SchemaError) as refused:
        await schema.migrate(empty)
    assert refused.value.found == f"The database has relations of its own with the names {name}"
    assert await _objects(empty) == before


@on_content_of_an_application
async def test_a_question_that_is_gone_counts_as_deleted_and_its_history_stays(
    engine: AsyncEngine, other_engine: AsyncEngine
) -> None:
    gone, kept = await make.publish(engine, 2, user_id=7)
    await Ingest(engine, POLICY)([sent(wrong(gone, at(1)), right(gone, at(0)), right(kept, at(2)))])
    before = await make.progress(engine)
    await make.execute(engine, "DELETE FROM app.questions WHERE id = :id", id=gone.question_id)

    (again,) = await Ingest(engine, POLICY)([sent(right(gone, at(5)), right(kept, at(6)))])
    assert isinstance(again, Ingested)
    told = (await make.told(engine))[-1]
    assert [(each.position, each.reason) for each in told.skipped] == [
        (0, SkipReason.QUESTION_DELETED)
    ]
    await make.execute(engine, "DELETE FROM app.questions")
    await make.execute(engine, "DELETE FROM app.topics")
    await make.execute(engine, "DELETE FROM app.publications")

    assert await verify(engine, 7, POLICY) == []
    assert (await rebuild(engine, 7, POLICY)).progress == 0
    assert (await make.progress(engine))[7, gone.question_id] == before[7, gone.question_id]
    async with transaction(engine) as connection:
        named = await report.names(connection, 7, [gone.question_id, kept.question_id])
    assert {number: each.pub_id for number, each in named.items()} == {
        gone.question_id: None,
        kept.question_id: None,
    }
    lines = [line async for line in export(engine, 7)]
    await make.execute(engine, "DELETE FROM outbox")
    found = await erase.survey(engine, 7, lambda *_: None)
    erased, _ = await erase.erase(engine, 7, found, BY)
    assert (erased.attempts, erased.progress) == (4, 2)
    imported = [each for each in lines if '"batch"' in each or '"export"' in each]
    await make.execute(engine, "DELETE FROM ingest_inbox")
    await import_lines(engine, imported, POLICY, BY)
    assert await verify(engine, 7, POLICY) == []
    assert (await make.progress(engine)).keys() == before.keys()


@on_content_of_an_application
async def test_rescore_reads_the_application_s_key_and_never_writes_it(
    engine: AsyncEngine,
) -> None:
    (question,) = await make.publish(engine, 1, user_id=7)
    await Ingest(engine, POLICY)([sent(right(question))])
    with pytest.raises(IngestError, match=r"^The key of question \d+ is the application's"):
        await rescore(engine, question.question_id, WRONG, POLICY, BY)
    assert (await rescore(engine, question.question_id, None, POLICY, BY)).attempts == 0

    await make.execute(engine, f"UPDATE app.questions SET answer = {WRONG}")
    assert (await rescore(engine, question.question_id, WRONG, POLICY, BY)).attempts == 1
    (row,) = await make.rows(engine, "SELECT outcome, correct_choice FROM study_question_attempts")
    assert row == {"outcome": "wrong", "correct_choice": WRONG}
    assert await verify(engine, 7, POLICY) == []


@on_content_of_an_application
async def test_an_import_adds_nothing_to_the_application_s_content(
    engine: AsyncEngine, other_engine: AsyncEngine
) -> None:
    questions = await make.publish(other_engine, 2, user_id=7)
    await Ingest(other_engine, POLICY)([sent(*[right(each) for each in questions])])
    lines = [line async for line in export(other_engine, None)]
    done = await import_lines(engine, lines, POLICY, BY)
    assert (done.batches, done.attempts) == (1, 2)
    assert await make.count(engine, "app.questions") == 0
    assert await verify(engine, 7, POLICY) == []


async def test_uuid_keys_are_mapped_as_the_manual_shows(empty: AsyncEngine) -> None:
    page = (Path(__file__).parents[3] / "docs" / "content.md").read_text()
    views, publish = re.findall(r"^```sql\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    theirs = (
        "CREATE TABLE quiz_topics (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),"
        " owner_id uuid NOT NULL, title text NOT NULL)",
        "CREATE TABLE quiz_questions (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),"
        " owner_id uuid NOT NULL, topic_id uuid NOT NULL REFERENCES quiz_topics,"
        " correct_choice integer NOT NULL, deleted_at timestamptz)",
        "INSERT INTO quiz_topics (owner_id, title)"
        " SELECT md5(n::text)::uuid, 'topic ' || n FROM generate_series(1, 3) AS n",
        "INSERT INTO quiz_questions (owner_id, topic_id, correct_choice)"
        " SELECT owner_id, id, 1 FROM quiz_topics, generate_series(1, 4)",
    )
    before = await _objects(empty)
    for statement in theirs:
        await make.execute(empty, statement)
    await _script(empty, views)
    await schema.migrate(empty)
    await _script(empty, publish)

    asked = await make.rows(
        empty,
        "SELECT pub_id, question.id, question.user_id, owner_id FROM published"
        " JOIN study_questions AS question ON question.id = source_id"
        " JOIN quiz_questions ON quiz_questions.id = CAST(pub_id AS uuid)",
    )
    assert len(asked) == 12
    by_user: dict[int, list[str]] = {}
    for row in asked:
        by_user.setdefault(row["user_id"], []).append(row["pub_id"])
    group = [
        sent(*[right(each, at(day)) for each in some])
        for day in (2, 1)
        for some in by_user.values()
    ]
    for done in await Ingest(empty, POLICY)(group):
        assert isinstance(done, Ingested)
    assert {key[0] for key in await make.progress(empty)} == by_user.keys()
    for user_id in by_user:
        assert await verify(empty, user_id, POLICY) == []
    async with transaction(empty) as connection:
        questions = await connection.execute(
            text("SELECT study_question_id FROM study_question_progress WHERE user_id = :user_id"),
            {"user_id": min(by_user)},
        )
        named = await report.names(connection, min(by_user), list(questions.scalars()))
    assert {each.pub_id for each in named.values()} == set(by_user[min(by_user)])
    assert {(each.topic_name or "")[:5] for each in named.values()} == {"topic"}

    await schema.migrate(empty, "base")
    assert await make.count(empty, "quiz_questions") == 12
    await make.execute(empty, "DROP VIEW study_topics, study_questions")
    await make.execute(empty, "DROP FUNCTION study_number")
    await make.execute(empty, "DROP TABLE study_numbers, quiz_questions, quiz_topics")
    assert await _objects(empty) == before


@pytest.mark.parametrize("rows", [0, 1, 2, 9, 60])
async def test_views_of_small_tables_are_taken_whatever_the_planner_thinks_of_them(
    empty: AsyncEngine, rows: int
) -> None:
    """A planner that knows a table to be small would rather read all of it by an index."""
    for statement in (
        "CREATE TABLE items (id uuid PRIMARY KEY, topic_id uuid NOT NULL, answer integer NOT NULL)",
        "CREATE INDEX ON items (topic_id)",
        "CREATE TABLE numbers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
        " uuid uuid NOT NULL UNIQUE)",
        "INSERT INTO items SELECT md5(n::text)::uuid, md5('t' || n % 3)::uuid, 1"
        f" FROM generate_series(1, {rows}) AS n",
        "INSERT INTO numbers (uuid) SELECT id FROM items UNION SELECT topic_id FROM items",
        "CREATE VIEW study_questions AS SELECT mine.id, NULL::bigint AS user_id,"
        " topic.id AS study_topic_id, answer AS correct_choice, NULL::timestamptz AS deleted_at"
        " FROM items JOIN numbers AS mine ON mine.uuid = items.id"
        " JOIN numbers AS topic ON topic.uuid = items.topic_id",
        "ANALYZE",
    ):
        await make.execute(empty, statement)
    await schema.migrate(empty)

    # And still a table without an index for it is refused.
    await schema.migrate(empty, "base")
    await make.execute(empty, "ALTER TABLE numbers DROP CONSTRAINT numbers_pkey")
    if rows > 1:
        with pytest.raises(SchemaError, match="looking up study_questions by id reads all of"):
            await schema.migrate(empty)


async def _script(engine: AsyncEngine, statements: str) -> None:
    """Runs several statements, as psql would."""
    async with engine.begin() as connection:
        await driver_of(connection).execute(statements)
