"""Simulated study sessions: what the users answer, and which faults happen on the way.

Pure, and the same for the same seed. One user in four has a second device that was offline all the
time and sends its sessions last, so they arrive late.
"""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from demo.bank import CHOICES, Question
from study_viewer import Attempt, AttemptBatch

_TWICE_SHARE: Final = 0.2
_SPAN: Final = timedelta(days=60)
_SECOND_DEVICE_EVERY: Final = 4


@dataclass(slots=True)
class Device:
    """One viewer, and what it will record, in order."""

    viewer: str
    late: bool
    batches: list[AttemptBatch] = field(default_factory=list)
    twice: set[UUID] = field(default_factory=set)
    """The sessions that are sent again, as by a phone that died before it marked them as
    confirmed.
    """


@dataclass(frozen=True, slots=True)
class Broken:
    """A message that no outbox would send."""

    viewer: str
    body: bytes
    client_session_uuid: UUID | None = None


def devices(bank: list[Question], batches: int, rng: random.Random) -> list[Device]:
    """All devices, with `batches` sessions between them; the first has one of mixed owners."""
    by_user: dict[int, list[Question]] = {}
    for question in bank:
        by_user.setdefault(question.user_id, []).append(question)
    found = {user: Device(f"phone-{user}", late=False) for user in by_user}
    tablets = {
        user: Device(f"tablet-{user}", True) for user in by_user if user % _SECOND_DEVICE_EVERY == 1
    }
    begin = datetime.now(UTC) - _SPAN
    users = list(by_user)
    for number in range(batches):
        user = users[number % len(users)]
        at = begin + _SPAN * (number / batches)
        on_tablet = user in tablets and rng.random() < 0.5
        device = tablets[user] if on_tablet else found[user]
        batch = session(rng, by_user[user], at)
        device.batches.append(batch)
        if rng.random() < _TWICE_SHARE:
            device.twice.add(batch.client_session_uuid)
    first, second = users[:2]
    mixed = session(rng, by_user[first][:30] + by_user[second][:30], begin)
    found[first].batches.append(mixed)
    return [*found.values(), *tablets.values()]


def broken(sent: AttemptBatch, viewer: str, rng: random.Random) -> list[Broken]:
    """Bodies that are no attempt batch, and the uuid of `sent` again with other content."""
    uuid = _uuid(rng)
    attempt = '{"question_pub_id": "pub-1-001", "selected_choice": %s}'
    batch = f'{{"client_session_uuid": "{uuid}", "attempts": [{attempt}]}}'
    other = sent.model_copy(update={"attempts": sent.attempts[:1] * 2})
    return [
        Broken(viewer, b"not json at all"),
        Broken(viewer, b"\xff\xfe\x00"),
        Broken(viewer, b"[" * 100_000),
        Broken(viewer, b'{"attempts": []}'),
        Broken(viewer, (batch % ("9" * 5_000)).encode(), uuid),
        Broken(viewer, (batch % '"one"').encode(), uuid),
        Broken(viewer, b" " * 2_000_000),
        Broken(viewer, other.model_dump_json().encode(), sent.client_session_uuid),
    ]


def session(rng: random.Random, questions: list[Question], at: datetime) -> AttemptBatch:
    """One session of 5 to 25 of the questions, begun at `at`; it takes under 17 minutes."""
    attempts = []
    for question in rng.sample(questions, rng.randint(5, 25)):
        at += timedelta(seconds=rng.uniform(3, 40))
        right = rng.random() < 0.7
        choice = question.correct_choice if right else (question.correct_choice + 1) % CHOICES
        attempts.append(
            Attempt(
                question_pub_id=question.pub_id,
                selected_choice=None if rng.random() < 0.05 else choice,
                is_unsure=rng.random() < 0.1,
                answered_at=at.isoformat(),
            )
        )
    return AttemptBatch(client_session_uuid=_uuid(rng), attempts=tuple(attempts))


def _uuid(rng: random.Random) -> UUID:
    return UUID(int=rng.getrandbits(128), version=4)
