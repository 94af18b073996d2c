"""The usual handler on Dramatiq, which always acks after the actor has returned.

`python -m bench.peers.dramatiq_app FILE` publishes the bodies in FILE, one a line.
"""

import os
import sys
from pathlib import Path

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from bench.peers.handler import handle
from bench.peers.setup import CONCURRENCY, VIEWER, database_url

broker = RabbitmqBroker(url=os.environ["INGEST_AMQP_URL"], confirm_delivery=True)
dramatiq.set_broker(broker)
engine = create_engine(database_url("psycopg"), pool_size=CONCURRENCY)


@dramatiq.actor(queue_name="dramatiq")
def ingest(body: str) -> None:
    """One message, one transaction."""
    with Session(engine) as session:
        handle(session, body.encode(), VIEWER)


if __name__ == "__main__":
    for line in Path(sys.argv[1]).read_text().splitlines():
        ingest.send(line)
