"""The run: prepare, cause faults by the schedule, end them, drain, and pass the evidence to the
checker.

It reads like a table of contents. The checker decides what is right or wrong, except for a fault
that fails after it has struck.
"""

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import aio_pika
import httpx

from chaos import bank
from chaos.checker import Violation, check, wrong
from chaos.evidence import (
    Checked,
    Evidence,
    read_database,
    read_outbox,
    read_queues,
    take_answers,
)
from chaos.failover import FAILOVER, IMPOSSIBLE
from chaos.faults import FAULTS, PARTITIONS_CHANGED, Fault
from chaos.phone import current_mark, quiet_mark
from chaos.pulse import Pulse
from chaos.schedule import Planned, schedule
from chaos.stage import ANSWERS_TAP, JOBS_TAP, RESULTS_TAP, Stage, stage
from chaos.stranger import Stranger
from chaos.world import World, world
from devtools.errors import DevError
from schemas import amqp

_VIEWERS: Final = 5
_USERS: Final = 5
_QUESTIONS_EACH: Final = 40
_WARM_UP: Final = 90.0
"""Seconds until the first commit. Ten processes start at once, perhaps on a busy machine."""
_STRANGE_EVERY: Final = 1.5
_LOOK_EVERY: Final = 0.5
_HEAR_EVERY: Final = 3.0
_HEAR_WITHIN: Final = 15.0
"""Seconds for one look. The two are well below the minute that an answer lasts."""
_KNOWN_WITHIN: Final = 3.0
"""Seconds within which the management API, told each second, knows what workers have in hand."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Inflicted:
    """A fault that happened, with the start and the end of its cause, in seconds of the run."""

    kind: str
    hit: str
    began: float
    ended: float
    recovered_after: float | None = None


@dataclass(slots=True)
class Outcome:
    """The content of the report."""

    seed: int
    seconds: float
    inflicted: list[Inflicted] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """The faults that could not be caused, each with the reason."""
    exits: dict[str, dict[str, int]] = field(default_factory=dict)
    drained_after: float | None = None
    current_after: float | None = None
    """Seconds from the end of the drain until every viewer that asked had its answers."""
    longest_pause: float = 0.0
    found: Evidence = field(default_factory=Evidence)
    violations: list[Violation] = field(default_factory=list)


async def run(
    seed: int,
    seconds: float,
    *,
    pace: float,
    rate: float,
    patience: float,
    only: Collection[str] | None,
    partitions: int,
    failover: bool,
    folder: Path,
    say: Say,
) -> Outcome:
    """Runs everything. Logs and outboxes stay in `folder`.

    `rate` is the number of sessions per second of each viewer. There is a fault every `pace`
    seconds, with `only` just of these kinds. `patience` limits the drain. With more than one of
    `partitions` their number changes from time to time. With `failover` there are several servers,
    and some are lost.
    """
    outcome = Outcome(seed, seconds)
    questions = bank.made_up(seed, _USERS, _QUESTIONS_EACH)
    bank.save(folder / "bank.json", questions)
    faults = {fault.kind: fault for fault in (*FAULTS, *FAILOVER)}
    unfit: tuple[str, ...] = IMPOSSIBLE if failover else tuple(each.kind for each in FAILOVER)
    if only is None and partitions == 1:
        unfit = (*unfit, PARTITIONS_CHANGED)
    kinds = {kind: fault.seconds for kind, fault in faults.items() if kind not in unfit}
    if unknown := set(only or ()) - kinds.keys():
        raise DevError(f"This run has no fault {min(unknown)!r}, but {', '.join(sorted(kinds))}.")
    kinds = {kind: seconds for kind, seconds in kinds.items() if only is None or kind in only}
    plan = schedule(seed, seconds, kinds, pace)
    async with stage(folder, questions, partitions, failover=failover) as servers:
        say("the servers are ready")
        pulse = Pulse(servers)
        async with world(
            servers,
            viewers=_VIEWERS,
            users=_USERS,
            seed=seed,
            seconds=seconds,
            rate=rate,
        ) as everything:
            outboxes = [everything.outbox(phone) for phone in everything.phones]
            stranger = Stranger(servers.broker.url, outboxes, seed, _STRANGE_EVERY)
            watching = asyncio.create_task(pulse.run())
            odd = asyncio.create_task(stranger.run())
            answers: dict[str, Checked] = {}
            hearing = asyncio.create_task(_hear(servers, answers))
            supervising = asyncio.create_task(_supervise(servers))
            try:
                await _first_commit(pulse)
                say("the first batches are ingested; the faults begin")
                began = time.monotonic()
                await hurt(everything, faults, plan, seconds, outcome, say)
                say("healing")
                ended = time.monotonic()
                await everything.heal()
                for phone in everything.phones:
                    phone.tell("quiet")
                stranger.quiet()
                queues = await _working_queues(everything)
                drained = await _drained(everything, queues, odd, patience)
                if drained is not None:
                    outcome.drained_after = round(drained - ended, 1)
                say(f"drained after {outcome.drained_after} s")
                outcome.current_after = await _all_current(everything, patience)
                say(f"the viewers have their progress after {outcome.current_after} s")
                await _stop(everything)
                outcome.longest_pause = pulse.longest_pause()
                outcome.inflicted = [
                    _recovered(each, outcome.inflicted, pulse, began) for each in outcome.inflicted
                ]
                outcome.found.strange = [*stranger.sent, *everything.strange]
                outcome.found.looks = everything.looks
                outcome.found.promoted = servers.promoted
                await take_answers(answers, servers.broker.url, ANSWERS_TAP)
                outcome.found.checked = [*answers.values()]
                await _collect(outcome.found, everything, queues)
            finally:
                helpers = (watching, odd, hearing, supervising)
                for task in helpers:
                    task.cancel()
                await asyncio.gather(*helpers, return_exceptions=True)
                outcome.exits = {each.name: dict(each.exits) for each in everything.actors}
    outcome.violations += await asyncio.to_thread(check, outcome.found)
    return outcome


async def _first_commit(pulse: Pulse) -> None:
    async with asyncio.timeout(_WARM_UP):
        while not pulse.beats:  # noqa: ASYNC110  # somebody else's process offers no event
            await asyncio.sleep(_LOOK_EVERY)


async def _supervise(servers: Stage) -> None:
    """Starts nodes of the broker again that failed to start by themselves, until it is
    cancelled.
    """
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        for node in servers.nodes:
            await asyncio.to_thread(node.revive)


async def _hear(servers: Stage, answers: dict[str, Checked]) -> None:
    """Takes the answers to viewers that asked what the server has, until it is cancelled."""
    while True:
        await asyncio.sleep(_HEAR_EVERY)
        # Whatever a dying broker makes of an answer: what is not acked comes again.
        with suppress(Exception):
            async with asyncio.timeout(_HEAR_WITHIN):
                await take_answers(answers, servers.broker.url, ANSWERS_TAP)


async def hurt(
    world: World,
    faults: Mapping[str, Fault],
    plan: list[Planned],
    seconds: float,
    outcome: Outcome,
    say: Say,
) -> None:
    """Causes the planned faults, each in a task of its own, and sees each to its end.

    A fault that can't be caused is missed, and that is only reported. What fails once a fault has
    struck is a violation: its end, a look during it, or what repairs the damage.
    """
    turns = {"broker": asyncio.Lock(), "database": asyncio.Lock()}
    began = time.monotonic()

    def now() -> float:
        return time.monotonic() - began

    async def inflict(planned: Planned, fault: Fault) -> None:
        async with turns[fault.occupies] if fault.occupies else asyncio.Lock():
            if now() >= seconds:
                outcome.missed.append(f"{fault.kind}: its turn did not come")
                return
            struck: str | None = None
            started = now()
            try:
                try:
                    async with fault.inflict(world, random.Random(planned.seed)) as struck:
                        say(f"{started:6.1f} s  {fault.kind}: {struck}")
                        await asyncio.sleep(planned.seconds)
                finally:
                    if struck is not None:
                        outcome.inflicted.append(Inflicted(fault.kind, struck, started, now()))
                if fault.afterwards is not None:
                    done = await fault.afterwards(world, random.Random(planned.seed))
                    say(f"{now():6.1f} s  {done}")
            except Exception as error:  # noqa: BLE001  # the other faults go on
                what = f"{type(error).__name__}: {error}"
                if struck is None:
                    outcome.missed.append(f"{fault.kind}: {what}")
                else:
                    outcome.violations.append(
                        wrong(
                            f"The fault {fault.kind!r} struck ({struck}), and then failed: {what}"
                        )
                    )
                say(f"{now():6.1f} s  {fault.kind}: {what}")

    async with asyncio.TaskGroup() as tasks:
        for planned in plan:
            await asyncio.sleep(max(0.0, planned.at - now()))
            tasks.create_task(inflict(planned, faults[planned.kind]))
        await asyncio.sleep(max(0.0, seconds - now()))


async def _drained(
    world: World, queues: list[str], odd: asyncio.Task[None], patience: float
) -> float | None:
    """Waits until nothing is in flight. Returns since when (`time.monotonic`).

    Returns None if that takes more than `patience` seconds.
    """
    began = time.monotonic()
    since: float | None = None
    while time.monotonic() - began < patience:
        await asyncio.sleep(_LOOK_EVERY)
        busy = True
        with suppress(OSError, TimeoutError, httpx.HTTPError):
            busy = not odd.done() or bool(await _on_the_way(world, queues))
        now = time.monotonic()
        since = None if busy else since or now
        if since is not None and now - since > _KNOWN_WITHIN:
            return since
    return None


async def _all_current(world: World, patience: float) -> float | None:
    """Has every viewer ask for progress, and waits until each has it. Returns the seconds that this
    took. Returns None if it takes more than `patience`.
    """
    began = time.monotonic()
    for phone in world.phones:
        phone.tell("ask")
    while time.monotonic() - began < patience:
        if all(current_mark(world.outbox(phone)).exists() for phone in world.phones):
            return round(time.monotonic() - began, 1)
        await asyncio.sleep(_LOOK_EVERY)
    return None


async def _on_the_way(world: World, queues: list[str]) -> int:
    """What is in flight: viewers that record, batches without a result or of which a viewer does
    not know whether a server that took over has them, messages in queues and outbox.
    """
    outboxes = [world.outbox(phone) for phone in world.phones]
    # A process that has just started may not have read that it should be quiet.
    playing = sum(not quiet_mark(outbox).exists() for outbox in outboxes)
    unsettled = sum(_unsettled(outbox) for outbox in outboxes)
    if playing + unsettled:
        return playing + unsettled
    (unsent,) = (await world.stage.sql("SELECT count(*) FROM outbox"))[0]
    return int(unsent) + await _waiting(world, queues)


def _unsettled(outbox: Path) -> int:
    with closing(sqlite3.connect(outbox, timeout=5)) as file:
        (count,) = file.execute(
            "SELECT count(*) FROM study_outbox WHERE state <> 'settled' OR unchecked"
        ).fetchone()
        return int(count)


async def _waiting(world: World, queues: list[str]) -> int:
    """The messages in the queues, including those that a worker holds."""
    listed = await world.stage.management("GET", "queues")
    in_hand = sum(
        queue.get("messages_unacknowledged", 0) for queue in listed if queue["name"] in queues
    )
    if in_hand:
        return int(in_hand)
    async with await aio_pika.connect(world.stage.broker.url) as connection:
        channel = await connection.channel()
        found = [await channel.get_queue(name) for name in queues]
        return sum(queue.declaration_result.message_count or 0 for queue in found)


async def _working_queues(world: World) -> list[str]:
    """The queues that must be empty in the end: all but taps, follow-ups, and progress, whose
    messages do not last.
    """
    names = [queue["name"] for queue in await world.stage.management("GET", "queues")]
    kept = (JOBS_TAP, RESULTS_TAP, ANSWERS_TAP)
    return [
        name
        for name in names
        if name not in kept
        and not name.startswith((f"{amqp.FOLLOWUPS_EXCHANGE}.", amqp.PROGRESS_QUEUE))
    ]


async def _stop(world: World) -> None:
    """Stops workers and relays as an operator would, which must succeed, and then the phones."""
    await asyncio.gather(*(each.stop() for each in (*world.workers, *world.relays)))
    await asyncio.gather(*(phone.abort() for phone in world.phones))


async def _collect(found: Evidence, world: World, queues: list[str]) -> None:
    for phone in world.phones:
        read_outbox(found, world.outbox(phone), phone.name)
    await read_database(found, world.stage.postgres.url)
    await read_queues(
        found,
        world.stage.broker.url,
        empty=queues,
        results=RESULTS_TAP,
        jobs=JOBS_TAP,
    )


def _recovered(
    each: Inflicted, others: Sequence[Inflicted], pulse: Pulse, began: float
) -> Inflicted:
    """Adds the time from the end of each fault to the next commit.

    If other faults overlapped it, and nothing was committed before they ended, the time begins at
    the end of the last of them.
    """
    clear = each.ended
    for other in sorted(others, key=lambda other: other.began):
        if other.began <= clear < other.ended:
            clear = other.ended
    after = pulse.first_after(began + each.ended)
    if after is not None and each.ended + after > clear:
        after -= clear - each.ended
    return replace(each, recovered_after=None if after is None else round(after, 3))
