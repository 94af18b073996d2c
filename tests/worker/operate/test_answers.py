"""Every command's --json is of the shape that is published for it, whatever there is to say.

A new command fails here until its shape is published and it is run with data, without data, and
with each server away.
"""

import asyncio
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch
from uuid import UUID, uuid4

import pytest
import typer
from jsonschema import Draft202012Validator

from schemas import amqp
from schemas.followups import REVIEW
from tests import factories as make
from tests.broker_fixtures import until
from tests.factories import batch, right, sent, wrong
from tests.worker.operate.commands import environment
from tests.worker.operate.conftest import Site
from worker.broker.accounts import Accounts
from worker.cli.answers import ANSWERS, document
from worker.cli.main import app, main
from worker.domain.ids import derived_id
from worker.domain.policy import Policy
from worker.ingest.messages import followup_id
from worker.ingest.transaction import Ingest

pytestmark = pytest.mark.broker

PUBLISHED = Path(__file__).parents[3] / "docs" / "commands.schema.json"

WITHOUT_JSON = {"worker", "relay", "console", "top", "export", "erasures", "dead export"}
"""They run until they are stopped, show a terminal, or print JSON Lines in any case."""
VIEWERS = "viewers.jsonl"
"""The file that `viewer import` reads."""
USER = 7
SESSION = UUID(int=7)
QUESTIONS = "questions.jsonl"
"""The file that `content import` reads."""
OLD_ANSWERS = "answers.jsonl"
"""The file that `answers import` reads: two sessions, of which one is refused."""


# -------------------------------------------------------------------------------- the commands


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


COMMANDS = dict(_commands(typer.main.get_command(app)))


class Run(NamedTuple):
    """A command as it is typed, without --json."""

    command: str
    words: tuple[str, ...] = ()
    shape: str = ""
    """The name of its shape, if that is not the command."""

    @property
    def line(self) -> list[str]:
        with_json = () if self.command in WITHOUT_JSON else ("--json",)
        return [*self.command.split(), *self.words, *with_json]


def _runs(viewer: str, role: str, pub_id: str, exported: Path) -> list[Run]:
    """Every command, in an order in which there is something left for each."""
    questions = str(exported.parent / QUESTIONS)
    return [
        *(Run("migrate"), Run("topology"), Run("settings"), Run("database-role", (role,))),
        Run("reader-role", (role,)),
        Run("content import", (questions,)),
        *(Run("content list"), Run("content list", ("--topic", "1")), Run("content check")),
        *(Run("content withdraw", ("imported",)), Run("content restore", ("imported",))),
        *(Run("content touched"), Run("due", ("--user", str(USER), "--at", "2099-01-01"))),
        *(Run("pause", ("--reason", "a test")), Run("status"), Run("resume"), Run("status")),
        *(Run("doctor"), Run("verify"), Run("rebuild"), Run("report", ("--user", str(USER)))),
        *(Run("batch list"), Run("batch list", ("--viewer", viewer, "--status", "voided"))),
        Run("batch show", (str(SESSION),)),
        Run("dead list"),
        Run("dead list", ("--letters",)),
        Run("dead show"),
        Run("dead replay", ("--dry-run",), "dead replay --dry-run"),
        Run("dead export"),
        Run("dead discard", ("--reason", "malformed", "--yes")),
        Run("dead replay", ("--reason", "nothing_resolved")),
        Run("viewer add", (viewer, "--user", "8")),
        Run("viewer import", (str(exported.parent / VIEWERS),)),
        Run("viewer grant", (viewer, "--user", str(USER))),
        Run("viewer rotate", (viewer,)),
        Run("viewer upgrade", (viewer,)),
        Run("viewer list"),
        Run("viewer revoke", (viewer, "--user", "8")),
        Run("viewer revoke", (viewer,)),
        Run("rescore", ("--pub-id", pub_id, "--correct-choice", "2", "--yes")),
        Run("void", (str(SESSION), "--yes")),
        Run("import", (str(exported),)),
        Run("answers import", (str(exported.parent / OLD_ANSWERS),)),
        Run("erase", ("--user", str(USER), "--yes")),
        Run("recall", ("--since", "1d", "--no-erasures", "--reason", "a test", "--yes")),
        Run("prune", ("--results", "1d", "--yes")),
        Run("audit"),
    ]


def test_every_command_is_run_here_and_has_a_shape() -> None:
    run = {each.command for each in _runs("", "", "", Path())}
    with_json = {
        name
        for name, command in COMMANDS.items()
        if any("--json" in each.opts for each in command.params)
    }
    assert with_json == COMMANDS.keys() - WITHOUT_JSON
    assert with_json <= run and with_json <= ANSWERS.keys()
    assert {name.partition(" --")[0] for name in ANSWERS} <= COMMANDS.keys() | {"error"}


# ------------------------------------------------------------------------------- the way there


def _typed(words: list[str], variables: dict[str, str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the program."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["study-ingest", *words]),
        patch.dict("os.environ", variables),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


async def typed(site: Site, words: list[str], **variables: str) -> tuple[int, str, str]:
    return await asyncio.to_thread(_typed, words, environment(site) | variables)


def _closed(schema: Any) -> Any:
    """The schema without room for a field that it does not name: the shape is the whole of it."""
    if isinstance(schema, dict):
        closed = {name: _closed(value) for name, value in schema.items()}
        if "properties" in closed:
            closed.setdefault("additionalProperties", False)
        return closed
    return [_closed(each) for each in schema] if isinstance(schema, list) else schema


WHOLE = json.loads(document())


def validated(shape: str, text: str) -> list[dict[str, Any]]:
    """The object on each line, each of this shape."""
    schema = {"$defs": _closed(WHOLE["$defs"]), **_closed(WHOLE["commands"][shape])}
    found = [json.loads(line) for line in text.splitlines()]
    for each in found:
        Draft202012Validator(schema).validate(each)
    return found


def one(shape: str, text: str) -> dict[str, Any]:
    """The only object, of this shape."""
    (found,) = validated(shape, text)
    return found


CHANGES = {
    *("database-role", "pause", "resume", "rebuild", "rescore", "void", "import", "erase"),
    *("export", "dead export", "discard", "replay", "prune"),
    *("viewer add", "viewer import", "viewer grant", "viewer rotate", "viewer revoke"),
    "viewer upgrade",
    *("reader-role", "content import", "content withdraw", "content restore"),
    "answers import",
    "recall",
}
FINDS_SOMETHING = {"status", "verify", "answers import"}
STREAMS = {"viewer import", "dead show", "dead export", "dead replay --dry-run"}


@pytest.fixture
async def names(site: Site, tmp_path: Path) -> Any:
    """A viewer and a role, which are the whole servers', and so must go."""
    viewer, role = f"test-{uuid4().hex[:12]}", f"test_{uuid4().hex[:12]}"
    (tmp_path / QUESTIONS).write_text(
        '{"pub_id": "imported", "topic": "x", "user_id": 7, "correct_choice": 1}\n'
    )
    old = {"pub_id": "imported", "selected_choice": 1, "answered_at": "2026-01-01T00:00:00Z"}
    (tmp_path / OLD_ANSWERS).write_text(
        "".join(json.dumps(old | {"user_id": user}) + "\n" for user in (7, 8))
    )
    (tmp_path / VIEWERS).write_text(
        "".join(json.dumps({"viewer": viewer, "user_id": user}) + "\n" for user in (8, 9))
    )
    yield viewer, role
    async with Accounts(site.settings) as accounts:
        if viewer in await accounts.users():
            await accounts.delete_user(viewer)
    known = "SELECT rolname FROM pg_roles WHERE rolname = :role"
    if await make.rows(site.engine, known, role=role):
        await make.execute(site.engine, f"DROP OWNED BY {role}")
        await make.execute(site.engine, f"DROP ROLE {role}")


# ----------------------------------------------------------------------------------- the tests


def test_the_published_shapes_are_current() -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == document(), (
        "run: python -c 'from worker.cli.answers import document; print(document(), end=str())'"
        " > docs/commands.schema.json"
    )


def test_every_shape_says_what_it_is() -> None:
    assert all(name == "settings" or shape.__annotations__ for name, shape in ANSWERS.items())


async def test_each_command_prints_its_shape_with_data(
    site: Site, names: tuple[str, str], tmp_path: Path
) -> None:
    question, other, withdrawn = await make.publish(site.engine, 3, user_id=USER)
    ingest = Ingest(site.engine, Policy())
    answers = [*(wrong(question) for _ in range(5)), right(other), right("nowhere")]
    was = batch(*answers, uuid=SESSION)
    await ingest([make.incoming(was), sent(wrong(question))])
    await make.withdraw(site.engine, withdrawn)
    await site.park(
        batch(right(withdrawn)), was.model_copy(update={"attempts": (right(question),)})
    )
    await make.execute(site.engine, "UPDATE published SET deleted = false")
    async with site.working():
        await site.broker.publish(b"{", user_id=None)
        await until(site.letters, (3).__eq__)
    code, lines, _ = await typed(site, ["export"])
    assert code == 0
    exported = tmp_path / "log.jsonl"
    exported.write_text(lines, encoding="utf-8")
    await make.execute(site.engine, "UPDATE study_question_progress SET stability = 99")
    # An answer to `other` was scored by another key.
    await make.execute(
        site.engine,
        "UPDATE study_questions SET correct_choice = 9 WHERE id = :id",
        id=other.question_id,
    )

    # A partition that is not used any more, and that something still leads to.
    channel = await site.broker.channel()
    old = await channel.declare_queue(amqp.partition_queue(1), durable=True)
    await old.bind("amq.direct")

    # A job that waits, and a worker that was killed.
    session = str(derived_id(SESSION, str(question.topic_id)))
    await make.execute(
        site.engine,
        "INSERT INTO outbox (message_id, exchange, routing_key, type, headers, body)"
        " SELECT :id, 'study.followups', 'review.requested', 'x', '{}',"
        " CAST(jsonb_build_object('quiz_session_id', CAST(:session AS text)) AS text)",
        id=followup_id(REVIEW, session),
        session=session,
    )
    await make.execute(
        site.engine,
        "INSERT INTO ingest_workers VALUES ('h:1:a', '1', now(), now(), 'consuming', 0, NULL)",
    )
    await make.execute(
        site.engine, f"INSERT INTO ingest_leases VALUES ('{old.name}', 'h:1:a', 'infinity')"
    )

    empty, full = set(), set()
    for run in _runs(*names, question.pub_id, exported):
        code, out, err = await typed(site, run.line)
        if run.command != "doctor":  # which looks at the machine too
            assert code == (1 if run.command in ("status", "verify", "answers import") else 0), (
                run,
                out,
                err,
            )
        shape = run.shape or run.command
        found = validated(shape, out)
        assert len(found) == 1 or shape in STREAMS, (run, out)
        for each in found:
            empty |= {f"{shape}: {name}" for name in each if each[name] == []}
            full |= {f"{shape}: {name}" for name in each if each[name]}
        if run.command == "audit":
            # Everything that was changed above, and everything that was exported.
            assert {each["operation"] for each in found[0]["entries"]} == CHANGES
    # Each list had an element once, or the shape of its elements was not validated.
    assert empty <= full


async def test_each_command_prints_its_shape_without_data(
    site: Site, names: tuple[str, str], tmp_path: Path
) -> None:
    nothing = tmp_path / "none.jsonl"
    nothing.write_text('{"record": "export", "version": 2}\n', encoding="utf-8")
    failed = set()
    for run in _runs(*names, "nowhere", nothing):
        code, out, err = await typed(site, run.line)
        if code in (0, 1) and not out.startswith('{"error"'):
            found = validated(run.shape or run.command, out)
            assert len(found) == 1 or (run.shape or run.command) in STREAMS, (run, out, err)
        else:
            (error,) = validated("error", out)
            assert error["error"]["exit_code"] == code
            assert err.startswith("study-ingest: ") and err.count("\n") == 1
            failed.add(run.command)
    assert failed == {"batch show", "due", "report", "rescore", "void"}


BROKER_IS_NEEDED = {
    "topology",
    "recall",
    *(name for name in COMMANDS if name.startswith("viewer ")),
}
"""Grants alone, which are rows, can be revoked without it."""
NEITHER_IS_NEEDED = {"settings"}
TELLS_OF_IT = {"status", "doctor"}
AWAY = {
    "database": {"INGEST_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere"},
    "broker": {
        "INGEST_AMQP_URL": "amqp://guest:guest@127.0.0.1:1/",
        "INGEST_MANAGEMENT_URL": "http://guest:guest@127.0.0.1:1",
    },
}


@pytest.mark.parametrize("server", AWAY)
async def test_each_command_says_that_a_server_is_away_in_the_same_form(
    site: Site, names: tuple[str, str], tmp_path: Path, server: str
) -> None:
    (question,) = await make.publish(site.engine, user_id=USER)
    await Ingest(site.engine, Policy())([sent(wrong(question), uuid=SESSION)])
    nothing = tmp_path / "none.jsonl"
    nothing.write_text('{"record": "export", "version": 2}\n', encoding="utf-8")
    exit_code = {"database": 5, "broker": 6}[server]
    for run in [*_runs(*names, question.pub_id, nothing), Run("export")]:
        code, out, err = await typed(site, run.line, **AWAY[server])
        if run.command in TELLS_OF_IT:
            validated(run.command, out)
            assert code == (exit_code if run.command == "status" else 1)
            continue
        is_needed = (
            run.command in BROKER_IS_NEEDED
            and not (run.command == "viewer revoke" and "--user" in run.words)
            if server == "broker"
            else run.command not in NEITHER_IS_NEEDED | {"topology"}
        )
        if not is_needed:
            assert code in (0, 1, 2) and "away" not in err, (run, err)
            continue
        assert (code, err.count("\n")) == (exit_code, 1), (run, out, err)
        assert err.startswith("study-ingest: ")
        if run.command in WITHOUT_JSON:
            assert out == ""
        else:
            (error,) = validated("error", out)
            assert error["error"]["code"] == f"{server}_away"
            assert "127.0.0.1:1" in error["error"]["found"] and error["error"]["remedy"]


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (["verify", "--no-such"], "usage_error", 2),
        (["no-such-command"], "usage_error", 2),
        (["verify", "--shard", "5/4"], "usage_error", 2),
        (["erase", "--user", "x"], "usage_error", 2),
        (["dead", "show", "--reason", "a whim"], "usage_error", 2),
        (["migrate", "--to", "base"], "not_confirmed", 2),
        (["dead", "discard"], "settings_error", 2),
    ],
)
async def test_a_line_that_is_not_valid_is_an_error_in_the_same_form(
    site: Site, words: list[str], code: str, exit_code: int
) -> None:
    ended, out, err = await typed(site, [*words, "--json"])
    (error,) = validated("error", out)
    assert (error["error"]["code"], ended) == (code, exit_code) and error["error"]["remedy"]
    assert err and "Traceback" not in err


async def test_an_answer_of_no_is_an_error_in_the_same_form(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    ended, out, _ = await typed(site, ["void", str(SESSION), "--json"])
    (error,) = validated("error", out)
    assert (error["error"]["code"], ended) == ("declined", 1)
