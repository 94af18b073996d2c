"""Every command's --json is one object of the shape that is published for it."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests import factories as make
from tests.factories import sent, wrong
from tests.worker.operate.commands import environment, invoke
from tests.worker.operate.conftest import Site
from worker.cli.answers import ANSWERS, document
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest

pytestmark = pytest.mark.broker

PUBLISHED = Path(__file__).parents[3] / "docs" / "commands.schema.json"


def _validated(command: str, text: str) -> dict[str, Any]:
    assert text.count("\n") == 1 or text.startswith("{\n"), "one object, nothing else"
    found = json.loads(text)
    whole = json.loads(document())
    schema = {"$defs": _closed(whole["$defs"]), **_closed(whole["commands"][command])}
    Draft202012Validator(schema).validate(found)
    return dict(found)


def _closed(schema: Any) -> Any:
    """The schema without room for a field that it does not name: the shape is the whole of it."""
    if isinstance(schema, dict):
        closed = {name: _closed(value) for name, value in schema.items()}
        if "properties" in closed:
            closed.setdefault("additionalProperties", False)
        return closed
    return [_closed(each) for each in schema] if isinstance(schema, list) else schema


def test_the_published_shapes_are_current() -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == document(), (
        "run: python -c 'from worker.cli.answers import document; print(document(), end=str())'"
        " > docs/commands.schema.json"
    )


@pytest.mark.parametrize("is_empty", [True, False], ids=["without data", "with data"])
async def test_each_command_prints_its_shape(site: Site, is_empty: bool) -> None:
    if not is_empty:
        (question,) = await make.publish(site.engine, user_id=7)
        await Ingest(site.engine, Policy())([sent(wrong(question))])
        await make.execute(site.engine, "UPDATE study_question_progress SET stability = 99")
    for command in (
        *("migrate", "topology", "settings", "doctor", "pause", "resume", "verify", "rebuild"),
        *("audit", "viewer list"),
    ):
        result = await invoke(site, *command.split(), "--json")
        assert result.exit_code in (0, 1), (command, result.exception)
        _validated(command, result.stdout)


@pytest.mark.parametrize(
    ("command", "variable", "code", "exit_code"),
    [
        ("verify", "INGEST_DATABASE_URL", "database_away", 5),
        ("audit", "INGEST_DATABASE_URL", "database_away", 5),
        ("migrate", "INGEST_DATABASE_URL", "database_away", 5),
        ("topology", "INGEST_MANAGEMENT_URL", "broker_away", 6),
        ("viewer list", "INGEST_MANAGEMENT_URL", "broker_away", 6),
    ],
)
async def test_a_server_that_is_away_is_an_error_in_the_same_form(
    site: Site, command: str, variable: str, code: str, exit_code: int
) -> None:
    away = {
        "INGEST_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere",
        "INGEST_MANAGEMENT_URL": "http://guest:guest@127.0.0.1:1",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", *command.split(), "--json"),
        env=os.environ | environment(site) | {variable: away[variable]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    error = _validated("error", stdout.decode())["error"]
    assert (error["code"], error["exit_code"], process.returncode) == (code, exit_code, exit_code)
    assert stderr.decode().startswith("study-ingest: ") and b"Traceback" not in stderr


def test_every_shape_says_what_it_is() -> None:
    assert all(name == "settings" or shape.__annotations__ for name, shape in ANSWERS.items())
