"""The tables as ORM classes; columns that the database fills itself are left to it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Double, FetchedValue, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """How Python's types are stored."""

    type_annotation_map = {  # noqa: RUF012  # SQLAlchemy's own way
        int: BigInteger,
        str: Text,
        float: Double,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[int]: JSONB,
    }


class Published(Base):
    __tablename__ = "published"
    pub_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    source_id: Mapped[int]
    deleted: Mapped[bool]


class Question(Base):
    __tablename__ = "study_questions"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]
    study_topic_id: Mapped[int]
    correct_choice: Mapped[int]
    deleted_at: Mapped[datetime | None]


class Grant(Base):
    __tablename__ = "viewer_grants"
    viewer: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(primary_key=True)


class Session(Base):
    __tablename__ = "study_quiz_sessions"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[int]
    study_topic_id: Mapped[int]
    question_ids: Mapped[list[int]]
    subject_distribution: Mapped[dict[str, Any]]
    status: Mapped[str]
    cursor: Mapped[int]
    source: Mapped[str]
    client_session_uuid: Mapped[UUID]
    correct_count: Mapped[int]
    wrong_count: Mapped[int]
    unsure_count: Mapped[int]
    finished_at: Mapped[datetime]
    finalized_at: Mapped[datetime]


class Attempt(Base):
    __tablename__ = "study_question_attempts"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]
    study_question_id: Mapped[int]
    study_topic_id: Mapped[int]
    quiz_session_id: Mapped[UUID]
    position: Mapped[int]
    selected_choice: Mapped[int | None]
    correct_choice: Mapped[int]
    is_correct: Mapped[bool | None]
    outcome: Mapped[str]
    answered_at: Mapped[datetime]
    answered_at_sent: Mapped[datetime | None]
    time_was: Mapped[str | None]


class Progress(Base):
    __tablename__ = "study_question_progress"
    user_id: Mapped[int] = mapped_column(primary_key=True)
    study_question_id: Mapped[int] = mapped_column(primary_key=True)
    study_topic_id: Mapped[int]
    attempts_count: Mapped[int]
    correct_count: Mapped[int]
    wrong_count: Mapped[int]
    unsure_count: Mapped[int]
    correct_run: Mapped[int]
    best_run: Mapped[int]
    spaced_run: Mapped[int]
    recent_unsure: Mapped[int]
    lapse_count: Mapped[int]
    first_correct_at: Mapped[datetime | None]
    last_outcome: Mapped[str]
    last_answered_at: Mapped[datetime]
    pattern: Mapped[str]
    stability: Mapped[float]
    difficulty: Mapped[float]
    due_at: Mapped[datetime]
    scheduler: Mapped[str]
    explanation_requested: Mapped[bool]


class Inbox(Base):
    __tablename__ = "ingest_inbox"
    client_session_uuid: Mapped[UUID] = mapped_column(primary_key=True)
    content_digest: Mapped[bytes]
    user_id: Mapped[int]
    received_at: Mapped[datetime] = mapped_column(server_default=FetchedValue())
    summary: Mapped[dict[str, Any]]


class Outbox(Base):
    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(primary_key=True)
    message_id: Mapped[UUID]
    exchange: Mapped[str]
    routing_key: Mapped[str]
    type: Mapped[str]
    headers: Mapped[dict[str, Any]]
    body: Mapped[str]
