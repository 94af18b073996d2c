"""The right rows: the workload ingested in this process, in order, without timing.

The rows of every contender are compared with these, and the floor copies them.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from bench.stage import Stage
from bench.workload import Batch
from schemas.attempt_batch import decode
from worker.domain.policy import Policy
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.store.engine import make_engine

_AT_ONCE: Final = 100


async def ingest(stage: Stage, name: str, batches: Iterable[Batch]) -> None:
    """Ingests `batches` into our database `name`."""
    engine = make_engine(stage.on_database(name), connections=1, name="bench reference")
    ingest = Ingest(engine, Policy())
    try:
        group: list[Incoming] = []
        for batch in batches:
            group.append(incoming(batch))
            if len(group) == _AT_ONCE:
                await ingest(group)
                group = []
        if group:
            await ingest(group)
    finally:
        await engine.dispose()


def incoming(batch: Batch, principal: int | None = None) -> Incoming:
    """The batch as the ingest step takes it; of the user that its viewer names, if it names one."""
    content = decode(batch.body)
    return Incoming(batch.viewer, content, content.client_session_uuid, principal=principal)


def incoming_all(batches: Sequence[Batch]) -> list[Incoming]:
    """All of `batches`, decoded."""
    return [incoming(batch) for batch in batches]
