"""Every kind of follow-up job is complete: these tests fail if a place is forgotten."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from schemas import amqp
from schemas.documents import asyncapi
from schemas.followups import KINDS, Kind
from worker.broker.topology import wanted
from worker.ingest.followups import FOLLOWUPS
from worker.settings import Settings

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
