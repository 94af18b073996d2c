"""The workload: users, questions and batches, the same for every contender.

It is deterministic: the same shape and seed give the same bytes.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

VIEWER: Final = "bench"
CHOICES: Final = 4
_FIRST_DAY: Final = datetime(2024, 1, 1, 8, 0, tzinfo=UTC)
_RIGHT, _UNSURE = 0.80, 0.08
"""Shares of answers; the rest are wrong. A log of real reviews has some 85 % right."""


class Shape(NamedTuple):
    """How large the world is; every user has equally many questions, in topics of one size."""

    users: int = 500
    questions: int = 100_000
    topics_per_user: int = 5
    topics_per_batch: int = 2
    attempts: int = 20
    """In each batch."""
    is_shared: bool = False
    """Whether all users answer the questions of the first one."""

    @property
    def questions_per_user(self) -> int:
        return self.questions // self.users

    @property
    def questions_per_topic(self) -> int:
        return self.questions_per_user // self.topics_per_user


@dataclass(frozen=True, slots=True)
class Batch:
    """One message."""

    uuid: UUID
    body: bytes
    viewer: str = VIEWER
    """Who publishes it."""


def pub_id(question_id: int) -> str:
    """The opaque id of a question; `stage` makes the same one in SQL."""
    return "q-" + hashlib.md5(str(question_id).encode()).hexdigest()


def correct_choice(question_id: int) -> int:
    """The right answer; `stage` makes the same one in SQL."""
    return question_id % CHOICES + 1


def batches(shape: Shape, count: int, *, seed: str, day: int) -> list[Batch]:
    """`count` sessions, each of one user on a few of their topics, from `day` on.

    Users come in a random order and again and again, so that batches of one user meet in a
    group and questions come back.
    """
    source = random.Random(f"{seed} {shape}")
    return [
        _batch(source, source.randint(1, shape.users), shape, _FIRST_DAY + _moment(day, number))
        for number in range(count)
    ]


def sessions_of(user: int, shape: Shape, count: int, *, seed: str, day: int) -> list[Batch]:
    """`count` sessions of one user on a few of their topics, from `day` on."""
    source = random.Random(f"{seed} {user} {shape}")
    return [
        _batch(source, user, shape, _FIRST_DAY + _moment(day, number)) for number in range(count)
    ]


def earlier(shape: Shape, share: float) -> Iterator[Batch]:
    """Sessions that answer `share` of every user's questions once, a month before day 30."""
    source = random.Random(f"earlier {shape}")
    for user in range(1, shape.users + 1):
        own = list(_questions(user, shape))
        chosen = source.sample(own, round(len(own) * share))
        for start in range(0, len(chosen), 20):
            yield _session(source, chosen[start : start + 20], _FIRST_DAY + _moment(0, start))


def same_question(question_id: int, attempts: int, *, day: int, seed: str = "") -> Batch:
    """A session that answers one question again and again."""
    source = random.Random(f"same {question_id} {attempts} {day} {seed}")
    return _session(source, [question_id] * attempts, _FIRST_DAY + timedelta(days=day))


def _moment(day: int, number: int) -> timedelta:
    # A day holds 8,640 sessions, ten seconds apart.
    return timedelta(days=day, seconds=number * 10)


def _batch(source: random.Random, user: int, shape: Shape, at: datetime) -> Batch:
    topics = source.sample(range(shape.topics_per_user), shape.topics_per_batch)
    own = _questions(user, shape)
    pool = [
        own[topic * shape.questions_per_topic + index]
        for topic in topics
        for index in range(shape.questions_per_topic)
    ]
    asked = (
        source.sample(pool, shape.attempts)
        if shape.attempts <= len(pool)
        else source.choices(pool, k=shape.attempts)
    )
    return _session(source, asked, at)


def _questions(user: int, shape: Shape) -> range:
    first = 1 if shape.is_shared else (user - 1) * shape.questions_per_user + 1
    return range(first, first + shape.questions_per_user)


def _session(source: random.Random, asked: list[int], at: datetime) -> Batch:
    uuid = UUID(int=source.getrandbits(128), version=4)
    attempts = []
    for position, question_id in enumerate(asked):
        luck = source.random()
        right = correct_choice(question_id)
        attempts.append(
            {
                "question_pub_id": pub_id(question_id),
                "selected_choice": right if luck < _RIGHT + _UNSURE / 2 else right % CHOICES + 1,
                "is_unsure": _RIGHT <= luck < _RIGHT + _UNSURE,
                "answered_at": (at + timedelta(seconds=position / 4)).isoformat(),
            }
        )
    body = {"client_session_uuid": str(uuid), "attempts": attempts}
    return Batch(uuid, json.dumps(body, separators=(",", ":")).encode())
