"""Rounds, as the JSON API shows them."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel


class AnswerOut(BaseModel):
    question: str
    choice: str | None
    right: bool


class RoundOut(BaseModel):
    id: UUID
    topic: str
    finished_at: datetime
    score: int
    answers: list[AnswerOut]
