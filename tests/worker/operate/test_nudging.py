"""After a command, the devices of the users whose progress it has changed are nudged."""

import json
from uuid import uuid4

import pytest

from schemas import amqp
from tests import factories as make
from tests.factories import RIGHT, right, sent, wrong
from tests.worker.operate.commands import invoke
from tests.worker.operate.conftest import Site
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest

pytestmark = pytest.mark.broker
USER = 7


async def _nudges(site: Site) -> list[tuple[str, int]]:
    """(user, version) of those that wait for the phone."""
    queue = await (await site.broker.channel()).get_queue(amqp.progress_queue("phone"))
    found = []
    while (message := await queue.get(no_ack=True, fail=False)) is not None:
        assert message.type == amqp.PROGRESS_NUDGE_TYPE
        told = json.loads(message.body)
        found.append((told["user_id"], told["version"]))
    return found


async def test_each_command_that_changes_progress_nudges_the_user_s_devices(site: Site) -> None:
    queue = await (await site.broker.channel()).declare_queue(
        amqp.progress_queue("phone"), durable=True
    )
    await queue.bind(amqp.RESULTS_EXCHANGE, amqp.progress_key("phone"))
    first, second = await make.publish(site.engine, 2, user_id=USER)
    for user_id in (USER, 8):
        await make.grant(site.engine, "phone", user_id)
    await make.execute(site.engine, "UPDATE viewer_grants SET asked_at = now()")
    uuid = uuid4()
    ingest = Ingest(site.engine, Policy())
    await ingest([sent(right(first), viewer="phone"), sent(wrong(second), viewer="phone")])
    await ingest([sent(wrong(first, make.at(1)), uuid=uuid, viewer="phone")])

    await invoke(site, "rebuild")
    assert await _nudges(site) == []  # nothing was wrong
    spoilt = "UPDATE study_question_progress SET stability = 9"
    newest = 0
    for words in (
        ("void", str(uuid), "--yes"),
        ("rescore", "--pub-id", second.pub_id, "--correct-choice", str(RIGHT + 1), "--yes"),
        ("rebuild",),
        ("content", "withdraw", first.pub_id),
        ("content", "restore", first.pub_id),
        ("content", "touched"),
        ("erase", "--user", str(USER), "--yes"),
    ):
        if words == ("rebuild",):
            await make.execute(site.engine, spoilt)
        done = await invoke(site, *words)
        assert done.exit_code == 0, done.output
        ((user, version),) = await _nudges(site)
        assert user == str(USER)
        assert version > newest
        newest = version


async def test_without_a_broker_the_command_does_its_work(site: Site) -> None:
    (question,) = await make.publish(site.engine, user_id=USER)
    await make.grant(site.engine, "phone", USER)
    await make.execute(site.engine, "UPDATE viewer_grants SET asked_at = now()")
    uuid = uuid4()
    await Ingest(site.engine, Policy())([sent(right(question), uuid=uuid, viewer="phone")])
    nowhere = "amqp://guest:guest@127.0.0.1:1/"
    done = await invoke(site, "void", str(uuid), "--yes", INGEST_AMQP_URL=nowhere)
    assert done.exit_code == 0, done.output
    assert await make.count(site.engine, "study_question_progress") == 0
