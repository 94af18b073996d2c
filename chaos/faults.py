"""The faults, as data: the name of each, how long it lasts, what it occupies, and how it is done.

A fault is an asynchronous context manager. Entering it causes the fault and returns what was hit,
and leaving it ends the cause. An error from entering it means that the fault can't be caused now,
and any later error breaks the law. Faults of the same server take turns, and all others may
overlap.
"""

import asyncio
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

import asyncpg
import httpx

from chaos import amqp10
from chaos.actors import Actor
from chaos.evidence import MARK_WORD, Strange
from chaos.proxy import Proxy
from chaos.stage import ROLE, partition
from chaos.world import (
    HOUSE_POLICY,
    WORKERS_MAX,
    World,
    drop_policy,
    relax_broker,
    unlock_database,
)
from devtools.postgres import standby_of
from devtools.server import Server
from devtools.small_disk import small_disk

Which = Literal["broker", "database"]
Inflict = Callable[[World, random.Random], AbstractAsyncContextManager[str]]
Repair = Callable[[World, random.Random], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Fault:
    """`seconds` is the shortest and the longest duration. It is 0 for a fault that ends at once.

    `afterwards` is what remains to be repaired once its cause has ended, before another fault may
    hit the same server. It returns what it did.
    """

    kind: str
    seconds: tuple[float, float]
    occupies: Which | None
    inflict: Inflict
    afterwards: Repair | None = None


# Processes.


def _running(actors: Sequence[Actor], rng: random.Random) -> Actor:
    return rng.choice([actor for actor in actors if actor.is_wanted])


def _to(pick: Callable[[World], Sequence[Actor]], act: Callable[[Actor], None]) -> Inflict:
    """Does something to one running process."""

    @asynccontextmanager
    async def inflict(world: World, rng: random.Random) -> AsyncIterator[str]:
        actor = _running(pick(world), rng)
        act(actor)
        yield actor.name

    return inflict


def _pause(pick: Callable[[World], Sequence[Actor]]) -> Inflict:
    @asynccontextmanager
    async def inflict(world: World, rng: random.Random) -> AsyncIterator[str]:
        actor = _running(pick(world), rng)
        actor.pause()
        try:
            yield actor.name
        finally:
            actor.resume()

    return inflict


@asynccontextmanager
async def _scale(world: World, rng: random.Random) -> AsyncIterator[str]:
    before = sum(worker.is_wanted for worker in world.workers)
    after = rng.choice([n for n in range(1, WORKERS_MAX + 1) if n != before])
    await world.scale(after)
    yield f"{before} to {after}"


@asynccontextmanager
async def _restore_viewer(world: World, rng: random.Random) -> AsyncIterator[str]:
    """Restores a phone from a backup, so that it has lost its latest results."""
    phone = _running(world.phones, rng)
    await phone.abort()
    try:
        with closing(sqlite3.connect(world.outbox(phone), timeout=5)) as file, file:
            file.execute(
                "UPDATE study_outbox SET state = 'pending', status = NULL, result = NULL,"
                " settled_at = NULL, confirmed_at = NULL WHERE seq > (SELECT max(seq) - 20 FROM"
                " study_outbox)"
            )
    finally:
        await phone.start()
    yield phone.name


@asynccontextmanager
async def _set_clock(world: World, rng: random.Random) -> AsyncIterator[str]:
    phone = _running(world.phones, rng)
    ahead = rng.choice((-259_200, -600, 3_600, 172_800, 0))
    phone.tell(f"clock {ahead}")
    yield f"{phone.name} by {ahead} s"


# Servers.


def _server(world: World, which: Which) -> Server:
    return world.stage.broker if which == "broker" else world.stage.postgres


def _end(which: Which, *, cleanly: bool) -> Inflict:
    """Stops or kills a server, and starts it again."""

    @asynccontextmanager
    async def inflict(world: World, rng: random.Random) -> AsyncIterator[str]:
        server = _server(world, which)
        await asyncio.to_thread(server.stop if cleanly else server.kill)
        try:
            yield which
        finally:
            await asyncio.to_thread(server.start)

    return inflict


def _freeze(which: Which) -> Inflict:
    @asynccontextmanager
    async def inflict(world: World, rng: random.Random) -> AsyncIterator[str]:
        server = _server(world, which)
        server.pause()
        try:
            yield which
        finally:
            server.resume()

    return inflict


def _alarm(*command: str) -> Inflict:
    @asynccontextmanager
    async def inflict(world: World, rng: random.Random) -> AsyncIterator[str]:
        await asyncio.to_thread(world.stage.broker.ctl, *command)
        try:
            yield "broker"
        finally:
            await relax_broker(world.stage)

    return inflict


@asynccontextmanager
async def _policy(world: World, rng: random.Random) -> AsyncIterator[str]:
    """A policy of the house for all queues, which replaces ours because it is stronger."""
    policy = {
        "pattern": ".*",
        "apply-to": "queues",
        "priority": 9,
        # Unsafe, which workers must notice, but too slow to delete anything during a run.
        "definition": {"message-ttl": 3_600_000, "max-length": 1_000_000},
    }
    await world.stage.management("PUT", HOUSE_POLICY, policy)
    try:
        yield "all queues"
    finally:
        await drop_policy(world.stage)


PARTITIONS_CHANGED: Final = "partitions changed"
_PARTITIONS_MAX: Final = 6


@asynccontextmanager
async def _change_partitions(world: World, rng: random.Random) -> AsyncIterator[str]:
    """As an operator does, under load. Old partitions go once they are empty."""
    number = rng.randint(1, _PARTITIONS_MAX)
    yield f"to {number}"
    await partition(world.stage, number)


_FOREIGNER: Final = "amqp10"
_UNUSUAL: Final[Mapping[str, amqp10.Message]] = {
    "an id of 5,000 characters": {"properties": {"message_id": {"repeat": ["x", 5_000]}}},
    "a correlation id of 256 characters": {
        "properties": {"correlation_id": {"repeat": ["x", 256]}}
    },
    "an id that is a uuid": {
        "properties": {"message_id": {"uuid": "00112233445566778899aabbccddeeff"}}
    },
    "a property that is a map": {"application": {"odd": {"map": {"a": 1}}}},
    "a property of 70,000 characters": {"application": {"odd": {"repeat": ["x", 70_000]}}},
    "a long name of a property": {"application": {"k" * 300: 1}},
    "an address for replies": {"properties": {"reply_to": "amq.rabbitmq.reply-to"}},
}
"""What a viewer can say by AMQP 1.0, and AMQP 0-9-1 carries otherwise or not at all."""


@asynccontextmanager
async def _amqp10_viewer(world: World, rng: random.Random) -> AsyncIterator[str]:
    """A viewer that uses AMQP 1.0 sends what a worker may never receive."""
    version = (await world.stage.management("GET", "overview"))["rabbitmq_version"]
    if not amqp10.speaks(version):
        raise RuntimeError(f"RabbitMQ {version} does not speak AMQP 1.0")
    client = await asyncio.to_thread(amqp10.client)
    if client is None:
        raise RuntimeError("its client needs node, npm and a network")
    chosen = rng.sample(sorted(_UNUSUAL), 2)
    for name in chosen:
        mark = f"{_FOREIGNER}-{len(world.strange) + 1}"
        message = {**_UNUSUAL[name], "body": {"data": [json.dumps({MARK_WORD: mark})]}}
        outcome, complaint = "unanswered", ""
        while outcome == "unanswered":
            outcomes, complaint = await amqp10.publish(
                client, world.stage.broker.url, _FOREIGNER, [message]
            )
            outcome = outcomes[0]
        if outcome != "accepted":
            raise RuntimeError(f"{name} was {outcome}: {complaint}")
        # What AMQP 0-9-1 can't carry reaches no worker, so the broker gives it up.
        world.strange.append(Strange(mark, None, "malformed", or_else="delivery_limit"))
    yield " and ".join(chosen)


_LOOKS: Final = 10
_FEW: Final = 3


@asynccontextmanager
async def _close_connections(world: World, rng: random.Random) -> AsyncIterator[str]:
    """Closes connections as an operator does in the management pages."""
    names: list[str] = []
    for _ in range(_LOOKS):  # the list is late, most of all just after the broker has started
        names = sorted(each["name"] for each in await world.stage.management("GET", "connections"))
        if len(names) > _FEW:
            break
        await asyncio.sleep(0.5)
    chosen = rng.sample(names, min(len(names), rng.randint(3, 9)))
    closed = 0
    for name in chosen:
        with suppress(httpx.HTTPStatusError):  # it has ended by itself
            await world.stage.management("DELETE", f"connections/{quote(name, safe='')}")
            closed += 1
    yield f"{closed} connections"


@asynccontextmanager
async def _read_only(world: World, rng: random.Random) -> AsyncIterator[str]:
    await world.stage.sql("ALTER SYSTEM SET default_transaction_read_only = on")
    await world.stage.sql("SELECT pg_reload_conf()")
    try:
        yield "database"
    finally:
        await unlock_database(world.stage)


@asynccontextmanager
async def _no_connections(world: World, rng: random.Random) -> AsyncIterator[str]:
    """Has the same effect as when all connections are in use: PostgreSQL answers 53300."""
    await world.stage.sql(f"ALTER ROLE {ROLE} CONNECTION LIMIT 0")
    ended = await _terminate(world)
    try:
        yield f"{ended} sessions"
    finally:
        await unlock_database(world.stage)


@asynccontextmanager
async def _long_transaction(world: World, rng: random.Random) -> AsyncIterator[str]:
    table = rng.choice(
        ("ingest_inbox", "study_question_progress", "outbox", "study_questions", "published")
    )
    connection = await asyncpg.connect(world.stage.postgres.url, timeout=5)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE", timeout=10)
            yield table
    finally:
        await connection.close(timeout=5)


OUT_OF_DISK: Final = "database out of disk"
_FULL: Final = "ingest_inbox"
"""The table on the small disk: each batch writes to it."""


@asynccontextmanager
async def _full_tablespace(world: World, rng: random.Random) -> AsyncIterator[str]:
    """The disk of one table is full: reads go on, and writes fail as soon as a page is full."""
    sql = world.stage.sql
    with small_disk(48) as folder:
        await sql(f"CREATE TABLESPACE small LOCATION '{folder}'")
        try:
            await sql(f"ALTER TABLE {_FULL} SET TABLESPACE small")
            await sql("CREATE TABLE filler (x text) TABLESPACE small")
            await sql("ALTER TABLE filler ALTER x SET STORAGE PLAIN")
            for rows in (500, 20, 1, 1):
                with suppress(asyncpg.DiskFullError):
                    while True:
                        await sql(
                            "INSERT INTO filler SELECT repeat('x', 7000)"  # noqa: S608
                            f" FROM generate_series(1, {rows})"
                        )
            yield _FULL
        finally:
            await sql("DROP TABLE IF EXISTS filler")
            await sql(f"ALTER TABLE {_FULL} SET TABLESPACE pg_default")
            await sql("DROP TABLESPACE small")


MOVED_ADDRESS: Final = "address leads to a standby"
_MOVED: Final = 3.0
"""Seconds for which sessions on the standby stay open after the address has moved."""


@asynccontextmanager
async def _moved_address(world: World, rng: random.Random) -> AsyncIterator[str]:
    """The address leads to a standby, and then to the primary again, which ends no session."""
    links = world.links_to("database")
    primary = world.stage.postgres
    standby = await asyncio.to_thread(standby_of, primary)
    try:
        await asyncio.to_thread(standby.start)
        for link in links:
            link.lead_to(standby.port)
            link.reset()
        try:
            yield f"{len(links)} links"
        finally:
            for link in links:
                link.lead_to(primary.port)
        await asyncio.sleep(_MOVED)
    finally:
        await asyncio.to_thread(standby.close)


@asynccontextmanager
async def _end_sessions(world: World, rng: random.Random) -> AsyncIterator[str]:
    yield f"{await _terminate(world)} sessions"


async def _terminate(world: World) -> int:
    rows = await world.stage.sql(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'"  # noqa: S608
    )
    return len(rows)


# Links.


def _link(act: Callable[[Proxy, random.Random], object]) -> Inflict:
    """Does something to one link, or to all of one kind."""

    @asynccontextmanager
    async def inflict(world: World, rng: random.Random) -> AsyncIterator[str]:
        pair = rng.choice(world.pairs())
        links = [link for _, link in world.links_of(pair)]
        chosen = links if rng.random() < 0.5 else [rng.choice(links)]
        for link in chosen:
            act(link, rng)
        try:
            yield " to ".join(pair)
        finally:
            for link in chosen:
                link.heal()

    return inflict


def _partition(*whom: str) -> Inflict:
    """Cuts off these servers. Nobody gets an error."""

    @asynccontextmanager
    async def inflict(world: World, rng: random.Random) -> AsyncIterator[str]:
        links = world.links_to(*whom)
        for link in links:
            link.black_hole()
        try:
            yield " and ".join(whom)
        finally:
            for link in links:
                link.heal()

    return inflict


def _lose_a_direction(link: Proxy, rng: random.Random) -> None:
    link.half_open("to_server" if rng.random() < 0.5 else "to_client")


def _crawl(link: Proxy, rng: random.Random) -> None:
    link.slow(rng.uniform(0.05, 0.5), jitter=0.05, bytes_per_second=20_000)


def _refuse(link: Proxy, rng: random.Random) -> None:
    link.refuse()
    link.reset()


_AT_ONCE: Final = (0.0, 0.0)
_SHORT: Final = (1.0, 4.0)
_LONG: Final = (2.0, 8.0)

FAULTS: Final = (
    Fault("worker killed", _AT_ONCE, None, _to(lambda w: w.workers, Actor.kill)),
    Fault("worker paused", _LONG, None, _pause(lambda w: w.workers)),
    Fault("worker drained", _AT_ONCE, None, _to(lambda w: w.workers, Actor.drain)),
    Fault("workers scaled", _AT_ONCE, None, _scale),
    Fault("relay killed", _AT_ONCE, None, _to(lambda w: w.relays, Actor.kill)),
    Fault("relay paused", _LONG, None, _pause(lambda w: w.relays)),
    Fault("relay drained", _AT_ONCE, None, _to(lambda w: w.relays, Actor.drain)),
    Fault("viewer killed", _AT_ONCE, None, _to(lambda w: w.phones, Actor.kill)),
    Fault("viewer paused", _LONG, None, _pause(lambda w: w.phones)),
    Fault("viewer restored", _AT_ONCE, None, _restore_viewer),
    Fault("viewer's clock set", _AT_ONCE, None, _set_clock),
    Fault("broker restarted", _AT_ONCE, "broker", _end("broker", cleanly=True)),
    Fault("broker killed", _AT_ONCE, "broker", _end("broker", cleanly=False)),
    Fault("broker paused", _SHORT, "broker", _freeze("broker")),
    Fault(
        "broker out of memory",
        _SHORT,
        "broker",
        _alarm("set_vm_memory_high_watermark", "absolute", "1MB"),
    ),
    Fault("broker out of disk", _SHORT, "broker", _alarm("set_disk_free_limit", "100000GB")),
    Fault("policy appears", _LONG, "broker", _policy),
    Fault(PARTITIONS_CHANGED, _AT_ONCE, "broker", _change_partitions),
    Fault("AMQP 1.0 viewer", _AT_ONCE, "broker", _amqp10_viewer),
    Fault("connections closed by broker", _AT_ONCE, "broker", _close_connections),
    Fault("database restarted", _AT_ONCE, "database", _end("database", cleanly=True)),
    Fault("database killed", _AT_ONCE, "database", _end("database", cleanly=False)),
    Fault("database paused", _SHORT, "database", _freeze("database")),
    Fault("database read-only", _LONG, "database", _read_only),
    Fault("database out of connections", _LONG, "database", _no_connections),
    Fault("database locked", _LONG, "database", _long_transaction),
    Fault(OUT_OF_DISK, _LONG, "database", _full_tablespace),
    Fault(MOVED_ADDRESS, _LONG, "database", _moved_address),
    Fault("sessions terminated", _AT_ONCE, "database", _end_sessions),
    Fault("link cut", _AT_ONCE, None, _link(lambda link, _: link.cut())),
    Fault("link reset", _AT_ONCE, None, _link(lambda link, _: link.reset())),
    Fault("link half-open", _AT_ONCE, None, _link(_lose_a_direction)),
    Fault("link black-holed", _LONG, None, _link(lambda link, _: link.black_hole())),
    Fault("link slowed", _LONG, None, _link(_crawl)),
    Fault("link refused", _LONG, None, _link(_refuse)),
    Fault("partition from broker", _LONG, None, _partition("broker", "management")),
    Fault("partition from database", _LONG, None, _partition("database")),
    Fault("full partition", _LONG, None, _partition("broker", "management", "database")),
)
