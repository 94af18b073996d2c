"""A vhost with the topology, a migrated database, and settings that lead to both."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.broker_fixtures import Broker
from tests.factories import Published, publish
from worker.settings import Settings


@pytest.fixture
def settings(broker: Broker, database_url: str) -> Settings:
    return Settings.model_validate(
        broker.settings.model_dump(exclude_unset=True) | {"database_url": database_url}
    )


@pytest.fixture
async def question(engine: AsyncEngine) -> Published:
    """A question that batches may answer."""
    (question,) = await publish(engine)
    return question
