"""The tables of the application."""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import DateTime, ForeignKey, Identity, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True), list[str]: JSONB}  # noqa: RUF012


class User(Base):
    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(unique=True)
    signed_up_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Topic(Base):
    __tablename__ = "study_topics"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    slug: Mapped[str] = mapped_column(unique=True)
    title: Mapped[str]


class Question(Base):
    __tablename__ = "questions"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    topic_id: Mapped[UUID] = mapped_column(ForeignKey("study_topics.id"), index=True)
    prompt: Mapped[str]
    choices: Mapped[list[str]]
    answer: Mapped[int]
    """The index of the right choice."""
    archived_at: Mapped[datetime | None]

    topic: Mapped[Topic] = relationship()


class Round(Base):
    """Some questions of one topic that a user has answered in one go."""

    __tablename__ = "rounds"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), index=True)
    topic_id: Mapped[UUID] = mapped_column(ForeignKey("study_topics.id"))
    finished_at: Mapped[datetime]

    topic: Mapped[Topic] = relationship()
    answers: Mapped[list["Answer"]] = relationship(order_by="Answer.id")


class Answer(Base):
    __tablename__ = "answers"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    round_id: Mapped[UUID] = mapped_column(ForeignKey("rounds.id"), index=True)
    question_id: Mapped[UUID] = mapped_column(ForeignKey("questions.id"))
    choice: Mapped[int | None]
    """None if the user did not know."""
    answered_at: Mapped[datetime]

    question: Mapped[Question] = relationship()
