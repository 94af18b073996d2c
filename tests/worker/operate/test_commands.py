"""The operator's commands as typed: their output, their refusals and their exit codes."""

import asyncio
import json
import os
import sys
import time
from base64 import b64decode
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from typer.testing import CliRunner

from schemas import amqp
from tests import factories as make
from tests.broker_fixtures import VIEWER, until
from tests.factories import WRONG, at, batch, right, sent, wrong
from tests.worker.operate.commands import environment, invoke
from tests.worker.operate.conftest import Site
from tests.worker_process import PROGRAM, logging
from worker.cli.main import app
from worker.domain.policy import Policy
from worker.errors import (
    DatabaseAway,
    DatabaseRefused,
    IngestError,
    NoHistory,
    NotConfirmed,
    RoleError,
    SettingsError,
)
from worker.ingest.transaction import Ingest
from worker.operate import repair

pytestmark = pytest.mark.broker


async def said(site: Site, *words: str) -> str:
    """What a command that succeeds prints on standard output."""
    result = await invoke(site, *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


# ------------------------------------------------------------------------------- pause, resume


def worker_process(site: Site) -> AbstractAsyncContextManager[asyncio.StreamReader]:
    """`study-ingest worker`, and its log as it is written; ended with SIGTERM."""
    return logging(PROGRAM, "worker", env=os.environ | environment(site))


async def _logged(log: asyncio.StreamReader, words: str) -> None:
    async with asyncio.timeout(60):  # a busy machine takes long to start a process
        while words not in (line := (await log.readline()).decode()):
            assert line, f"the worker ended before it logged {words!r}"


async def test_a_pause_is_obeyed_within_2_seconds_and_survives_a_restart(site: Site) -> None:
    (question,) = await make.publish(site.engine)
    async with worker_process(site) as log:
        await _logged(log, "consumer.started")
        await said(site, "pause", "--reason", "moving house")
        began = time.monotonic()
        await site.broker.until_consumers(0)
        assert time.monotonic() - began < 2

    async with worker_process(site) as log:
        await _logged(log, "gate")
        await site.publish(batch(right(question)))
        assert await site.broker.depth(amqp.ATTEMPTS_QUEUE) == 1
        assert await site.broker.consumers() == 0

        assert "moving house" in await said(site, "resume")
        began = time.monotonic()
        await site.broker.until_depth(amqp.ATTEMPTS_QUEUE, 0)
        assert time.monotonic() - began < 2
        await _logged(log, "delivery.settled")
    assert await make.count(site.engine, "study_question_attempts") == 1


async def test_the_first_pause_stands_and_each_is_on_record(site: Site) -> None:
    first = json.loads(await said(site, "pause", "--reason", "one", "--json"))
    again = json.loads(await said(site, "pause", "--reason", "two", "--json"))
    ended = json.loads(await said(site, "resume", "--json"))
    nothing = json.loads(await said(site, "resume", "--json"))

    assert (first["changed"], again["changed"]) == (True, False)
    assert again["reason"] == "one" and again["since"] == first["since"]
    assert ended == {
        "paused": False,
        "changed": True,
        "ended": {key: first[key] for key in ("since", "actor", "reason")},
    }
    assert nothing == {"paused": False, "changed": False}
    lines = await make.rows(site.engine, "SELECT operation FROM ingest_audit ORDER BY id")
    assert [line["operation"] for line in lines] == ["pause", "resume"]


# ------------------------------------------------------------------- void, rescore, erase: asking


async def test_destructive_commands_ask_and_refuse_without_a_terminal(site: Site) -> None:
    (question,) = await make.publish(site.engine, user_id=7)
    uuid = uuid4()
    await Ingest(site.engine, Policy())([sent(wrong(question), uuid=uuid)])
    await site.park(batch(right("nowhere")))
    before = await make.contents(site.engine)

    for words in (
        ("void", str(uuid)),
        ("rescore", str(question.question_id), "--correct-choice", str(WRONG)),
        ("erase", "--user", "7"),
        ("dead", "discard", "--all"),
    ):
        result = await invoke(site, *words)
        assert isinstance(result.exception, NotConfirmed), words
        assert "--yes" in str(result.exception)
    result = await invoke(site, "dead", "discard", "--yes")
    assert isinstance(result.exception, SettingsError) and "--all" in str(result.exception)

    assert await make.contents(site.engine) == before
    assert await site.letters() == 1


@pytest.mark.parametrize("command", ["verify", "rebuild"])
async def test_a_command_that_is_stopped_says_how_to_continue(
    site: Site, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for user_id in (1, 2, 3, 4):
        (question,) = await make.publish(site.engine, user_id=user_id)
        await Ingest(site.engine, Policy())([sent(right(question))])
    real = getattr(repair, command)

    async def until_the_third(engine: AsyncEngine, user_id: int, *others: Any) -> Any:
        if user_id == 3:
            raise DatabaseAway("The database is away.")
        return await real(engine, user_id, *others)

    with monkeypatch.context() as patch:
        patch.setattr(repair, command, until_the_third)
        stopped = await invoke(site, command)
    assert isinstance(stopped.exception, DatabaseAway)
    assert "--after 2" in stopped.stderr

    assert json.loads(await said(site, command, "--after", "2", "--json"))["users"] == 2
    assert json.loads(await said(site, command, "--since", "1h", "--json"))["users"] == 4
    assert json.loads(await said(site, command, "--shard", "2/2", "--json"))["users"] == 2


@pytest.mark.parametrize("shard", ["0/4", "5/4", "4", "1/0", "a/b", "1/-2"])
async def test_a_shard_that_is_none_is_refused(site: Site, shard: str) -> None:
    refused = await invoke(site, "verify", "--shard", shard)
    assert refused.exit_code == 2
    assert "write it as 3/16" in refused.stderr


async def test_void_rescore_erase_and_verify(site: Site) -> None:
    (question,) = await make.publish(site.engine, user_id=7)
    uuid = uuid4()
    ingest = Ingest(site.engine, Policy())
    await ingest([sent(wrong(question, at(0)), uuid=uuid)])
    await ingest([sent(wrong(question, at(1)))])

    assert "Voided 1 attempts of user 7" in await said(site, "void", str(uuid), "--yes")
    assert "nothing to do" in await said(site, "void", str(uuid), "--yes")
    key = str(question.question_id)
    rescored = await said(site, "rescore", key, "--correct-choice", "2", "--yes", "--json")
    assert json.loads(rescored) == {"attempts": 2, "sessions": 2, "progress": 1, "told": 1}
    await said(site, "verify")
    assert "Erased 2 attempts, 2 batches" in await said(site, "erase", "--user", "7", "--yes")
    await said(site, "verify")

    found = await make.rows(site.engine, "SELECT * FROM ingest_audit ORDER BY id")
    assert [line["operation"] for line in found] == ["void", "rescore", "erase"]
    assert all(line["actor"] for line in found)
    unknown = await invoke(site, "void", str(UUID(int=1)), "--yes")
    assert isinstance(unknown.exception, IngestError) and unknown.exception.exit_code == 1


async def test_a_user_or_question_that_nobody_knows_is_an_error(site: Site) -> None:
    for words in (("verify",), ("rebuild",), ("export",)):
        unknown = await invoke(site, *words, "--user", "999")
        assert isinstance(unknown.exception, NoHistory), words
        assert str(unknown.exception) == "User 999 has no study history."
    for command in ("verify", "report", "export", "erase"):
        assert (await invoke(site, command, "--user", str(2**63))).exit_code == 2, command
    unknown = await invoke(site, "rescore", "--pub-id", "nowhere", "--yes")
    assert str(unknown.exception) == "No question is published as 'nowhere'."
    assert (await invoke(site, "rescore", "--yes")).exit_code == 2
    assert (await invoke(site, "rescore", "1", "--pub-id", "x", "--yes")).exit_code == 2


async def test_a_question_is_rescored_by_its_published_id(site: Site) -> None:
    (question,) = await make.publish(site.engine, user_id=7)
    await Ingest(site.engine, Policy())([sent(wrong(question))])
    key = ("--correct-choice", str(WRONG), "--yes")
    assert "Scored 1 attempts" in await said(site, "rescore", "--pub-id", question.pub_id, *key)


async def test_a_reason_that_cannot_be_stored_is_refused(site: Site) -> None:
    for reason in ("\udcff", "two\nlines", "\x1b[31m"):
        refused = await invoke(site, "pause", "--reason", reason)
        assert refused.exit_code == 2 and "one line of printable text" in refused.stderr
    assert await make.count(site.engine, "ingest_pause") == 0


@pytest.mark.parametrize("role", ["", "x" * 64, "a\nb"])
async def test_a_role_that_postgresql_cannot_have_is_refused(site: Site, role: str) -> None:
    refused = await invoke(site, "database-role", role)
    assert isinstance(refused.exception, RoleError)
    assert "SCRAM" not in f"{refused.output}{refused.exception}"


async def test_what_the_database_refuses_is_one_sentence_without_values(site: Site) -> None:
    await make.execute(site.engine, "ALTER TABLE ingest_audit RENAME COLUMN reason TO because")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "audit"),
        env=os.environ | environment(site),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (DatabaseRefused.exit_code, b"")
    assert stderr.decode().startswith("study-ingest: The database refused (column")
    assert stderr.count(b"\n") == 1 and b"SQLSTATE 42703" in stderr


async def test_the_audit_says_who_did_what_and_why(site: Site) -> None:
    (question,) = await make.publish(site.engine, user_id=7)
    await Ingest(site.engine, Policy())([sent(wrong(question))])
    await make.execute(site.engine, "UPDATE study_question_progress SET stability = 99")
    people = {"INGEST_ACTOR": "ada@example.org"}
    assert (await invoke(site, "rebuild", "--reason", "a bad restore", **people)).exit_code == 0
    assert (await invoke(site, "export", "--user", "7")).exit_code == 0
    assert (await invoke(site, "rebuild")).exit_code == 0  # changes nothing: not on record

    (exported, rebuilt) = json.loads(await said(site, "audit", "--json"))["entries"]

    assert (exported["operation"], exported["subject"]) == ("export", "user 7")
    assert (rebuilt["operation"], rebuilt["subject"]) == ("rebuild", "all users")
    assert rebuilt["effect"] == {"users": 1, "progress": 1}
    assert rebuilt["reason"] == "a bad restore"
    assert rebuilt["actor"].startswith("ada@example.org (")
    assert not exported["actor"].startswith("ada")
    assert "rebuild  all users" in await said(site, "audit", "--since", "1h")
    assert "no such entries" in await said(site, "audit", "--operation", "erase")
    refused = await invoke(site, "audit", "--since", "99999999999d")
    assert refused.exit_code == 2 and "write an age" in refused.stderr


async def test_a_change_of_the_schema_or_of_rights_is_in_the_audit(site: Site) -> None:
    head = json.loads(await said(site, "migrate", "--json"))["after"]
    assert json.loads(await said(site, "audit", "--json"))["entries"] == []  # nothing was changed
    await said(site, "migrate", "--to", "0001", "--yes", "--reason", "back")
    await said(site, "migrate", "--reason", "an upgrade")
    (entry,) = json.loads(await said(site, "audit", "--json"))["entries"]
    assert (entry["operation"], entry["subject"], entry["reason"]) == (
        *("migrate", "schema"),
        "an upgrade",
    )
    assert entry["effect"] == {"before": "0001", "after": head}
    role = f"test_{uuid4().hex[:12]}"
    try:
        await said(site, "database-role", role, "--reason", "a new worker")
        (entry, _) = json.loads(await said(site, "audit", "--json"))["entries"]
        assert (entry["subject"], entry["reason"]) == (f"role {role}", "a new worker")
    finally:
        await make.execute(site.engine, f"DROP OWNED BY {role}")
        await make.execute(site.engine, f"DROP ROLE {role}")


# ---------------------------------------------------------------------------------------- dead


async def test_dead_letters_from_the_list_to_the_replay(site: Site) -> None:
    (question,) = await make.publish(site.engine)
    await make.withdraw(site.engine, question)
    lost = batch(right(question))
    await site.park(lost, batch(right("no\x1b[31mwhere"), uuid=UUID(int=2)))

    listed = json.loads(await said(site, "dead", "list", "--json"))
    assert listed["count"] == 2
    assert [(each["reason"], each["letters"]) for each in listed["groups"]] == [
        ("nothing_resolved", 2)
    ]
    single = json.loads(await said(site, "dead", "list", "--letters", "--limit", "1", "--json"))
    assert (single["count"], len(single["letters"])) == (2, 1)
    plain = await said(site, "dead", "list", "--letters", "--newer-than", "1h")
    assert str(lost.client_session_uuid) in plain
    assert "2 dead letters." in await said(site, "dead", "list", "--newer-than", "1h")
    whole = await said(site, "dead", "show", "--uuid", str(UUID(int=2)))
    assert "header app: notes" in whole and "\\u001b[31mwhere" in whole and "\x1b" not in whole
    exported = [json.loads(line) for line in (await said(site, "dead", "export")).splitlines()]
    bodies = {b64decode(each["body_base64"]) for each in exported}
    assert lost.model_dump_json().encode() in bodies and len(bodies) == 2

    await make.execute(site.engine, "UPDATE published SET deleted = false")
    rehearsed = await said(site, "dead", "replay", "--dry-run")
    assert "would be ingested" in rehearsed and "pattern learning" in rehearsed
    assert "A replay would give: 1 ingested, 1 rejected." in rehearsed
    shown = await said(
        site, "dead", "replay", "--dry-run", "--json", "--uuid", str(lost.client_session_uuid)
    )
    assert json.loads(shown)["attempts"][0]["question_id"] == question.question_id
    assert await make.count(site.engine, "study_question_attempts") == 0
    assert await site.letters() == 2

    async with site.working():
        # The worker's log is in this output too.
        out = await said(site, "dead", "replay", "--wait", "--json")
        told = json.loads(out.splitlines()[-1])
    assert told == {
        "replayed": 2,
        "left_out": 0,
        "outcomes": {"ingested": 1, "rejected: nothing_resolved": 1},
    }
    words = ("dead", "discard", "--reason", "nothing_resolved", "--yes", "--json")
    assert json.loads(await said(site, *words)) == {"discarded": 1}
    assert await said(site, "dead", "list") == "There are no dead letters.\n"
    lines = await make.rows(site.engine, "SELECT * FROM ingest_audit ORDER BY id")
    assert [(line["operation"], line["effect"]) for line in lines] == [
        ("dead export", {}),
        ("replay", {"nothing_resolved": 2}),
        ("discard", {"nothing_resolved": 1}),
    ]


async def test_a_replay_of_many_asks(site: Site) -> None:
    await make.execute(
        site.engine,
        "INSERT INTO ingest_dead_letters (key, reason, detail, viewer, routing_key, properties,"
        " body, body_bytes) SELECT sha256(CAST(CAST(n AS text) AS bytea)), 'malformed', '',"
        " 'phone', '', '\\x00000000', '{', 1 FROM generate_series(1, 101) AS n",
    )
    result = await invoke(site, "dead", "replay")
    assert isinstance(result.exception, NotConfirmed)
    assert await make.count(site.engine, "ingest_replays") == 0
    assert "100 dead" in await said(site, "dead", "replay", "--limit", "100", "--rate", "1000")
    assert "1 dead letters are replayed.\n100 were left out" in await said(site, "dead", "replay")
    assert await make.count(site.engine, "ingest_replays") == 101


async def test_what_a_viewer_wrote_can_not_look_like_what_the_command_says(site: Site) -> None:
    forged = "x\nreason: retries_exhausted\nviewer: somebody"
    async with site.working():
        await site.broker.publish(
            f"{{\n{forged}",
            type=forged,
            headers={f"a\n{forged[:60]}": forged, "b": [forged, {"c": forged}]},
        )
        await until(site.letters, bool)
    shown = await said(site, "dead", "show")
    lines = [line for line in shown.splitlines() if line.startswith(("reason:", "viewer:"))]
    assert lines == ["reason: unsupported_version", f"viewer: {VIEWER}"]
    listed = await said(site, "dead", "list")
    assert "retries_exhausted" not in listed


async def test_a_reused_uuid_is_shown_with_the_difference(site: Site) -> None:
    (question,) = await make.publish(site.engine)
    was = batch(right(question))
    async with site.working() as worker:
        await site.publish(was)
        await worker.changed.until(lambda: worker.counts["ingested"] == 1)
    await site.park(was.model_copy(update={"attempts": (wrong(question),)}))

    shown = await said(site, "dead", "show", "--reason", "uuid_reused")

    assert "attempt 0, selected_choice: ingested 1, here 2" in shown


async def test_an_error_is_one_sentence_and_a_code(site: Site) -> None:
    await make.execute(site.engine, "UPDATE study_ingest_version SET version_num = '0001'")
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        "dead",
        "list",
        env=os.environ | environment(site),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 3 and out == b""
    assert err.decode().startswith("study-ingest: The database's schema 0001 is older than")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("age", ["99999999999d", "999999999d", "750000d", "9e9d", "99999w"])
async def test_an_age_beyond_all_history_is_an_answer_or_a_usage_error(
    site: Site, age: str
) -> None:
    for words in (
        ("dead", "list", "--older-than", age),
        ("dead", "list", "--newer-than", age),
        ("audit", "--since", age),
        ("verify", "--since", age),
    ):
        result = await invoke(site, *words)
        assert result.exit_code in (0, 2), (words, result.exception)


@pytest.mark.parametrize("age", ["3", "h", "-1h", "1y"])
def test_an_age_that_can_not_be_read_is_a_usage_error(age: str) -> None:
    result = CliRunner().invoke(app, ["dead", "list", "--older-than", age])
    assert result.exit_code == 2 and "15m" in result.output
