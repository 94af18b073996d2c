"""`batch`: what became of batches, and all that is known about one."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from worker.broker import topology
from worker.broker.management import Management
from worker.broker.topology import QUEUES
from worker.errors import BrokerAway, NoBatch, TopologyError
from worker.ingest.followups import FOLLOWUPS, VoidedSessions
from worker.settings import Settings
from worker.store.engine import transaction
from worker.store.operate import batches as stored
from worker.store.operate import dead
from worker.store.operate.batches import Attempt, Batch, Job, Moment, Receipt, Session, Wanted
from worker.store.operate.dead import Brief

_LETTERS: Final = 20
"""Copies of one batch that are worth showing: they differ in what was wrong with them."""


@dataclass(frozen=True, slots=True)
class Life:
    """What is on record about one batch. `letters` were rejected under its uuid. `jobs` are the
    follow-up jobs that are not published yet: of others there is no record.
    """

    client_session_uuid: UUID
    state: str
    receipt: Receipt | None
    moment: Moment
    sessions: list[Session]
    attempts: list[Attempt]
    result_waits_since: datetime | None
    jobs: list[Job]
    letters: list[Brief]

    @property
    def result_is_pruned(self) -> bool:
        """Whether its result, and with it what was skipped, is not kept any more."""
        receipt = self.receipt
        return receipt is not None and receipt.erased_at is None and receipt.summary is None

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """The attempts that were skipped, as the result tells it."""
        summary = None if self.receipt is None else self.receipt.summary
        return list((summary or {}).get("skipped", ()))


class Place(NamedTuple):
    """A queue in which batches wait. At `until`, at the latest, they are tried again; None where
    they are not taken by the clock.
    """

    queue: str
    awaits: str
    batches: int
    until: datetime | None


async def find(engine: AsyncEngine, wanted: Wanted, limit: int) -> list[Batch]:
    """The newest batches that are wanted, at most `limit`."""
    async with transaction(engine) as connection:
        return await stored.find(connection, wanted, limit)


async def life(engine: AsyncEngine, settings: Settings, uuid: UUID) -> Life:
    """All that is stored about a batch.

    Raises `NoBatch` if nothing is, with what waits in the broker: the batch may be there.
    """
    async with transaction(engine, isolation="repeatable_read") as connection:
        receipt = await stored.receipt(connection, uuid)
        moment = await stored.moment(connection, uuid)
        sessions = await stored.sessions(connection, uuid)
        attempts = await stored.attempts(connection, uuid)
        waits_since = await stored.result_waits_since(connection, uuid)
        jobs = await stored.jobs_waiting(connection, uuid, _jobs_of(receipt, sessions, attempts))
        letters = await dead.briefs(connection, dead.Wanted(uuids=frozenset({uuid})), _LETTERS)
    if receipt is None and not letters:
        raise NoBatch(
            f"No batch {uuid} is stored, and no dead letter has this uuid",
            f"see whether its viewer has published it: {await _found_waiting(settings)}.",
        )
    state = _state(receipt, sessions)
    return Life(uuid, state, receipt, moment, sessions, attempts, waits_since, jobs, letters)


def _jobs_of(
    receipt: Receipt | None, sessions: list[Session], attempts: list[Attempt]
) -> list[UUID]:
    """The message ids of all jobs that the batch may have caused: those that a void withdraws."""
    if receipt is None or receipt.user_id is None:
        return []
    ids = [session.quiz_session_id for session in sessions]
    questions = {attempt.question_id for attempt in attempts}
    voided = VoidedSessions(receipt.user_id, ids, questions)
    return [id for followup in FOLLOWUPS for id in followup.on_void(voided)]


def _state(receipt: Receipt | None, sessions: list[Session]) -> str:
    if receipt is None:
        return "rejected"
    if receipt.erased_at is not None:
        return "erased"
    return "voided" if any(session.voided_at for session in sessions) else "ingested"


async def elsewhere(settings: Settings) -> list[Place]:
    """Where batches wait in the broker that are not stored yet: only queues that have some.

    The broker can't say which batches they are. Raises `BrokerAway` and `TopologyError`.
    """
    async with Management(settings) as management:
        queues = await management.queues(QUEUES)
    places = []
    for queue in sorted(queues, key=lambda each: str(each["name"])):
        name, batches = queue["name"], queue.get("messages") or 0
        if batches and (awaits := _what_for(name)):
            delay = topology.delay_of(name)
            until = None if delay is None else datetime.now(UTC) + timedelta(seconds=delay)
            places.append(Place(name, awaits, batches, until))
    return places


async def _found_waiting(settings: Settings) -> str:
    """What waits in the broker, as a clause."""
    try:
        places = await elsewhere(settings)
    except (BrokerAway, TopologyError) as error:
        return f"what waits in the broker is not known ({str(error).rstrip('.')})"
    waits = [
        f"{place.batches} {place.awaits}"
        + ("" if place.until is None else f" (until {place.until:%H:%M:%S} UTC at the latest)")
        for place in places
    ]
    if not waits:
        return "no batch waits in the broker, so it has not arrived"
    return f"in the broker wait {', '.join(waits)}, and it may be one of them"


def _what_for(queue: str) -> str:
    """What a batch in this queue waits for, as a clause; empty if no batches wait there."""
    if queue == amqp.NEWER_QUEUE:
        return "for a newer worker"
    if queue == amqp.DEAD_QUEUE:
        return "to be collected as dead letters"
    if queue.startswith(amqp.RETRY_QUEUE_PREFIX):
        return "for another try"
    return "for a worker" if queue.startswith(amqp.ATTEMPTS_QUEUE) else ""
