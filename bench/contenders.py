"""The contenders: what each of them runs, and where it finds its messages.

To add a contender, add a row to `CONTENDERS`.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from bench import environment
from bench.workload import Batch
from schemas import amqp

Command = Sequence[str]

OURS: Final = str(Path(sys.executable).with_name("study-ingest"))

CHECKOUT: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to consume the queue."""

    name: str
    what: str
    commands: Callable[[], Sequence[Command]]
    """The processes to run. It is called just before they start."""
    variables: dict[str, str] = field(default_factory=dict)
    queue: str = amqp.ATTEMPTS_QUEUE
    publisher: str | None = None
    """The module that publishes, for a peer whose messages have a format of their own."""
    is_peer: bool = False
    consumers: int = 0
    """How many consumers its processes have together, where that is known."""
    partitions: int = 1
    """Of the queue, which the contender then consumes as well."""

    @property
    def queues(self) -> list[str]:
        """Every queue that it consumes."""
        if self.partitions == 1:
            return [self.queue]
        numbers = range(1, self.partitions + 1)
        return [self.queue, *(amqp.partition_queue(number) for number in numbers)]


def ours(processes: int, *, relay: bool = False, partitions: int = 1, **settings: int) -> Contender:
    """The worker as an operator runs it."""
    variables = {f"INGEST_{name.upper()}": str(value) for name, value in settings.items()}
    return Contender(
        name=f"ours_{processes}"
        + ("_relaying" if relay else "")
        + ("_partitioned" if partitions > 1 else ""),
        what=f"study-ingest worker, {processes} process{'es' if processes > 1 else ''}",
        commands=lambda: [(OURS, "worker")] * processes,
        consumers=processes,
        partitions=partitions,
        variables={
            "INGEST_RELAY_IN_WORKER": str(relay).lower(),
            # The benchmark publishes with whatever login the URL has.
            "INGEST_REQUIRE_USER_ID": "false",
            **variables,
        },
    )


def usual() -> Contender:
    """One message per transaction on plain aio-pika, with the concurrency that suits it best."""
    return Contender(
        name="usual",
        what="the usual handler, aio-pika, 2 processes x 2",
        commands=lambda: [(sys.executable, "-m", "bench.peers.plain")] * 2,
        variables={"BENCH_CONCURRENCY": "2"},
        consumers=2,
    )


def usual_publishing() -> Contender:
    """The same, and it publishes what it has to tell right after its commit, without an outbox."""
    plain = usual()
    variables = {**plain.variables, "BENCH_PUBLISH": "true"}
    return replace(plain, name="usual_publishing", variables=variables)


def set_based() -> Contender:
    """One message per transaction on asyncpg, with the concurrency that suits it best."""
    return Contender(
        name="set_based",
        what="asyncpg, set-based, one message per transaction, 2 processes x 4",
        commands=lambda: [(sys.executable, "-m", "bench.peers.set_based")] * 2,
        variables={"BENCH_CONCURRENCY": "4"},
        consumers=2,
    )


def _peer(program: str, *arguments: str) -> Callable[[], Sequence[Command]]:
    return lambda: [(str(environment.ensure() / program), *arguments)]


PEERS: Final = (
    Contender(
        name="faststream",
        what="the usual handler on FastStream, 2 processes x 4",
        commands=_peer("faststream", "run", "bench.peers.faststream_app:app", "--workers", "2"),
        variables={"BENCH_CONCURRENCY": "4"},
        is_peer=True,
    ),
    Contender(
        name="celery",
        what="the usual handler on Celery, prefork, 4 processes, late acks",
        commands=_peer(
            "celery",
            "--app=bench.peers.celery_app",
            "worker",
            "--pool=prefork",
            "--concurrency=4",
            "--loglevel=WARNING",
            "--without-gossip",
            "--without-mingle",
        ),
        queue="celery",
        publisher="bench.peers.celery_app",
        is_peer=True,
    ),
    Contender(
        name="dramatiq",
        what="the usual handler on Dramatiq, 2 processes x 4 threads",
        commands=_peer(
            "dramatiq", "bench.peers.dramatiq_app", "--processes", "2", "--threads", "4"
        ),
        variables={"BENCH_CONCURRENCY": "4"},
        queue="dramatiq",
        publisher="bench.peers.dramatiq_app",
        is_peer=True,
    ),
)


def publish_as(module: str, batches: Sequence[Batch], variables: dict[str, str]) -> None:
    """Publishes with another client, in a process of its environment."""
    with tempfile.NamedTemporaryFile("wb", suffix=".jsonl") as file:
        file.write(b"\n".join(batch.body for batch in batches))
        file.flush()
        python = environment.ensure() / "python"
        subprocess.run(
            [python, "-m", module, file.name],
            env={**os.environ, **variables},
            cwd=CHECKOUT,
            check=True,
        )
