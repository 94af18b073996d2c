"""Everything behind `./dev`: the virtual environment, and the servers that work is done against.

Runs before any dependency is installed, so it knows only the standard library, and nothing
of schemas, study_viewer, worker or migrations. `Postgres`, `RabbitMQ` and `RabbitMQCluster` are
also for tests and benchmarks: private servers to start, kill, pause and restart at will.
"""

from devtools.cluster import RabbitMQCluster
from devtools.errors import DevError
from devtools.postgres import Postgres
from devtools.rabbitmq import RabbitMQ

__all__ = ["DevError", "Postgres", "RabbitMQ", "RabbitMQCluster"]
