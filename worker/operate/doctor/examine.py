"""Runs all examinations at once. One that fails becomes a finding."""

import asyncio
from collections.abc import Awaitable

from sqlalchemy.ext.asyncio import AsyncEngine

from worker.broker.inspection import Inspection
from worker.errors import IngestError
from worker.operate.doctor import broker, database, local, servers
from worker.operate.doctor.finding import Finding, of_error
from worker.settings import Settings


async def examine(settings: Settings, engine: AsyncEngine, inspection: Inspection) -> list[Finding]:
    """All findings, including the good ones, in the order of the places."""
    return [
        *local.examine(settings),
        *await servers.examine(settings),
        *await _survived("broker", broker.examine(settings, inspection)),
        *await _survived("database", database.examine(settings, engine)),
    ]


async def _survived(place: str, examination: Awaitable[list[Finding]]) -> list[Finding]:
    try:
        async with asyncio.timeout(60):
            return await examination
    except IngestError as error:
        return [of_error(place, error)]
    except TimeoutError:
        return [
            Finding(
                place, "danger", f"The {place} does not answer.", f"Find out why the {place} hangs."
            )
        ]
