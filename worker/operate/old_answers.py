"""`answers import`: brings in answers that were given before study-ingest was there.

The answers become batches whose uuids are derived from the application's own ids, and go through
the ingest transaction of the workers. So they are scored, folded and stored like all others, and
importing them twice changes nothing. They cause no follow-up jobs, and no results.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from typing import IO, Annotated, Final, NamedTuple
from uuid import UUID

from pydantic import Field, model_validator
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.attempt_batch import Attempt, AttemptBatch, can_identify
from schemas.times import read_time
from worker.domain.backoff import Backoff
from worker.domain.dispositions import Busy, Disposition, Duplicate, Ingested, Rejected
from worker.domain.ids import derived_id
from worker.domain.policy import Policy
from worker.errors import AnswersError, TransientFault
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.operate.lines import Format, NumberedLine, shown
from worker.store import audit
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate import old_answers as stored

_NAMESPACE: Final = UUID("5c3a8f2e-6a8e-4d0b-9b52-0c7a2d2f7c11")
_ANSWERS_AT_ONCE: Final = 2_000
"""In one transaction. More are no faster, and hold a user's history longer."""
_TRIES: Final = 20
_LONGEST_WAIT: Final = 5.0
_BIGGEST_ID: Final = 2**63
_BIGGEST_CHOICE: Final = 2**31
_STORABLE: Final = r"^[^\x00]*$"
"""PostgreSQL's text can't hold U+0000."""


class Line(NumberedLine):
    """One answer."""

    user_id: Annotated[int, Field(ge=1, lt=_BIGGEST_ID)]
    pub_id: Annotated[str, Field(min_length=1, max_length=128, pattern=_STORABLE)]
    """The published id of the question."""
    selected_choice: Annotated[int, Field(ge=-_BIGGEST_CHOICE, lt=_BIGGEST_CHOICE)] | None = None
    is_unsure: bool = False
    answered_at: str
    """As in an attempt batch. Without an offset it is UTC."""
    duration_ms: Annotated[int, Field(ge=0, le=86_400_000)] | None = None
    session: Annotated[str, Field(min_length=1, max_length=1_000)] | None = None
    """The application's id of the session. Without one, the answers of a user on one day (in UTC)
    are a session.
    """

    @model_validator(mode="after")
    def _is_answer(self) -> "Line":
        if read_time(self.answered_at) is None:
            raise ValueError(f"answered_at is {shown(self.answered_at)}, which is no time")
        if self.selected_choice is None and not self.is_unsure:
            raise ValueError("a line needs either selected_choice or is_unsure")
        return self


FORMAT: Final = Format(Line, AnswersError, "answer", ("user_id",))


class Refused(NamedTuple):
    """A session that is not ingested, and the line where it begins."""

    line: int
    reason: str
    detail: str


@dataclass(slots=True)
class Imported:
    """What is in the file, and what became of it."""

    answers: int = 0
    users: int = 0
    sessions: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Answers to questions that are not published, by the reason (`SkipReason`)."""
    example: tuple[str, int] | None = None
    """A published id that is unknown, and the first line with it."""
    added: int = 0
    """Sessions that were ingested now."""
    known: int = 0
    """Sessions that were ingested before."""
    empty: int = 0
    """Sessions without any answer to a published question."""
    replaced_times: int = 0
    """Answers whose time can't be true, so that they count as given now, or beside another."""
    refused: list[Refused] = field(default_factory=list)


async def bring_in(
    engine: AsyncEngine,
    file: IO[bytes],
    policy: Policy,
    by: By,
    *,
    is_csv: bool,
    max_attempts: int,
    turns: int,
    dry_run: bool,
    progress: Callable[[int, int], None],
) -> Imported:
    """Ingests the answers in the file, which is read twice: the first time only to check it.

    `max_attempts` is the most attempts of a batch, and `turns` is that of `Ingest`. If it is
    interrupted, it can be run again. Raises `AnswersError` if a line is not valid, before anything
    is written, and `TransientFault` if a user's history is in use for too long.
    """
    done = Imported()
    await _survey(engine, file, is_csv, max_attempts, done)
    if dry_run:
        return done
    file.seek(0)
    ingest = Ingest(engine, policy._replace(followups=()), turns=turns)
    batches = _batches(FORMAT.read(file, is_csv=is_csv), max_attempts)
    async with transaction(engine) as connection:
        effect = {"answers": done.answers, "sessions": done.sessions, "users": done.users}
        await audit.record(connection, by, "answers import", "answers", effect)
    read = 0
    for group in _grouped(batches):
        for each, became in zip(group, await _patiently(ingest, group), strict=True):
            _count(done, each, became)
            read += len(each.batch.attempts)
        progress(read, done.answers)
    return done


class _Session(NamedTuple):
    line: int
    user_id: int
    batch: AttemptBatch


async def _survey(
    engine: AsyncEngine, file: IO[bytes], is_csv: bool, max_attempts: int, done: Imported
) -> None:
    """Reads all lines, and looks up the questions."""
    asked: Counter[str] = Counter()
    first: dict[str, int] = {}
    users: set[int] = set()
    seen: dict[UUID, int] = {}

    def watched() -> Iterator[Line]:
        for line in FORMAT.read(file, is_csv=is_csv):
            done.answers += 1
            asked[line.pub_id] += 1
            first.setdefault(line.pub_id, line.number)
            users.add(line.user_id)
            yield line

    for each in _batches(watched(), max_attempts):
        if (line := seen.setdefault(each.batch.client_session_uuid, each.line)) != each.line:
            raise AnswersError(
                f"Line {each.line} continues the session that begins on line {line}, after others",
                "sort the file by user_id, session and answered_at, and give each user's session an"
                " id of its own.",
            )
    if not done.answers:
        raise AnswersError("The file has no answers.")
    done.users, done.sessions = len(users), len(seen)
    async with transaction(engine) as connection:
        states = await stored.unpublished(connection, [*asked])
    left_out: Counter[str] = Counter()
    for pub_id, reason in states.items():
        left_out[reason] += asked[pub_id]
        if reason == stored.UNKNOWN and (done.example is None or first[pub_id] < done.example[1]):
            done.example = pub_id, first[pub_id]
    done.left_out = dict(left_out)


def _batches(lines: Iterator[Line], max_attempts: int) -> Iterator[_Session]:
    """The lines as batches. Consecutive lines of one user and session become one batch, or several
    if they are too many.
    """
    some: list[Line] = []
    key, part = "", 0
    for line in lines:
        its = _key(line)
        if some and (its != key or len(some) == max_attempts):
            yield _session(some, key, part)
            some, part = [], part + 1 if its == key else 0
        key = its
        some.append(line)
    if some:
        yield _session(some, key, part)


def _key(line: Line) -> str:
    if line.session is not None:
        return f"{line.user_id}/session/{line.session}"
    read = read_time(line.answered_at)
    assert read is not None
    return f"{line.user_id}/day/{read[0].astimezone(UTC).date()}"


def _session(lines: Sequence[Line], key: str, part: int) -> _Session:
    uuid = _given(lines[0].session) if part == 0 else None
    attempts = tuple(
        Attempt(
            question_pub_id=line.pub_id,
            selected_choice=line.selected_choice,
            is_unsure=line.is_unsure,
            answered_at=line.answered_at,
            duration_ms=line.duration_ms,
        )
        for line in lines
    )
    uuid = uuid or UUID(bytes=derived_id(_NAMESPACE, f"{part}/{key}").bytes)
    batch = AttemptBatch(client_session_uuid=uuid, attempts=attempts)
    return _Session(lines[0].number, lines[0].user_id, batch)


def _given(session: str | None) -> UUID | None:
    """The session's id if it is a uuid, so that a session that the application also records
    through its outbox counts once.
    """
    with suppress(ValueError):
        if session is not None and can_identify(uuid := UUID(session)):
            return uuid
    return None


def _grouped(batches: Iterator[_Session]) -> Iterator[list[_Session]]:
    some: list[_Session] = []
    size = 0
    for each in batches:
        some.append(each)
        size += len(each.batch.attempts)
        if size >= _ANSWERS_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


async def _patiently(ingest: Ingest, group: Sequence[_Session]) -> list[Disposition]:
    """Ingests a group. Users whose history is in use are tried again."""
    left = dict(enumerate(group))
    decided: dict[int, Disposition] = {}
    backoff = Backoff(0.1, _LONGEST_WAIT)
    for tries in range(1, _TRIES + 1):
        try:
            found = await ingest([_incoming(each) for each in left.values()])
        except TransientFault:
            if tries == _TRIES:
                raise
        else:
            for place, became in zip(tuple(left), found, strict=True):
                if not isinstance(became, Busy):
                    decided[place] = became
                    del left[place]
        if not left:
            return [decided[place] for place in range(len(group))]
        await asyncio.sleep(backoff.next())
    raise TransientFault(
        "Other sessions hold the histories of the same users",
        "run the import again: what is in already does not change.",
    )


def _incoming(each: _Session) -> Incoming:
    uuid = each.batch.client_session_uuid
    return Incoming(None, each.batch, uuid, principal=each.user_id, by_operator=True)


_NOTHING_TO_COUNT: Final = ("nothing_resolved", "nothing_to_score")
"""Their answers are counted as left out."""


def _count(done: Imported, each: _Session, became: Disposition) -> None:
    match became:
        case Ingested():
            done.added += 1
            done.replaced_times += len(became.replaced_times)
        case Duplicate():
            done.known += 1
        case Rejected() if became.reason in _NOTHING_TO_COUNT:
            done.empty += 1
        case Rejected():
            done.refused.append(Refused(each.line, str(became.reason), became.detail))
