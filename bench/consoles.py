"""What people who watch cost: the throughput beside open consoles, against that of the same workers
without any.

*consoles*: two workers; ten people look at pages that refresh themselves as in a browser.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle, islice
from statistics import median
from typing import Any, Final, NamedTuple

import httpx

from bench import courses, race
from bench.contenders import OURS, ours
from bench.errors import BenchError
from bench.processes import Processes
from bench.race import LOGS
from bench.stage import Stage
from devtools.state import free_ports

_PAGES: Final = ("/", "/workers", "/batches", "/dead")
_EVERY: Final = 5.0
"""Seconds between two looks of one person, as in the page's own script."""
_STARTED_WITHIN: Final = 60.0
_TOKEN: Final = "only-this-benchmark-knows-it"


class Sizes(NamedTuple):
    """How much of each."""

    course: courses.Sizes = courses.Sizes(long=8_000)
    """Some seconds, in which each of the people looks."""
    people: int = 10
    rounds: int = 5


class Consoles:
    """Measures it."""

    def __init__(self, stage: Stage, sizes: Sizes, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._sizes = sizes
        self._say = say
        self._looks: list[float] = []
        self.workloads: Mapping[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "consoles": self.consoles
        }

    async def consoles(self) -> dict[str, Any]:
        """The ratio of the two throughputs, and the milliseconds of one look in the median."""
        sizes = self._sizes
        course = await courses.course(self._stage, courses.FRESH, sizes.course, short=False)
        found = []
        for number in range(sizes.rounds):
            order = (self._watched, None) if number % 2 else (None, self._watched)
            laps = {
                beside: await race.run(self._stage, ours(2), course, beside) for beside in order
            }
            watched, alone = laps[self._watched].throughput, laps[None].throughput
            found.append(watched / alone)
            self._say(f"consoles: {watched:.0f} batches/s while people watch, {alone:.0f} alone")
        return {"consoles": median(found), "consoles_ms": 1000 * median(self._looks)}

    @asynccontextmanager
    async def _watched(self, variables: Mapping[str, str]) -> AsyncIterator[None]:
        """A console that people look at, each from another moment on."""
        (port,) = free_ports(1)
        own = {"INGEST_CONSOLE_PORT": str(port), "INGEST_CONSOLE_TOKENS": f"ada:act:{_TOKEN}"}
        command = [(OURS, "console")]
        with Processes(command, {**variables, **own}, LOGS / "console.log") as console:
            async with AsyncExitStack() as stack:
                people = [
                    await stack.enter_async_context(
                        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)
                    )
                    for _ in range(self._sizes.people)
                ]
                await _answers(people[0], console)
                pages = list(islice(cycle(_PAGES), len(people)))
                for person, page in zip(people, pages, strict=True):
                    await person.post("/sign-in", data={"token": _TOKEN})
                    await self._look(person, page)
                looking = [
                    asyncio.create_task(self._watch(person, page, number / len(people)))
                    for number, (person, page) in enumerate(zip(people, pages, strict=True))
                ]
                try:
                    yield
                    for each in looking:
                        if each.done():
                            each.result()
                finally:
                    for each in looking:
                        each.cancel()
                    await asyncio.wait(looking)

    async def _watch(self, person: httpx.AsyncClient, page: str, part: float) -> None:
        await asyncio.sleep(part * _EVERY)
        while True:
            await self._look(person, page)
            await asyncio.sleep(_EVERY)

    async def _look(self, person: httpx.AsyncClient, page: str) -> None:
        began = time.perf_counter()
        answer = await person.get(page)
        if answer.status_code != 200:
            raise BenchError(f"the console answered {page} with {answer.status_code}")
        self._looks.append(time.perf_counter() - began)


async def _answers(person: httpx.AsyncClient, console: Processes) -> None:
    began = time.monotonic()
    while True:
        console.check()
        try:
            await person.get("/sign-in")
            return
        except httpx.TransportError:
            if time.monotonic() - began > _STARTED_WITHIN:
                raise BenchError("the console does not answer: see console.log") from None
            await asyncio.sleep(0.1)
