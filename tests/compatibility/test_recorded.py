"""Batches as viewers sent them once, byte for byte: each must come to what it came to then.

A file in `v1/` has the `body`, the AMQP `properties`, and the `result` that was told. A file
without a result gets this version's when the test is run with RECORD=1, and is never changed
again: somewhere there is a viewer that sends just that. Files are taken in order, by one worker,
on one database.
"""

import json
import os
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from chaos.evidence import Evidence, Recorded, read_database
from chaos.expected import verdict
from schemas import amqp
from schemas.words import SkipReason
from tests import factories
from tests.broker_fixtures import VIEWER, Broker
from tests.compatibility.bank import ROWS
from tests.whole_worker import working

FILES: Final = sorted((Path(__file__).parent / "v1").glob("*.json"))


def told_for_good(body: bytes) -> dict[str, Any]:
    """The result without what may differ: the time of receipt, the sentence for a person."""
    result = json.loads(body)
    assert result.pop("received_at")
    result.pop("detail", None)
    return dict(result)


def holds(told: Any, recorded: Any) -> bool:
    """Whether all that was told then is told now; a later version may tell more."""
    if isinstance(recorded, dict):
        return all(key in told and holds(told[key], recorded[key]) for key in recorded)
    if isinstance(recorded, list):
        return len(told) == len(recorded) and all(map(holds, told, recorded))
    return bool(told == recorded)


@pytest.mark.broker
async def test_every_recorded_batch_is_taken_as_it_was(broker: Broker, engine: AsyncEngine) -> None:
    for statement in ROWS.split(";"):
        await factories.execute(engine, statement)
    results = await (await broker.channel()).declare_queue(amqp.results_queue(VIEWER), durable=True)
    await results.bind(amqp.RESULTS_EXCHANGE, amqp.result_key(VIEWER))
    differing = {}
    async with working(broker.settings, engine):
        for path in FILES:
            recording = json.loads(path.read_text(encoding="utf-8"))
            await broker.publish(recording["body"], **recording["properties"])
            told = told_for_good((await broker.take(results.name)).body)
            if "result" not in recording and os.environ.get("RECORD"):
                recording["result"] = told
                text = json.dumps(recording, indent=2, ensure_ascii=False) + "\n"
                path.write_text(text, encoding="utf-8")
            if not holds(told, recording["result"]):
                differing[path.name] = told
    assert differing == {}


async def test_the_chaos_checker_reads_every_recorded_batch_as_the_worker_did(
    engine: AsyncEngine, database_url: str
) -> None:
    """The checker's rules are a second implementation, so a new rule must be taught to both."""
    for statement in ROWS.split(";"):
        await factories.execute(engine, statement)
    evidence = Evidence()
    await read_database(evidence, database_url)
    for path in FILES:
        recording = json.loads(path.read_text(encoding="utf-8"))
        result = recording["result"]
        if result.get("reason") == "uuid_reused":  # which is not a matter of the batch alone
            continue
        uuid, body = UUID(result["client_session_uuid"]), json.loads(recording["body"])
        found = verdict(Recorded("viewer", uuid, b"", body, "settled", None, 1), evidence.published)
        assert found.reason == result.get("reason"), path.name
        if found.reason is None:
            assert found.skipped == result["skipped"], path.name


def test_the_recordings_are_of_every_kind() -> None:
    results = [json.loads(path.read_text(encoding="utf-8"))["result"] for path in FILES]
    assert {result["status"] for result in results} == {"ingested", "already_ingested", "rejected"}
    assert len(results) >= 12
    reasons = {each["reason"] for result in results for each in result.get("skipped", [])}
    # Only an operator's command leads to `erased`: see tests/worker/operate.
    assert reasons == set(SkipReason) - {SkipReason.ERASED}
