"""The topology: applied twice, checked, and every unsafe thing refused in one sentence."""

from typing import Any

import pytest

from tests.broker_fixtures import Broker
from worker.broker import topology
from worker.broker.management import Management
from worker.errors import TopologyError

pytestmark = pytest.mark.broker


async def refusal(management: Management, broker: Broker, **changed: Any) -> str:
    """The sentence with which `check` refuses the broker."""
    with pytest.raises(TopologyError) as raised:
        await topology.check(management, broker.settings.model_copy(update=changed))
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


async def test_applying_creates_everything_and_again_changes_nothing(
    bare_broker: Broker, management: Management
) -> None:
    first = await topology.apply(management, bare_broker.settings)
    await topology.check(management, bare_broker.settings)
    again = await topology.apply(management, bare_broker.settings)

    assert {change.verb for change in first} == {"created"}
    assert {change.verb for change in again} == {"unchanged"}
    assert [change.what for change in again] == [change.what for change in first]
    assert "created queue study.attempts" in [str(change) for change in first]
