"""JavaScript and the library know the same progress, and say that the same is due."""

import asyncio
import json
import random
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from study_viewer import Attempt, AttemptBatch, Outbox
from study_viewer.schemas.progress import ProgressPage, ProgressRequest
from tests.study_viewer.progress_server import BEGIN, Server

EXAMPLES = Path(__file__).parents[2] / "examples"
DAY = timedelta(days=1)
SCRIPT = """
import { apply, due, tell } from "./progress.mjs";
const { steps, times } = JSON.parse(await new Response(process.stdin).text());
const state = {}, batches = new Map();
const said = steps.map(({ page, batch, result }) => {
  if (page) return apply(state, page);
  if (batch) return void batches.set(batch.client_session_uuid, batch);
  tell(state, result, batches.get(result.client_session_uuid));
  batches.delete(result.client_session_uuid);
});
const found = times.map((at) => due(state, [...batches.values()], Date.parse(at)));
console.log(JSON.stringify({ applied: said.filter((each) => each !== undefined), found }));
"""


def test_node_and_the_browser_share_one_file() -> None:
    """`cp examples/browser-viewer/progress.js examples/node/progress.mjs`."""
    browser, node = EXAMPLES / "browser-viewer/progress.js", EXAMPLES / "node/progress.mjs"
    assert browser.read_text() == node.read_text()


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_due_is_the_same_as_in_the_library(tmp_path: Path, seed: int) -> None:
    if shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    rng = random.Random(seed)
    server = Server()
    steps: list[dict[str, object]] = []
    applied: list[bool] = []
    times = [BEGIN + rng.uniform(0, 60) * DAY for _ in range(5)]
    with Outbox(tmp_path / "viewer.db") as outbox:

        def apply(page: ProgressPage) -> None:
            applied.append(outbox.progress.apply(page))
            steps.append({"page": page.model_dump(mode="json")})

        for _ in range(40):
            user, numbers = rng.choice((1, 2)), set(rng.sample(range(1, 9), 3))
            numbers = {10 * user + number for number in numbers}
            match rng.randrange(6):
                case 0:
                    server.change(user, numbers, rng.randint(1, 30) * DAY)
                case 1:
                    server.forget(user, next(iter(numbers)))
                case 2:
                    number = next(iter(numbers))
                    ids = [(), (f"q-{number}",), (f"q-{number}", f"r-{number}")]
                    server.republish(user, number, rng.choice(ids))
                case 3:
                    batch = AttemptBatch(
                        client_session_uuid=uuid4(),
                        attempts=tuple(
                            Attempt(
                                question_pub_id=f"q-{number}",
                                selected_choice=1,
                                answered_at=(BEGIN + rng.uniform(0, 20) * DAY).isoformat(
                                    timespec="milliseconds"
                                ),
                            )
                            for number in sorted(numbers)
                        ),
                    )
                    with closing(sqlite3.connect(outbox.path)) as connection, connection:
                        outbox.record(connection, batch)
                    steps.append({"batch": batch.model_dump(mode="json")})
                    if rng.random() < 0.7:
                        server.change(user, numbers, rng.randint(1, 30) * DAY)
                        result = server.result(user, batch.client_session_uuid, numbers)
                        assert outbox.settle(result)
                        steps.append({"result": result.model_dump(mode="json")})
                case _:
                    cursor = outbox.progress.cursor(user)
                    pages = server.answer(ProgressRequest(user_id=str(user), cursor=cursor))
                    for page in pages[: rng.randint(1, len(pages))]:
                        apply(page)
        here = [outbox.due(at) for at in times]
    (tmp_path / "progress.mjs").write_text((EXAMPLES / "node/progress.mjs").read_text())
    (tmp_path / "run.mjs").write_text(SCRIPT)
    process = await asyncio.create_subprocess_exec(
        *("node", "run.mjs"),
        cwd=tmp_path,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    given = {"steps": steps, "times": [at.isoformat(timespec="milliseconds") for at in times]}
    out, _ = await process.communicate(json.dumps(given).encode())
    there = json.loads(out)
    assert there["applied"] == applied
    for found, expected in zip(there["found"], here, strict=True):
        assert {
            _comparable(each["user_id"], each["pub_ids"], each["waiting"], each["recall"])
            for each in found
        } == {
            _comparable(each.user_id, each.pub_ids, each.waiting, each.recall) for each in expected
        }


def _comparable(
    user: object, pub_ids: Sequence[str], waiting: bool, recall: float | None
) -> tuple[object, ...]:
    # Whose a question is that only this device knows, the library infers and the examples do not.
    if recall is None:
        return (tuple(pub_ids), waiting)
    return (str(user), tuple(pub_ids), waiting, round(recall, 6))
