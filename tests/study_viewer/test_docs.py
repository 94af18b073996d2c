"""The programs in docs/viewers.md run, its messages are valid, and its tables are complete."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from study_viewer.asking import NOBODY_ANSWERS
from study_viewer.schemas.amqp import viewer_of_key
from study_viewer.schemas.attempt_batch import decode
from study_viewer.schemas.ingest_result import IngestResult
from study_viewer.schemas.words import RejectReason, SkipReason, Status, TimeWas
from tests.study_viewer.support import Broker, make_result

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "viewers.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


def test_every_code_block_is_tested() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "json", "sh"}
    assert len(blocks("json")) == 2


def test_the_messages_are_messages() -> None:
    batch, result = blocks("json")
    assert len(decode(batch.encode()).attempts) == 2
    assert IngestResult.model_validate_json(result).status is Status.INGESTED


@pytest.mark.parametrize("words", [Status, SkipReason, TimeWas, RejectReason])
def test_every_word_is_explained_in_a_table(
    words: type[Status | SkipReason | TimeWas | RejectReason],
) -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert set(words) <= rows
    assert rows == set(Status) | set(SkipReason) | set(TimeWas) | set(RejectReason)


@pytest.mark.broker
async def test_the_programs_run(broker: Broker, tmp_path: Path) -> None:
    async def work() -> None:
        while True:
            message = await broker.next()
            viewer = viewer_of_key(message.routing_key or "")
            assert viewer is not None
            uuid = decode(message.body).client_session_uuid
            await broker.answer(make_result(uuid), viewer)

    await broker.consume()
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks("python")))
    working = asyncio.create_task(work())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(program)),
        cwd=tmp_path,
        env=os.environ | {"INGEST_AMQP_URL": broker.url, "PYTHONPATH": str(CHECKOUT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    working.cancel()
    # Nobody answers requests for progress here. A program that runs for long says so.
    said = [each for each in errors.decode().splitlines() if each != NOBODY_ANSWERS]
    assert (process.returncode, said) == (0, [])
    first, shown, last = output.decode().splitlines()
    assert first == "ingested None"
    assert shown.endswith("counted; 0 questions newly known, 0 answers left out")
    assert last == "ingested"
