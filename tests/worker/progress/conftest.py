"""A broker that requires identity, which is the default."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.broker_fixtures import Broker
from tests.whole_worker import Viewers
from worker.broker.accounts import Accounts
from worker.settings import Settings


@pytest.fixture
def settings(broker: Broker) -> Settings:
    """The worker's, in the test's vhost: default deny."""
    return broker.settings.model_copy(update={"require_user_id": True})


@pytest.fixture
async def viewers(
    broker: Broker, settings: Settings, engine: AsyncEngine
) -> AsyncIterator[Viewers]:
    """Makes viewers with grants in the test's database."""
    async with Accounts(settings) as accounts:
        made = Viewers(accounts, engine, settings)
        yield made
        await made.remove_all()
