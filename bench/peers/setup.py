"""What every peer is told: where the servers are, and how much to do at once."""

import os

from sqlalchemy import make_url

CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "4"))
"""Messages in work at once, in each process."""

VIEWER = "bench"


def database_url(driver: str) -> str:
    """The database's URL for SQLAlchemy."""
    url = make_url(os.environ["INGEST_DATABASE_URL"]).set(drivername=f"postgresql+{driver}")
    return url.render_as_string(hide_password=False)
