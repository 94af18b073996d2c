"""A viewer learns which of its own batches the server has, and nothing of anybody else's."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.checks import MAX_CHECKED, Checked
from schemas.progress import ProgressRefusal
from schemas.words import RefusalReason
from tests import factories as make
from tests.broker_fixtures import until
from tests.factories import right, sent, wrong
from tests.whole_worker import Viewers, working
from tests.worker.progress.test_requests import Phone
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.operate.erase import Survey, erase
from worker.progress.requests import Request, answer
from worker.settings import Settings
from worker.store import versions
from worker.store.audit import By
from worker.store.engine import transaction

pytestmark = pytest.mark.broker

USER, OTHER = 42, 43


async def checked(engine: AsyncEngine, viewer: str, *uuids: UUID) -> Checked:
    (told,) = await answer(engine, Request(viewer, "asked", check=uuids), lambda *_: None)
    assert told.routing_key == amqp.result_key(viewer)
    properties = told.properties
    assert (properties.message_type, properties.correlation_id) == (amqp.CHECKED_TYPE, "asked")
    assert properties.delivery_mode == 1 and properties.expiration is not None
    return Checked.model_validate_json(told.body)


async def test_a_viewer_learns_of_its_own_and_its_users_batches_and_of_no_others(
    engine: AsyncEngine,
) -> None:
    (mine,) = await make.publish(engine, user_id=USER)
    (theirs,) = await make.publish(engine, user_id=OTHER)
    for viewer, user in (("phone", USER), ("tablet", USER), ("stranger", OTHER)):
        await make.grant(engine, viewer, user)
    by = {
        "phone": sent(right(mine), viewer="phone"),
        "tablet": sent(wrong(mine), viewer="tablet"),
        "stranger": sent(right(theirs), viewer="stranger"),
        "rejected": sent(right("nowhere"), viewer="phone"),
        "theirs rejected": sent(right("nowhere"), viewer="stranger"),
    }
    await Ingest(engine, Policy())([*by.values()])
    uuids = {name: each.client_session_uuid for name, each in by.items()}
    lost = uuid4()
    asked = [*(uuid for uuid in uuids.values() if uuid), lost]

    told = await checked(engine, "phone", *asked)
    assert [*told.has] == [uuids["phone"], uuids["tablet"], uuids["rejected"]]
    assert [*told.missing] == [uuids["stranger"], uuids["theirs rejected"], lost]
    async with transaction(engine) as connection:
        assert told.epoch == (await versions.draw(connection)).epoch

    # Without its grant it keeps what it sent itself. Erased is what nobody may have again.
    await make.execute(engine, "DELETE FROM viewer_grants WHERE viewer = 'phone'")
    told = await checked(engine, "phone", *asked)
    assert [*told.has] == [uuids["phone"], uuids["rejected"]]
    await erase(engine, OTHER, Survey(0, 0), By("tests", ""))
    told = await checked(engine, "phone", *asked)
    assert uuids["stranger"] in told.has
    assert (await checked(engine, "nobody", lost)).missing == (lost,)


BAD: dict[str, Any] = {
    "none": {"client_session_uuids": []},
    "too many": {"client_session_uuids": [str(UUID(int=n)) for n in range(MAX_CHECKED + 1)]},
    "no uuid": {"client_session_uuids": ["me"]},
    "numbers": {"client_session_uuids": [1]},
    "not a list": {"client_session_uuids": str(uuid4())},
    "too large": {"client_session_uuids": [str(uuid4())], "more": "x" * 5_000},
}


async def test_checks_are_answered_where_results_go_and_bad_ones_refused(
    viewers: Viewers, settings: Settings, engine: AsyncEngine
) -> None:
    login = await viewers.add(USER)
    key = amqp.progress_request_key(login.name)
    uuid = uuid4()
    async with working(settings, engine), Phone.of(login) as phone:
        results = await phone._channel.get_queue(amqp.results_queue(login.name), ensure=False)

        async def told() -> Any:
            return await results.get(no_ack=True, fail=False)

        # With a type of any minor version, and without one, as through MQTT.
        many = {"client_session_uuids": [str(uuid), str(uuid).upper()]}
        for properties in ({"type": amqp.CHECK_TYPE}, {"type": f"{amqp.CHECK_TYPE}.1"}, {}):
            await phone.send(key, json.dumps(many), message_id="mine", **properties)
            message = await until(told, bool)
            assert (message.type, message.correlation_id) == (amqp.CHECKED_TYPE, "mine")
            assert Checked.model_validate_json(message.body).missing == (uuid,)

        for name, body in BAD.items():
            await phone.send(key, json.dumps(body), type=amqp.CHECK_TYPE, message_id="bad")
            refusal = await phone.next()
            assert refusal.correlation_id == "bad", name
            reason = ProgressRefusal.model_validate_json(refusal.body).reason
            assert reason is RefusalReason.MALFORMED, name
        await phone.send(key, json.dumps(many), type="study.check.v2")
        refusal = await phone.next()
        reason = ProgressRefusal.model_validate_json(refusal.body).reason
        assert reason is RefusalReason.UNSUPPORTED_VERSION
        # A check is no request for progress: beside one, both are answered.
        await phone.send(key, json.dumps(many), type=amqp.CHECK_TYPE)
        await phone.refresh()
        await until(told, bool)
