"""Everything behind `./dev`: the virtual environment, and the servers for development.

It runs before any dependency is installed, so it uses only the standard library, and imports
nothing of schemas, study_viewer, worker or migrations. Tests and benchmarks use `Postgres`,
`RabbitMQ` and `RabbitMQCluster` as well: private servers that can be started, killed, paused and
restarted.
"""

from devtools.cluster import RabbitMQCluster
from devtools.errors import DevError
from devtools.postgres import Postgres
from devtools.rabbitmq import RabbitMQ

__all__ = ["DevError", "Postgres", "RabbitMQ", "RabbitMQCluster"]
