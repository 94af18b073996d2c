"""Every kind of follow-up job is complete: these tests fail if a place is forgotten."""

from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.documents import asyncapi
from schemas.followups import EXPLANATION, KINDS, REVIEW, Kind
from tests import factories as make
from tests.factories import right, sent, wrong
from worker.broker.topology import wanted
from worker.domain.policy import Policy
from worker.errors import SettingsError
from worker.ingest.followups import FOLLOWUPS
from worker.ingest.transaction import Ingest
from worker.operate.repair import verify
from worker.operate.rescore import rescore
from worker.settings import Settings, load_settings
from worker.store.audit import By

DOCS = Path(__file__).parents[3] / "docs"


def test_the_worker_has_rules_for_each_kind_and_no_other() -> None:
    assert tuple(followup.kind for followup in FOLLOWUPS) == KINDS


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.routing_key)
def test_each_kind_has_a_queue_a_channel_and_a_place_in_the_documents(kind: Kind) -> None:
    topology = wanted(
        Settings(database_url=SecretStr("postgresql://unused"), amqp_url=SecretStr("amqp://unused"))
    )
    queue = amqp.followups_queue(kind.routing_key)
    assert queue in {each.name for each in topology.queues}
    assert kind.routing_key in {
        binding.routing_key for binding in topology.bindings if binding.queue == queue
    }
    addresses = {channel["address"] for channel in asyncapi()["channels"].values()}
    assert kind.routing_key in addresses
    # Whoever writes a consumer finds it: `user_id` and `quiz_session_id` are in every job, which
    # a rehearsal and the erasure of a user rest on.
    assert {"user_id", "quiz_session_id"} <= set(kind.model.model_fields)
    assert kind.routing_key in (DOCS / "contract.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [
        (None, [EXPLANATION.routing_key, REVIEW.routing_key]),
        ((REVIEW.routing_key,), [REVIEW.routing_key]),
        ((), []),
    ],
)
async def test_only_wanted_kinds_are_written_and_progress_does_not_depend_on_it(
    engine: AsyncEngine, wanted: tuple[str, ...] | None, keys: list[str]
) -> None:
    policy = Policy(followups=wanted, stuck_attempts_never_correct=1)
    first, second = await make.publish(engine, 2)
    await Ingest(engine, policy)([sent(wrong(first), right(second))])
    assert [row["routing_key"] for row in await _jobs(engine)] == keys
    (row,) = await make.rows(
        engine,
        "SELECT explanation_requested FROM study_question_progress WHERE study_question_id = :id",
        id=first.question_id,
    )
    assert row["explanation_requested"]
    assert await verify(engine, 1, Policy(stuck_attempts_never_correct=1)) == []

    await make.execute(engine, "DELETE FROM outbox")
    await rescore(engine, second.question_id, 9, policy, By("tests", ""))
    expected = [key for key in keys if key == EXPLANATION.routing_key]
    assert [row["routing_key"] for row in await _jobs(engine)] == expected


async def _jobs(engine: AsyncEngine) -> list[dict[str, object]]:
    return await make.rows(
        engine, "SELECT routing_key FROM outbox WHERE exchange = 'study.followups' ORDER BY id"
    )


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("", ()),
        (" review.requested ", (REVIEW.routing_key,)),
        (
            "explanation.requested,review.requested",
            (EXPLANATION.routing_key, REVIEW.routing_key),
        ),
    ],
)
def test_the_setting_names_the_kinds(
    monkeypatch: pytest.MonkeyPatch, text: str, kinds: tuple[str, ...]
) -> None:
    monkeypatch.setenv("INGEST_DATABASE_URL", "postgresql://unused")
    monkeypatch.setenv("INGEST_AMQP_URL", "amqp://unused")
    monkeypatch.setenv("INGEST_FOLLOWUPS", text)
    assert load_settings().followups == kinds
    wanted = load_settings().policy().wants
    assert tuple(each.routing_key for each in KINDS if wanted(each.routing_key)) == kinds
    monkeypatch.setenv("INGEST_FOLLOWUPS", "review.request")
    with pytest.raises(SettingsError, match=r"INGEST_FOLLOWUPS.*'review.request' is no kind"):
        load_settings()
