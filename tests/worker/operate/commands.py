"""The operator's commands, as typed, in this process."""

import asyncio
import json

from typer.testing import CliRunner, Result

from tests.worker.operate.conftest import Site
from worker.cli.main import app


def environment(site: Site) -> dict[str, str]:
    """What leads a command to the site."""
    return {
        "INGEST_DATABASE_URL": site.settings.database_url.get_secret_value(),
        "INGEST_AMQP_URL": site.settings.amqp_url.get_secret_value(),
        "INGEST_DELIVERY_LIMIT": str(site.settings.delivery_limit),
        "INGEST_RETRY_DELAYS": json.dumps(site.settings.retry_delays),
        "INGEST_REQUIRE_USER_ID": "false",
    }


async def invoke(site: Site, *words: str, **variables: str) -> Result:
    """Runs a command; a thread, because it has a loop of its own."""
    return await asyncio.to_thread(
        CliRunner().invoke, app, words, env=environment(site) | variables
    )
