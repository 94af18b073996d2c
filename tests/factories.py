"""Questions, publications, batches and histories, made in one line; and what the tables hold.

Everything that a database is given here is what the study application would have written, and
everything that is read is rows: tests assert effects.
"""

import asyncio
import csv
import hashlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.amqp import attempts_key
from schemas.attempt_batch import Attempt, AttemptBatch
from schemas.errors import Rejection
from schemas.ingest_result import IngestResult
from schemas.words import Outcome
from worker.broker import field_table
from worker.domain.records import Original
from worker.domain.scoring import ScoredAttempt, outcome_of, was_right
from worker.ingest.resolve import Incoming
from worker.operate import repair
from worker.store.ours import PUBLIC, quoted, schema_of

MONDAY: Final = datetime(2024, 3, 4, 9, 0, tzinfo=UTC)
"""Long past, so that nothing told relative to it is clamped."""

VIEWER: Final = "phone"
RIGHT: Final = 1
"""The correct choice of every question, unless a test asks for another."""
WRONG: Final = 2

LOG_TABLES: Final = (
    "study_question_attempts",
    "study_quiz_sessions",
    "study_question_progress",
    "ingest_inbox",
    "outbox",
    "ingest_dead_letters",
)
"""What ingest writes."""

REVIEW_LOG: Final = Path(__file__).parents[2] / "shared" / "data" / "review-log.csv"


@dataclass(frozen=True, slots=True)
class Published:
    """A published question, as a viewer and as the database know it."""

    pub_id: str
    question_id: int
    topic_id: int
    user_id: int | None
    """None if it is shared."""


def at(days: float = 0, *, hours: float = 0, minutes: float = 0) -> datetime:
    """A time relative to `MONDAY`."""
    return MONDAY + timedelta(days=days, hours=hours, minutes=minutes)


# ----------------------------------------------------------------- the study application's rows


@asynccontextmanager
async def looking_into(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction in which the engine's schema need not be named."""
    async with engine.begin() as connection:
        if (schema := schema_of(connection)) != PUBLIC:
            await connection.execute(text(f"SET LOCAL search_path = {quoted(schema)}"))
        yield connection


async def execute(engine: AsyncEngine, sql: str, **values: object) -> None:
    """Runs and commits one statement."""
    async with looking_into(engine) as connection:
        await connection.execute(text(sql), values)


async def rows(engine: AsyncEngine, sql: str, **values: object) -> list[dict[str, Any]]:
    """What one query finds."""
    async with looking_into(engine) as connection:
        found = await connection.execute(text(sql), values)
        return [dict(row) for row in found.mappings()]


async def publish(
    engine: AsyncEngine,
    count: int = 1,
    *,
    user_id: int | None = 1,
    topic_id: int | None = None,
    correct_choice: int = RIGHT,
) -> list[Published]:
    """Publishes `count` new questions of one user (None: shared ones), in a topic of their own
    unless told.
    """
    async with looking_into(engine) as connection:
        if topic_id is None:
            topic_id = await connection.scalar(
                text(
                    "INSERT INTO study_topics (user_id) VALUES (CAST(:user_id AS bigint))"
                    " RETURNING id"
                ),
                {"user_id": user_id},
            )
        found = await connection.execute(
            text(
                "WITH question AS (INSERT INTO study_questions"
                " (user_id, study_topic_id, correct_choice)"
                " SELECT CAST(:user_id AS bigint), :topic_id, :choice"
                " FROM generate_series(1, :count) RETURNING id)"
                " INSERT INTO published (pub_id, kind, source_id)"
                " SELECT 'q' || id || '-' || left(md5(random()::text), 8), 'question', id"
                " FROM question ORDER BY id RETURNING pub_id, source_id"
            ),
            {"user_id": user_id, "topic_id": topic_id, "choice": correct_choice, "count": count},
        )
        assert topic_id is not None
        return [Published(pub_id, source_id, topic_id, user_id) for pub_id, source_id in found]


async def withdraw(engine: AsyncEngine, question: Published) -> None:
    """Takes the publication back."""
    await execute(
        engine, "UPDATE published SET deleted = true WHERE pub_id = :id", id=question.pub_id
    )


async def delete_question(engine: AsyncEngine, question: Published) -> None:
    """Deletes the question behind the publication."""
    await execute(
        engine,
        "UPDATE study_questions SET deleted_at = now() WHERE id = :id",
        id=question.question_id,
    )


async def published_days_ago(engine: AsyncEngine, viewer: str, days: Sequence[int]) -> None:
    """Receipts of batches of a viewer, one for each of these days before today."""
    await execute(
        engine,
        "INSERT INTO ingest_inbox (client_session_uuid, content_digest, user_id, viewer,"
        " received_at) SELECT gen_random_uuid(), sha256('x'), 1, :viewer,"
        " now() - day * interval '1 day' FROM unnest(CAST(:days AS integer[])) AS day",
        viewer=viewer,
        days=[*days],
    )


async def grant(engine: AsyncEngine, viewer: str, user_id: int) -> None:
    """Lets `viewer` write for `user_id`, and from now on for nobody else without a grant."""
    await execute(
        engine,
        "INSERT INTO viewer_grants (viewer, user_id) VALUES (:viewer, :user_id)",
        viewer=viewer,
        user_id=user_id,
    )


# ------------------------------------------------------------------------ what a viewer sends


def answer(
    question: Published | str,
    choice: int | None = RIGHT,
    answered_at: datetime | str | None = MONDAY,
    *,
    unsure: bool = False,
) -> Attempt:
    """One attempt; by default a right one."""
    return Attempt(
        question_pub_id=question if isinstance(question, str) else question.pub_id,
        selected_choice=choice,
        is_unsure=unsure,
        answered_at=answered_at.isoformat() if isinstance(answered_at, datetime) else answered_at,
    )


def right(question: Published | str, answered_at: datetime | str | None = MONDAY) -> Attempt:
    """The correct choice, and sure of it."""
    return answer(question, RIGHT, answered_at)


def wrong(question: Published | str, answered_at: datetime | str | None = MONDAY) -> Attempt:
    """Another choice."""
    return answer(question, WRONG, answered_at)


def unsure(
    question: Published | str,
    answered_at: datetime | str | None = MONDAY,
    choice: int | None = RIGHT,
) -> Attempt:
    """Not sure, whatever was selected."""
    return answer(question, choice, answered_at, unsure=True)


def no_answer(question: Published | str, answered_at: datetime | str | None = MONDAY) -> Attempt:
    """Neither a selection nor 'not sure'."""
    return answer(question, None, answered_at)


def batch(*attempts: Attempt, uuid: UUID | None = None) -> AttemptBatch:
    """One local session."""
    return AttemptBatch(client_session_uuid=uuid or uuid4(), attempts=attempts)


def incoming(
    content: AttemptBatch | Rejection,
    viewer: str | None = VIEWER,
    *,
    uuid: UUID | None = None,
    traceparent: str | None = None,
    principal: int | None = None,
) -> Incoming:
    """A delivery of `content`; `uuid` is what a rejected one seems to be about."""
    if isinstance(content, AttemptBatch):
        uuid = content.client_session_uuid
    return Incoming(viewer, content, uuid, traceparent, principal, original=original(content))


@dataclass(frozen=True)
class Sent:
    """A message as bytes, for what is kept of it."""

    body: bytes
    properties: bytes = field_table.EMPTY

    @property
    def size(self) -> int:
        return len(self.body)

    def digest(self) -> bytes:
        return hashlib.sha256(self.body).digest()

    def field_table(self) -> bytes:
        return self.properties

    def identity(self) -> bytes:
        return self.properties


def original(content: AttemptBatch | Rejection, key: str = attempts_key(VIEWER)) -> Original:
    """What a dead letter would keep of a delivery of `content`."""
    body = repr(content).encode(errors="backslashreplace")  # a time may be a lone surrogate
    return Original(Sent(body), key)


def sent(*attempts: Attempt, uuid: UUID | None = None, viewer: str | None = VIEWER) -> Incoming:
    """A delivery of one batch of `attempts`."""
    return incoming(batch(*attempts, uuid=uuid), viewer)


# --------------------------------------------------------------------------- pure histories


def scored(
    choice: int | None = RIGHT,
    answered_at: datetime = MONDAY,
    *,
    unsure: bool = False,
    session: UUID | int = 1,
    position: int = 0,
    sent_at: datetime | None = None,
    received_at: datetime | None = None,
) -> ScoredAttempt:
    """One attempt as the core folds it; `received_at` clamps `answered_at` as ingest would."""
    effective = min(answered_at, received_at or answered_at)
    outcome = outcome_of(choice, RIGHT, unsure)
    assert outcome is not None
    return ScoredAttempt(
        answered_at=effective,
        ordered_at=sent_at or answered_at,
        client_session_uuid=session if isinstance(session, UUID) else UUID(int=session),
        position=position,
        outcome=outcome,
        is_correct=was_right(choice, RIGHT),
    )


def history(letters: str, *, days: Sequence[float] | None = None) -> list[ScoredAttempt]:
    """A history in letters: `c` correct, `w` wrong, `h` unsure but right, `u` unsure and not.

    One attempt a day, or on the `days` given; each in a session of its own.
    """
    choices = {"c": (RIGHT, False), "w": (WRONG, False), "h": (RIGHT, True), "u": (None, True)}
    return [
        scored(choices[letter][0], at(day), unsure=choices[letter][1], session=number + 1)
        for number, (letter, day) in enumerate(
            zip(letters, days if days is not None else range(len(letters)), strict=True)
        )
    ]


# ------------------------------------------------------------------------ what the tables hold


async def count(engine: AsyncEngine, table: str) -> int:
    """The number of rows in `table`."""
    (row,) = await rows(engine, f"SELECT count(*) AS n FROM {table}")
    return int(row["n"])


async def forget(engine: AsyncEngine) -> None:
    """Empties what ingest writes; questions and publications stay."""
    async with looking_into(engine) as connection:
        for table in LOG_TABLES:
            await connection.execute(text(f"DELETE FROM {table}"))


async def progress(engine: AsyncEngine) -> dict[tuple[int | None, int], dict[str, Any]]:
    """Every progress row by (user, question), with all columns that the attempts decide: not the
    version, which says when it was written.
    """
    found = await rows(engine, "SELECT * FROM study_question_progress")
    return {
        (row["user_id"], row["study_question_id"]): {
            name: value for name, value in row.items() if name != "version"
        }
        for row in found
    }


async def users(engine: AsyncEngine) -> list[int]:
    """Everybody whom `verify` and `rebuild` go through."""
    return [user_id async for user_id in repair.users(engine)]


async def outbox(engine: AsyncEngine) -> list[dict[str, Any]]:
    """What waits in the outbox, in the order in which it will leave."""
    return await rows(engine, "SELECT * FROM outbox ORDER BY id")


async def told(engine: AsyncEngine, viewer: str = VIEWER) -> list[IngestResult]:
    """The results that wait for `viewer`, in order."""
    found = await rows(
        engine,
        "SELECT body FROM outbox WHERE exchange = 'study.results'"
        " AND routing_key = 'result.' || :viewer ORDER BY id",
        viewer=viewer,
    )
    return [IngestResult.model_validate_json(row["body"]) for row in found]


async def contents(engine: AsyncEngine) -> dict[str, list[dict[str, Any]]]:
    """All that ingest writes, without what differs from run to run: serial ids, versions and
    clocks.
    """
    return {
        "sessions": await rows(
            engine,
            "SELECT id, user_id, study_topic_id, question_ids, subject_distribution, status,"
            " cursor, source, client_session_uuid, correct_count, wrong_count, unsure_count,"
            " finished_at FROM study_quiz_sessions ORDER BY id",
        ),
        "attempts": await rows(
            engine,
            "SELECT user_id, study_question_id, study_topic_id, quiz_session_id, position,"
            " selected_choice, correct_choice, is_correct, outcome, answered_at, answered_at_sent,"
            " time_was, utc_offset, duration_ms FROM study_question_attempts"
            " ORDER BY quiz_session_id, position",
        ),
        "progress": [each for _, each in sorted((await progress(engine)).items())],
        "inbox": await rows(
            engine,
            "SELECT client_session_uuid, content_digest, user_id,"
            " summary - '{received_at,progress}'::text[] AS told FROM ingest_inbox"
            " ORDER BY client_session_uuid",
        ),
        "outbox": await rows(
            engine,
            "SELECT exchange, routing_key, type, headers,"
            " CAST(body AS jsonb) - '{received_at,progress}'::text[] AS body"
            " FROM outbox ORDER BY id",
        ),
    }


async def log(engine: AsyncEngine) -> dict[tuple[int, int], list[ScoredAttempt]]:
    """Every stored attempt as the core folds it, in no order, by (user, question)."""
    found: dict[tuple[int, int], list[ScoredAttempt]] = {}
    for row in await rows(
        engine,
        "SELECT attempt.*, session.client_session_uuid AS uuid FROM study_question_attempts AS"
        " attempt JOIN study_quiz_sessions AS session ON session.id = attempt.quiz_session_id",
    ):
        found.setdefault((row["user_id"], row["study_question_id"]), []).append(
            ScoredAttempt(
                answered_at=row["answered_at"],
                ordered_at=row["answered_at_sent"] or row["answered_at"],
                client_session_uuid=row["uuid"],
                position=row["position"],
                outcome=Outcome(row["outcome"]),
                is_correct=row["is_correct"],
            )
        )
    return found


async def blocked(engine: AsyncEngine, backends: int) -> None:
    """Waits until that many backends of this database wait for a lock; a minute at most."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        (row,) = await rows(
            engine,
            "SELECT count(*) AS n FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        if row["n"] >= backends:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{backends} backends never waited for a lock")


# --------------------------------------------------------------------------- the real log


@dataclass(frozen=True, slots=True)
class Review:
    """One line of the real review log."""

    card: int
    rating: int
    at: datetime


def review_log() -> list[list[Review]]:
    """The real review log as sessions: reviews less than 30 minutes apart belong together."""
    if not REVIEW_LOG.exists():
        pytest.skip(f"the real review log is not at {REVIEW_LOG.parent.name}/{REVIEW_LOG.name}")
    with REVIEW_LOG.open(newline="") as file:
        reviews = sorted(
            (
                Review(
                    int(line["card_id"]),
                    int(line["review_rating"]),
                    datetime.fromisoformat(line["review_time"]),
                )
                for line in csv.DictReader(file)
            ),
            key=lambda review: review.at,
        )
    sessions: list[list[Review]] = []
    for review in reviews:
        if not sessions or review.at - sessions[-1][-1].at >= timedelta(minutes=30):
            sessions.append([])
        sessions[-1].append(review)
    return sessions


def reviewed(reviews: Iterable[Review], questions: dict[int, Published]) -> list[Attempt]:
    """Reviews as attempts: 1 again, 2 hard, 3 good and 4 easy are wrong, unsure, right, right."""
    by_rating = {1: wrong, 2: unsure, 3: right, 4: right}
    return [by_rating[review.rating](questions[review.card], review.at) for review in reviews]
