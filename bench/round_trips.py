"""The number of round trips of a group's transaction to the database, counted on the wire.

A relay on the loopback interface stands between the ingest step and PostgreSQL. It counts each time
that the client sends after the server has sent.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from pydantic import SecretStr
from sqlalchemy.engine import make_url

from bench import reference
from bench.stage import Stage
from bench.workload import Batch
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.settings import Settings
from worker.store.engine import make_engine

GROUPS: Final = (1, 10, 50, 100)
"""Batches in a group."""


class _Counter:
    def __init__(self) -> None:
        self.trips = 0
        self._client_spoke_last = False

    async def pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                if from_client and not self._client_spoke_last:
                    self.trips += 1
                self._client_spoke_last = from_client
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def _counted(settings: Settings) -> AsyncIterator[tuple[Settings, _Counter]]:
    url = make_url(settings.database_url.get_secret_value())
    counter = _Counter()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(url.host or "127.0.0.1", url.port or 5432)
        await asyncio.gather(
            counter.pass_on(reader, back, from_client=True),
            counter.pass_on(there, writer, from_client=False),
        )

    async with await asyncio.start_server(relay, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        through = url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        yield settings.model_copy(update={"database_url": SecretStr(through)}), counter


async def measure(stage: Stage, state: str, batches: Sequence[Batch]) -> dict[int, int]:
    """Round trips by the number of batches in the group; needs twice the sum of `GROUPS`.

    Each size goes twice, and the second counts: the first prepares the statements.
    """
    await stage.copy("trips", state)
    found = {}
    source = iter(batches)
    async with _counted(stage.on_database("trips")) as (settings, counter):
        engine = make_engine(settings, connections=1, name="bench")
        ingest = Ingest(engine, Policy(), worker="bench")
        try:
            for size in GROUPS:
                for _ in range(2):
                    group = [reference.incoming(next(source)) for _ in range(size)]
                    before = counter.trips
                    await ingest(group)
                    found[size] = counter.trips - before
        finally:
            await engine.dispose()
    return found
