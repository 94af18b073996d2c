"""The configuration of every peer: the servers, and the concurrency."""

import os

from sqlalchemy import make_url

CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "4"))
"""The number of messages in work at once, in each process."""

PUBLISHES = os.environ.get("BENCH_PUBLISH") == "true"

VIEWER = "bench"


def database_url(driver: str) -> str:
    """The database's URL for SQLAlchemy."""
    url = make_url(os.environ["INGEST_DATABASE_URL"]).set(drivername=f"postgresql+{driver}")
    return url.render_as_string(hide_password=False)
