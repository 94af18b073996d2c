"""The evidence after a run: the viewers' files, the database's rows, and the messages in the
queues.

This module collects plain values, and the checker judges them.
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import aio_pika
import asyncpg
from aio_pika.abc import AbstractIncomingMessage

Row = dict[str, Any]


class Recorded(NamedTuple):
    """One row of a viewer's outbox. `result` is the result that the viewer got, or None."""

    viewer: str
    client_session_uuid: UUID
    digest: bytes
    body: Row
    state: str
    result: Row | None
    confirms: int


class Played(NamedTuple):
    """A session in the viewer's own table, stored in the same transaction as its outbox row."""

    viewer: str
    client_session_uuid: UUID
    attempts: list[Row]


class Held(NamedTuple):
    """What a viewer's file says about one user's question, after the viewer has asked.

    `question` is the id of the question, or a published id if only a result has told of it and no
    page since.
    """

    viewer: str
    user_id: int
    question: int | str
    row: Row


class Strange(NamedTuple):
    """A message of the stranger that the broker has confirmed, and what must happen to it.

    `mark` is in its body, which travels with every copy. `expected` is a rejection's reason, or
    `already_ingested` for an echo of a batch that was ingested before. `or_else` is another
    reason that is as right, for a message that the broker may be unable to deliver.
    """

    mark: str
    client_session_uuid: UUID | None
    expected: str
    or_else: str | None = None


class Told(NamedTuple):
    """A result on the wire. `sent` is the second in which it was published, by the clock of this
    machine.
    """

    message_id: str
    routing_key: str
    body: Row
    sent: float = 0.0


class Checked(NamedTuple):
    """An answer to a viewer that asked which of its batches the server has, and when it was sent,
    like a result.
    """

    routing_key: str
    body: Row
    sent: float = 0.0


class Job(NamedTuple):
    """A follow-up job on the wire."""

    message_id: str
    routing_key: str
    body: Row


class Parked(NamedTuple):
    """A dead letter; `message` tells what it was from all other messages, as far as is known."""

    client_session_uuid: UUID | None
    mark: str | None
    reason: str
    message: bytes | None = None


class Look(NamedTuple):
    """What an operator was shown during a fault, where one thing must be shown.

    `what` was looked at, such as the command `status`.
    """

    during: str
    what: str
    must: str
    shown: list[str]


@dataclass(slots=True)
class Evidence:
    """All evidence. `waiting` is the number of messages in queues or tables that should be
    empty. `held` is the progress that viewers keep, and `granted` the users of each viewer that
    may have any. `promoted` are the times at which another server took over (`time.time`).
    """

    recorded: list[Recorded] = field(default_factory=list)
    played: list[Played] = field(default_factory=list)
    strange: list[Strange] = field(default_factory=list)
    published: dict[str, Row] = field(default_factory=dict)
    inbox: list[Row] = field(default_factory=list)
    sessions: list[Row] = field(default_factory=list)
    attempts: list[Row] = field(default_factory=list)
    progress: list[Row] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    checked: list[Checked] = field(default_factory=list)
    promoted: list[float] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    granted: dict[str, set[int]] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)


MARK_WORD: Final = "chaos-mark"
PLAYED_TABLE: Final = "CREATE TABLE IF NOT EXISTS quiz (uuid TEXT PRIMARY KEY, attempts TEXT)"

_TABLES: Final = {
    "inbox": "SELECT client_session_uuid, content_digest, user_id, received_at, summary"
    " FROM ingest_inbox",
    "sessions": "SELECT * FROM study_quiz_sessions",
    "attempts": "SELECT attempt.*, session.client_session_uuid FROM study_question_attempts"
    " AS attempt JOIN study_quiz_sessions AS session ON session.id = attempt.quiz_session_id"
    " ORDER BY attempt.id",
    "progress": "SELECT * FROM study_question_progress",
}
_PUBLISHED: Final = (
    "SELECT pub_id, published.deleted AS withdrawn, question.id, question.user_id,"
    " question.study_topic_id AS topic_id, question.correct_choice,"
    " question.deleted_at IS NOT NULL AS deleted"
    " FROM published JOIN study_questions AS question ON question.id = source_id"
    " WHERE kind = 'question'"
)
_LETTERS: Final = "SELECT client_session_uuid, reason, properties, body FROM ingest_dead_letters"
_MARK: Final = re.compile(MARK_WORD.encode() + rb"\W+([\w-]+)")
_MESSAGE_ID: Final = re.compile(rb"\x0amessage_idS\x00\x00\x00.([\w-]+)")
"""As a field table of AMQP has it: its name, its type, its length, and itself."""
_CHECKED: Final = "study.checked.v1"
"""The type of an answer to a viewer that asks which of its batches the server has."""
_DRAINED_AFTER: Final = 15.0
"""Seconds for one answer of the broker while a queue is being emptied."""


def read_outbox(evidence: Evidence, path: Path, viewer: str) -> None:
    """Adds the content of one viewer's file, read without the library."""
    with closing(sqlite3.connect(path)) as file:
        for uuid, digest, body, state, result, confirms in file.execute(
            "SELECT client_session_uuid, digest, body, state, result, confirms"
            " FROM study_outbox ORDER BY seq"
        ):
            told = None if result is None else json.loads(result)
            evidence.recorded.append(
                Recorded(viewer, UUID(uuid), bytes(digest), json.loads(body), state, told, confirms)
            )
        file.execute(PLAYED_TABLE)
        for uuid, attempts in file.execute("SELECT uuid, attempts FROM quiz"):
            evidence.played.append(Played(viewer, UUID(uuid), json.loads(attempts)))
        file.row_factory = sqlite3.Row
        for row in file.execute("SELECT * FROM study_progress"):
            evidence.held.append(Held(viewer, row["user_id"], row["question_id"], dict(row)))
        for row in file.execute("SELECT * FROM study_progress_told"):
            evidence.held.append(Held(viewer, row["user_id"], row["pub_id"], dict(row)))


async def read_database(evidence: Evidence, url: str) -> None:
    """Adds all relevant rows, from one snapshot."""
    connection = await asyncpg.connect(url)
    try:
        await connection.set_type_codec(
            "jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog"
        )
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            for name, query in _TABLES.items():
                rows = [dict(row) for row in await connection.fetch(query)]
                setattr(evidence, name, rows)
            evidence.published = {
                row["pub_id"]: dict(row) for row in await connection.fetch(_PUBLISHED)
            }
            for row in await connection.fetch("SELECT viewer, user_id FROM viewer_grants"):
                evidence.granted.setdefault(row["viewer"], set()).add(row["user_id"])
            for table in ("outbox", "ingest_replays"):
                unsent = await connection.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608
                evidence.waiting[f"the table {table}"] = unsent
            evidence.parked += [_parked(row) for row in await connection.fetch(_LETTERS)]
    finally:
        await connection.close()


async def read_queues(
    evidence: Evidence, url: str, *, empty: Iterable[str], results: str, jobs: str
) -> None:
    """Counts what waits in the queues `empty`, and takes all out of the other two."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for name in empty:
            queue = await channel.get_queue(name)
            evidence.waiting[f"the queue {name}"] = queue.declaration_result.message_count or 0
        for message in await _drain(channel, results):
            if message.type != _CHECKED:
                evidence.told.append(Told(*_addressed(message), _sent(message)))
        for message in await _drain(channel, jobs):
            evidence.jobs.append(Job(*_addressed(message)))


async def take_answers(answers: dict[str, Checked], url: str, queue: str) -> None:
    """Takes all messages out of a queue that gets the results, and adds the answers to viewers that
    asked, by their ids. An answer lasts only a minute in a queue, so this has to be done often.
    """
    async with await aio_pika.connect(url, timeout=_DRAINED_AFTER) as connection:
        channel = await connection.channel()
        tap = await channel.get_queue(queue)
        while message := await tap.get(fail=False, timeout=_DRAINED_AFTER):
            if message.type == _CHECKED:
                message_id, routing_key, body = _addressed(message)
                answers[message_id] = Checked(routing_key, body, _sent(message))
            await message.ack()


def _sent(message: AbstractIncomingMessage) -> float:
    return message.timestamp.timestamp() if message.timestamp else 0.0


async def _drain(channel: aio_pika.abc.AbstractChannel, name: str) -> list[AbstractIncomingMessage]:
    """All messages of the queue. It asks for each of them, because the broker's count is wrong at
    times: a quorum queue that had lost a member had fewer messages than it said.
    """
    queue = await channel.get_queue(name)
    found: list[AbstractIncomingMessage] = []
    while message := await queue.get(no_ack=True, fail=False, timeout=_DRAINED_AFTER):
        found.append(message)
    return found


def _addressed(message: AbstractIncomingMessage) -> tuple[str, str, Row]:
    return message.message_id or "", message.routing_key or "", json.loads(message.body)


def _parked(row: Mapping[str, Any]) -> Parked:
    mark = _MARK.search(row["body"])
    message_id = _MESSAGE_ID.search(row["properties"])
    return Parked(
        row["client_session_uuid"],
        None if mark is None else mark[1].decode(),
        row["reason"],
        None if message_id is None else message_id[1] + row["body"],
    )
