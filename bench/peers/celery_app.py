"""The usual handler on Celery: late acks, one message prefetched for each process, prefork.

`python -m bench.peers.celery_app FILE` publishes the bodies in FILE, one a line.
"""

import os
import sys
from pathlib import Path

from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from bench.peers.handler import handle
from bench.peers.setup import VIEWER, database_url

app = Celery("bench", broker=os.environ["INGEST_AMQP_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    task_default_queue="celery",
    task_default_queue_type="quorum",
    worker_detect_quorum_queues=True,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
)
engine = create_engine(database_url("psycopg"), pool_size=1)


@app.task
def ingest(body: str) -> None:
    """One message, one transaction."""
    with Session(engine) as session:
        handle(session, body.encode(), VIEWER)


if __name__ == "__main__":
    # By its name in the module that the workers import, which is not __main__.
    for line in Path(sys.argv[1]).read_text().splitlines():
        app.send_task("bench.peers.celery_app.ingest", (line,))
