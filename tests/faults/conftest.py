"""The stage of the aimed crashes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.broker_fixtures import Broker
from tests.faults import scene as scenes


@pytest.fixture
async def scene(
    broker: Broker, engine: AsyncEngine, database_url: str, tmp_path: Path
) -> AsyncIterator[scenes.Scene]:
    """One vhost, one database, four questions."""
    async with scenes.scene(broker, engine, database_url, tmp_path) as made:
        yield made
