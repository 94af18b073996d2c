"""`recall`: after a backup was restored, asks all viewers for what was ingested since it was made.

Viewers publish again what is missing, and among that is what users answered who were erased since.
So the erasures come first: each is made again as of its own moment, and what was answered before it
is then skipped, whoever publishes it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import uuid4

from pydantic import AwareDatetime, TypeAdapter, ValidationError
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.checks import Recall
from worker.broker import topology
from worker.broker.management import Management
from worker.domain.records import Message, OnChange
from worker.errors import RecallError
from worker.operate.dead.letters import OnProgress
from worker.operate.erase import erase, survey
from worker.store import audit, erasures, outbox
from worker.store.audit import By
from worker.store.driver import write
from worker.store.engine import transaction
from worker.store.operate import grants
from worker.store.operate.erase import ingested_since

_UNDER_WAY: Final = timedelta(hours=1)
"""How long before the backup a batch may have been received that is not in it: the time of a batch
is that at which its transaction began, and a commit may wait for a standby. To ask about more
batches than needed does no harm.
"""
_AT_ONCE: Final = 1_000
"""Messages in one statement."""
_MOMENT: Final = TypeAdapter(AwareDatetime)


class Erasure(NamedTuple):
    """A user's last erasure."""

    user_id: int
    erased_at: datetime

    @property
    def line(self) -> str:
        """As an export has it."""
        record = {"record": "erasure", "user_id": self.user_id}
        return json.dumps(record | {"erased_at": self.erased_at.astimezone(UTC).isoformat()})


@dataclass(slots=True)
class Recalled:
    """What a recall did, or would do."""

    viewers: int = 0
    """Those that were sent the message."""
    without_queue: int = 0
    """Those with a grant and without a queue, where the message is lost."""
    erased: int = 0
    """Users that were erased again."""
    known: int = 0
    """Users whose erasure the database had already."""


def read_erasures(lines: Iterable[str]) -> list[Erasure]:
    """The last erasure of each user in JSON Lines, as `erasures`, `erase --record` and `export`
    write them. Other records of an export are left out.

    Raises `RecallError` for a line that is none of these.
    """
    last: dict[int, datetime] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if record["record"] != "erasure":
                continue
            user_id = int(record["user_id"])
            erased_at = _MOMENT.validate_python(record["erased_at"])
            if not -(2**63) <= user_id < 2**63:
                raise ValueError
        except (ValueError, TypeError, KeyError, ValidationError):
            raise RecallError(
                f"Line {number} is not an erasure",
                "give a file that `study-ingest erasures` or `erase --record` wrote.",
            ) from None
        last[user_id] = max(erased_at, last.get(user_id, erased_at))
    return [Erasure(user_id, at) for user_id, at in sorted(last.items())]


async def erasures_since(engine: AsyncEngine, since: datetime | None) -> list[Erasure]:
    """The erasures that the database knows, by time. Raises `DatabaseAway`."""
    async with transaction(engine) as connection:
        return [Erasure(*each) for each in await erasures.since(connection, since)]


async def recall(
    engine: AsyncEngine,
    management: Management,
    since: datetime,
    made: Sequence[Erasure],
    by: By,
    *,
    dry_run: bool,
    progress: OnProgress = lambda *_: None,
    on_change: OnChange = lambda *_: None,
) -> Recalled:
    """Makes the erasures again, and then asks all viewers. It may be run again.

    Raises `RecallError`, before anything is changed, if a user to erase has answered since, and
    `DatabaseAway` and `BrokerAway`.
    """
    done = Recalled()
    viewers = await _viewers(engine, management, done)
    async with transaction(engine) as connection:
        known = await erasures.of_users(connection, [each.user_id for each in made])
        new = [
            each
            for each in made
            if each.user_id not in known or known[each.user_id] < each.erased_at
        ]
        for each in new:
            _check_untouched(each, await ingested_since(connection, *each))
    done.known = len(made) - len(new)
    for place, each in enumerate(new):
        if not dry_run:
            found = await survey(engine, each.user_id, lambda *_: None)
            await erase(engine, each.user_id, found, by, on_change, at=each.erased_at)
        done.erased += 1
        progress(place + 1, len(new))
    done.viewers = len(viewers)
    if dry_run:
        return done
    body = Recall(since=since - _UNDER_WAY).model_dump_json()
    async with transaction(engine) as connection:
        for start in range(0, len(viewers), _AT_ONCE):
            some = [_message(viewer, body) for viewer in viewers[start : start + _AT_ONCE]]
            await write(connection, outbox.recording(some))
        effect = {"since": since.isoformat(), "viewers": len(viewers), "erasures": done.erased}
        await audit.record(connection, by, "recall", "all viewers", effect)
    return done


async def _viewers(engine: AsyncEngine, management: Management, done: Recalled) -> list[str]:
    """All viewers, by name: those with a queue for results, which the broker has even if they were
    made after the backup, and those with a grant.
    """
    names = map(topology.viewer_of_results, await management.queue_names())
    there = {name for name in names if name is not None and amqp.is_viewer(name)}
    async with transaction(engine) as connection:
        granted = {name for name in await grants.all_of(connection) if amqp.is_viewer(name)}
    done.without_queue = len(granted - there)
    return sorted(there | granted)


def _message(viewer: str, body: str) -> Message:
    key = amqp.result_key(viewer)
    return Message(uuid4(), amqp.RESULTS_EXCHANGE, key, amqp.RECALL_TYPE, {}, body)


def _check_untouched(erasure: Erasure, batches: int) -> None:
    if batches:
        raise RecallError(
            f"Workers have ingested {batches} batches of user {erasure.user_id}, who was erased at"
            f" {erasure.erased_at.isoformat(timespec='seconds')}, since then",
            f"run `study-ingest erase --user {erasure.user_id}`, which also deletes what the user"
            " answered since, and then `recall` again.",
        )
