"""What a viewer, or anybody with the right to write, can put into a terminal or a page: nothing.

Each value that is not ours stays on its own line, and without control characters.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from schemas import amqp
from tests import factories as make
from tests.broker_fixtures import until
from tests.factories import batch, right, sent
from tests.worker.operate.commands import invoke
from tests.worker.operate.conftest import Site
from worker.cli import main
from worker.domain.policy import Policy
from worker.errors import IngestError
from worker.ingest.transaction import Ingest

pytestmark = pytest.mark.broker

FORGED = "eve\nforged: a\r\x1b[2K\x1b[31mforged: b\u2028forged: c\x85forged: d<script>alert(1)"
UUID_ = UUID(int=7)


async def invite(site: Site, word: str = FORGED) -> None:
    """Puts a word wherever somebody else may write something."""
    (question,) = await make.publish(site.engine, user_id=7)
    await Ingest(site.engine, Policy())([sent(right(question))])
    short = word.encode()[:200].decode(errors="ignore")  # names and keys have 255 bytes at most
    messages = [
        batch(right("nowhere"), uuid=UUID_).model_dump_json(),
        json.dumps({"client_session_uuid": word, "attempts": [{word: word}]}),
        word,
    ]
    async with site.working():
        for body in messages:
            await site.broker.publish(
                body,
                routing_key=f"attempts.v1.{short}",
                headers={
                    short: word,
                    amqp.CLIENT_SESSION_UUID_HEADER: word,
                    "x-death": word,
                },
                content_encoding=None if "nowhere" in body else short,
                app_id=short,
                correlation_id=short,
                reply_to=short,
            )
        await until(site.letters, len(messages).__eq__)
    await make.grant(site.engine, word, 7)
    for sql in (
        "UPDATE study_topics SET name = :word",
        "INSERT INTO study_topics (user_id, name) VALUES (7, :word)",
        "INSERT INTO study_question_texts (study_question_id, title) SELECT id, :word"
        " FROM study_questions",
        "UPDATE published SET pub_id = left(CAST(:word AS text), 120)",
        "INSERT INTO ingest_audit (actor, operation, subject, reason, effect)"
        " SELECT word, word, word, word, jsonb_build_object(word, word)"
        " FROM (SELECT CAST(:word AS text)) AS said (word)",
        "INSERT INTO ingest_pause (actor, reason)"
        " SELECT word, word FROM (SELECT CAST(:word AS text)) AS said (word)",
        "UPDATE ingest_dead_letters SET viewer = word, detail = detail || word"
        " FROM (SELECT CAST(:word AS text)) AS said (word)",
    ):
        await make.execute(site.engine, sql, word=word)


COMMANDS = (
    ("status",),
    ("doctor",),
    ("audit",),
    ("viewer", "list"),
    ("dead", "list"),
    ("dead", "list", "--letters"),
    ("dead", "show"),
    ("dead", "replay", "--dry-run"),
    ("content", "list"),
    ("content", "list", "--topic", "1"),
    ("content", "check"),
    ("due", "--user", "7", "--at", "2099-01-01"),
    ("verify",),
    ("pause", "--reason", "again"),
    ("resume",),
    ("viewer", "grant", FORGED, "--user", "7"),
    ("viewer", "revoke", FORGED),
    ("dead", "show", "--uuid", str(UUID_), "--viewer", FORGED),
)


async def test_no_command_prints_another_s_words_as_its_own(site: Site) -> None:
    await invite(site)
    shown = {}
    for words in COMMANDS:
        result = await invoke(site, *words)
        assert result.exception is None or isinstance(result.exception, SystemExit | IngestError), (
            words
        )
        shown[words] = result.stdout + result.stderr
    for words, said in shown.items():
        for line in said.split("\n"):
            assert line.isprintable(), (words, line)
            # A body keeps its lines, but nothing of ours in `dead show` begins with spaces.
            begins = line if words[:2] == ("dead", "show") else line.lstrip()
            assert not begins.startswith("forged"), (words, line)
    for command in (*COMMANDS[2:10], COMMANDS[11], COMMANDS[13]):
        assert "eve" in shown[command], command


def test_nor_does_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: Any) -> None:
        raise IngestError(FORGED)

    entry = import_module("worker.cli.main")
    monkeypatch.setattr(entry, "app", fail)
    monkeypatch.setattr(entry, "start_without_collecting", lambda: None)
    with pytest.raises(SystemExit):
        main()
    (line,) = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert line.startswith("study-ingest: eve") and line.isprintable()


async def test_no_page_runs_another_s_words(site: Site, tmp_path: Path) -> None:
    await invite(site)
    page = tmp_path / "report.html"
    result = await invoke(site, "report", "--user", "7", "--html", str(page))
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert "&lt;script&gt;alert(1)" in text and "<script>alert" not in text
