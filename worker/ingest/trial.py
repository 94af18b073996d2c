"""The trial: finds out by writing whether the database accepts writes now.

It makes the same writes as ingest, to the same tables, for made-up batches of users that do not
exist, and rolls everything back. With it a worker decides whose fault a failure is: a failure is
only charged to a message if the trial succeeds right after it.
"""

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NoReturn
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.attempt_batch import Attempt, AttemptBatch
from schemas.words import RejectReason
from worker.domain.policy import Policy
from worker.domain.records import DeadLetter, Mark, Standing
from worker.errors import DatabaseAway
from worker.ingest.finalize import Finalized, finalize, score
from worker.ingest.resolve import Incoming, Plan
from worker.store import (
    attempts,
    dead_letters,
    inbox,
    moments,
    outbox,
    pause,
    progress,
    publications,
)
from worker.store.driver import fetch, write
from worker.store.engine import doubt_sessions, reason_of, transaction
from worker.store.inbox import Receipt
from worker.store.moments import Published

_VIEWER: Final = "trial"
_BATCHES: Final = 60
"""Enough batches for a new page in each table, because a single row finds room even on a full
disk.
"""
_ATTEMPTS: Final = 3
_RIGHT: Final = 1
_BODY_BYTES: Final = 200
_COMMIT_HANGS: Final = 2.0
"""Seconds after which a COMMIT counts as waiting for an unreachable server."""

# The question of the newest attempt certainly has a topic. Before the first attempt, any question
# will do.
_QUESTION: Final = text(
    "(SELECT study_question_id, study_topic_id FROM ours.study_question_attempts ORDER BY id DESC"
    " LIMIT 1) UNION ALL (SELECT id, study_topic_id FROM ours.study_questions LIMIT 1) LIMIT 1"
)

_HANGING_COMMITS: Final = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND usename = current_user AND state = 'active' AND query ILIKE 'commit%'"
    " AND query_start < clock_timestamp() - make_interval(secs => :seconds)"
)


class _RolledBack(Exception):
    """Raised at the end of a successful trial."""


async def try_writing(engine: AsyncEngine) -> None:
    """Returns if the database accepts ingest's writes. It stores nothing.

    Raises `DatabaseAway` with the reason if the database does not, whatever the error is. Later
    attempts then use new sessions.
    """
    try:
        async with transaction(engine) as connection:
            await _try(connection)
    except _RolledBack:
        return
    except Exception as error:
        doubt_sessions(engine)
        if isinstance(error, DatabaseAway):
            raise
        raise DatabaseAway(f"The database takes no writes: {reason_of(error)}.") from error


async def hanging_commits(connection: AsyncConnection) -> int:
    """The number of this role's sessions that have been waiting in COMMIT for more than a moment.

    They keep their locks, even if their clients have given up on them.
    """
    return int(await connection.scalar(_HANGING_COMMITS, {"seconds": _COMMIT_HANGS}) or 0)


async def _try(connection: AsyncConnection) -> NoReturn:
    await pause.is_paused(connection)
    if hanging := await hanging_commits(connection):
        raise DatabaseAway(
            f"{hanging} of this role's commits hang",
            "check that the replicas in synchronous_standby_names are there.",
        )
    await publications.resolve(connection, {""}, {""}, {_VIEWER})
    await progress.standing(connection, [])
    received_at, mark, *_ = await inbox.look(connection, [], [])
    for question_id, topic_id in await fetch(connection, _QUESTION, {}):
        first = -secrets.randbits(62)
        question = Standing(question_id, None, topic_id, _RIGHT, None, False, None)
        plans = [_plan(question, first - n) for n in range(_BATCHES)]
        done = [
            finalize(
                [score(plan, received_at, Policy())],
                {(plan.user_id, question_id): question},
                {},
                Policy(),
                mark,
            )
            for plan in plans
        ]
        await _write(connection, plans, done, mark, received_at)
    await dead_letters.keep(connection, [_letter() for _ in range(_BATCHES)], Policy())
    raise _RolledBack


async def _write(
    connection: AsyncConnection,
    plans: Sequence[Plan],
    done: Sequence[Finalized],
    mark: Mark,
    received_at: datetime,
) -> None:
    receipts = [
        Receipt(
            plan.client_session_uuid,
            plan.batch.digest(),
            plan.user_id,
            _VIEWER,
            each.told[plan.client_session_uuid],
        )
        for plan, each in zip(plans, done, strict=True)
    ]
    await inbox.add(connection, receipts)
    await write(
        connection,
        [
            *attempts.inserting([row for each in done for row in each.sessions]),
            *progress.saving([row for each in done for row in each.progress], mark.version),
            *outbox.recording(
                [message for each in done for told in each.messages.values() for message in told]
            ),
            *moments.noting(
                _VIEWER,
                len(plans),
                [Published(plan.client_session_uuid, received_at, _VIEWER) for plan in plans],
            ),
        ],
    )


def _letter() -> DeadLetter:
    """A made-up dead letter, which is no other's."""
    key, body = secrets.token_bytes(32), secrets.token_bytes(_BODY_BYTES)
    return DeadLetter(
        key, None, RejectReason.MALFORMED, "", _VIEWER, b"", None, None, b"", body, len(body), None
    )


def _plan(question: Standing, user_id: int) -> Plan:
    """A made-up batch of the user."""
    attempt = Attempt(question_pub_id=_VIEWER, selected_choice=_RIGHT)
    batch = AttemptBatch(client_session_uuid=uuid4(), attempts=(attempt,) * _ATTEMPTS)
    return Plan(
        Incoming(_VIEWER, batch, batch.client_session_uuid),
        batch,
        user_id,
        tuple((position, attempt, question) for position in range(_ATTEMPTS)),
        (),
        None,
    )
