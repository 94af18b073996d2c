"""Our tables are where the settings say, and nothing depends on where a session looks."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

import worker
from tests import factories as make
from tests.factories import WRONG, at, right, sent, wrong
from worker.domain.dispositions import Ingested
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.ingest.trial import try_writing
from worker.operate.archive.json_lines import export, import_lines
from worker.operate.doctor import database as doctor
from worker.operate.repair import verify
from worker.operate.rescore import rescore
from worker.settings import Settings
from worker.store import outbox, principals, replays, schema
from worker.store.audit import By
from worker.store.engine import make_engine, transaction
from worker.store.operate import report, roles
from worker.store.ours import named
from worker.store.tables import METADATA

POLICY = Policy()
BY = By("ops", "a test")

_PLACES = r"\b(?:FROM|JOIN|INTO|UPDATE|TABLE|LATERAL|,)"
_VIEWS = ("study_topic_progress", "study_progress", "study_due", "study_history")


def test_every_statement_names_the_schema_of_our_tables() -> None:
    tables = "|".join((*METADATA.tables, *_VIEWS, "study_ingest_version"))
    # Across the pieces of a statement, each a string of its own.
    between = r"(?:\s|\"\s*f?\")+"
    bare = re.compile(rf"{_PLACES}{between}({tables})\b(?=[ \"])")
    for path in Path(worker.__file__).parent.rglob("*.py"):
        code = re.sub(r"^\s*#.*$", "", path.read_text(), flags=re.MULTILINE)
        code = re.sub(r'"""(.*?)"""', "", code, flags=re.DOTALL)
        if "sqlalchemy import" not in code:
            continue
        found = [match[1] for match in bare.finditer(code)]
        assert not found, f"{path.name}: write ours.{found[0]}"


def test_the_locks_of_public_are_those_of_version_0_1_0() -> None:
    lock = "SELECT pg_advisory_lock(hashtextextended('study-ingest outbox ' || key, 0)) FROM ours.x"
    assert named(lock, "public") == lock.replace("ours.", '"public".')
    assert named(lock, "mine") == lock.replace("ours.", '"mine".').replace(
        "study-ingest", "study-ingest mine"
    )
    assert principals._key(42, "public") == -1_431_775_044_756_649_173
    assert principals._key(42, "mine") != principals._key(42, "public")


def _settings(url: str, name: str) -> Settings:
    return Settings(database_url=url, amqp_url="amqp://unused", database_schema=name)  # type: ignore[arg-type]


@pytest.fixture
async def two(database_url: str) -> AsyncIterator[tuple[AsyncEngine, AsyncEngine]]:
    """Two installations in one database: in `public`, and in a schema of its own."""
    engines = [
        make_engine(_settings(database_url, name), connections=4, name="tests")
        for name in ("public", "order")  # a word that needs quotes
    ]
    await schema.migrate(engines[1])
    yield engines[0], engines[1]
    for engine in engines:
        await engine.dispose()


async def test_two_installations_in_one_database_do_not_meet(
    two: tuple[AsyncEngine, AsyncEngine],
) -> None:
    # The same ids in both, and other content.
    first, second = two
    questions = [(await make.publish(engine, 1, user_id=7))[0] for engine in two]
    assert questions[0].question_id == questions[1].question_id
    uuid = uuid4()
    for engine, question, answer in zip(two, questions, (right, wrong), strict=True):
        (done,) = await Ingest(engine, POLICY)([sent(answer(question, at(1)), uuid=uuid)])
        assert isinstance(done, Ingested)
    async with transaction(first) as holder:
        await principals.lock(holder, [7])
        assert (await outbox.take(holder, results=10, jobs=10)) != []
        for engine, question, free in zip(two, questions, (False, True), strict=True):
            group = [sent(right(question, at(2))), sent(right(question, at(3)))]
            ingest = Ingest(engine, POLICY)
            if free:
                assert all(isinstance(each, Ingested) for each in await ingest(group))
                async with transaction(engine) as connection:
                    assert (await outbox.take(connection, results=10, jobs=10)) != []
            else:
                async with transaction(engine) as connection:
                    assert await principals.lock_free(connection, [7], None) == set()
                    assert (await outbox.take(connection, results=10, jobs=10)) == []
    counts = [
        (await make.progress(engine))[7, question.question_id]["attempts_count"]
        for engine, question in zip(two, questions, strict=True)
    ]
    assert counts == [1, 3]
    assert await schema.migrate(second, "base") == (schema.head(), None)
    assert await schema.current(first) == schema.head()
    assert await verify(first, 7, POLICY) == []


async def test_operations_work_where_no_session_looks_by_itself(
    two: tuple[AsyncEngine, AsyncEngine], database_url: str
) -> None:
    first, engine = two
    (question,) = await make.publish(engine, 1, user_id=7)
    await Ingest(engine, POLICY)([sent(right(question, at(1)))])
    await try_writing(engine)
    assert (await rescore(engine, question.question_id, WRONG, POLICY, BY)).attempts == 1
    assert await verify(engine, 7, POLICY) == []
    lines = [line async for line in export(engine, None)]
    done = await import_lines(first, lines, POLICY, BY)
    assert (done.batches, done.attempts) == (1, 1)
    async with transaction(engine) as connection:
        assert len(await report.names(connection, 7, [question.question_id])) == 1
        assert await replays.take(connection) == []
    found = await doctor.examine(_settings(database_url, "order"), engine)
    assert {each.check: each.severity for each in found}["indexes"] == "ok"
    assert {each.check: each.severity for each in found}["content"] == "ok"
    role = f"tests_{uuid4().hex}"
    async with transaction(engine) as connection:
        password = await roles.ensure_worker(connection, role)
    url = make_url(database_url).set(username=role, password=password)
    settings = _settings(url.render_as_string(hide_password=False), "order")
    as_worker = make_engine(settings, connections=1, name="tests")
    try:
        await schema.check(as_worker)
        (ingested,) = await Ingest(as_worker, POLICY)([sent(right(question, at(2)))])
        assert isinstance(ingested, Ingested)
    finally:
        await as_worker.dispose()
        await make.execute(engine, f"DROP OWNED BY {role}")
        await make.execute(engine, f"DROP ROLE {role}")
