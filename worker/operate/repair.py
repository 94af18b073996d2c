"""Verify and rebuild: compute progress again from the log of attempts, and correct it.

It reads the log of one user at a time, question by question, so that memory stays constant.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.words import Outcome
from worker.domain.fold import fold
from worker.domain.patterns import pattern_of
from worker.domain.policy import Policy
from worker.domain.records import Mark, OnChange, Stored
from worker.domain.scoring import ScoredAttempt
from worker.domain.times import effective_times
from worker.errors import NoHistory
from worker.store import attempts, principals, progress, versions
from worker.store.driver import write
from worker.store.engine import transaction
from worker.store.operate import repair
from worker.store.operate import times as stored_times
from worker.store.operate.repair import BEFORE_ALL, Part
from worker.store.operate.times import Retimed

EVERYBODY: Final = Part()
_WRITE_AT_ONCE: Final = 1_000
"""The number of progress rows in one statement of a rebuild."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A progress row that differs from what the attempts give. None means that there is no row."""

    user_id: int
    question_id: int
    stored: Stored | None
    expected: Stored | None

    @property
    def is_moved(self) -> bool:
        """Whether only the topic differs."""
        if self.stored is None or self.expected is None:
            return False
        return self.stored._replace(topic_id=self.expected.topic_id) == self.expected

    def describe(self) -> str:
        """One sentence that names each column that differs."""
        place = f"user {self.user_id}, question {self.question_id}"
        if self.stored is None:
            return f"{place}: progress is missing"
        if self.expected is None:
            return f"{place}: progress without any attempt"
        stored, expected = progress.columns(self.stored), progress.columns(self.expected)
        return f"{place}: " + "; ".join(
            f"{name} is {stored[name]}, should be {expected[name]}"
            for name in stored
            if stored[name] != expected[name]
        )


async def users(
    engine: AsyncEngine, part: Part = EVERYBODY, after: int = BEFORE_ALL
) -> AsyncIterator[int]:
    """The users of `part` who have attempts or progress, in the order of their ids.

    Starts after the id `after`. No transaction stays open between two users.
    """
    last: int | None = after
    while last is not None:
        async with transaction(engine) as connection:
            last, wanted = await repair.walk(connection, part, last)
        for user_id in wanted:
            yield user_id


async def check_known(engine: AsyncEngine, user_id: int) -> None:
    """Raises `NoHistory` for a user who has neither attempts nor progress: a typing error, which
    must not look like a user with whom all is well.
    """
    async with transaction(engine) as connection:
        if not await repair.is_known(connection, user_id):
            raise NoHistory(f"User {user_id} has no study history.")


async def verify(engine: AsyncEngine, user_id: int, policy: Policy) -> list[Difference]:
    """The differences between a user's stored progress and the fold of their attempts.

    A question that the application has moved to another topic is no difference. The stored topic
    follows with the next answer, or with a rebuild; views use the question's own.
    """
    # One snapshot for log and progress. Otherwise concurrent ingest would look like differences.
    async with transaction(engine, isolation="repeatable_read") as connection:
        found = [each async for each in _differences(connection, user_id, policy)]
    return [each for each in found if not each.is_moved]


class Rebuilt(NamedTuple):
    """What a rebuild changed: progress rows, and attempts with another effective time."""

    progress: int
    times: int


async def rebuild(
    engine: AsyncEngine, user_id: int, policy: Policy, on_change: OnChange = lambda *_: None
) -> Rebuilt:
    """Corrects a user's times and progress in one transaction."""
    async with transaction(engine) as connection:
        await principals.lock(connection, [user_id])
        mark = await versions.draw(connection)
        retimed = await _replace_times(connection, user_id, policy)
        done = Rebuilt(len(await put_right(connection, user_id, policy, mark)), retimed)
        if retimed:
            # A history that changes needs a new version, even if it gives the same progress.
            await progress.renew(connection, user_id, mark.version)
    if done.progress:
        on_change(user_id, mark)
    return done


async def _replace_times(connection: AsyncConnection, user_id: int, policy: Policy) -> int:
    """Replaces the times of attempts that were stored without the rule about times.

    These are the attempts of version 0.1.0, and those before an earliest time that was set later.
    It looks at whole sessions, because an attempt may take the time of its neighbor.
    """
    changed: list[Retimed] = []
    for session in await stored_times.unjudged(connection, user_id, policy.earliest_answer):
        sent = [each.answered_at_sent for each in session.attempts]
        # Version 0.1.0 stored a time that was not readable as a missing one.
        times = effective_times(
            sent, [None] * len(sent), session.received_at, policy.earliest_answer
        )
        changed += [
            Retimed(each.id, at, was)
            for each, at, was in zip(session.attempts, *times, strict=True)
            if was is not None and each.time_was is None
        ]
    if changed:
        await stored_times.retime(connection, changed)
    return len(changed)


async def put_right(
    connection: AsyncConnection,
    user_id: int,
    policy: Policy,
    mark: Mark,
    question_ids: Collection[int] | None = None,
) -> list[Difference]:
    """Writes what the attempts give, under the user's lock. Returns the differences that it
    corrected.

    `mark` was drawn under that lock. It only looks at `question_ids` if they are given.
    """
    wrong = [each async for each in _differences(connection, user_id, policy, question_ids)]
    right = [each.expected for each in wrong if each.expected is not None]
    for start in range(0, len(right), _WRITE_AT_ONCE):
        await write(
            connection, progress.saving(right[start : start + _WRITE_AT_ONCE], mark.version)
        )
    gone = [each.question_id for each in wrong if each.expected is None]
    if gone:
        await progress.delete(connection, user_id, gone)
    return wrong


async def _differences(
    connection: AsyncConnection,
    user_id: int,
    policy: Policy,
    question_ids: Collection[int] | None = None,
) -> AsyncIterator[Difference]:
    stored = await progress.of_user(connection, user_id, question_ids)
    async for question_id, topic_id, history in attempts.log(connection, user_id, question_ids):
        before = stored.pop(question_id, None)
        expected = _expected(user_id, question_id, topic_id, sorted(history), before, policy)
        if before != expected:
            yield Difference(user_id, question_id, before, expected)
    for question_id, orphan in stored.items():
        yield Difference(user_id, question_id, orphan, None)


def _expected(
    user_id: int,
    question_id: int,
    topic_id: int,
    history: list[ScoredAttempt],
    before: Stored | None,
    policy: Policy,
) -> Stored:
    folded = fold(None, history)
    assert folded is not None
    return Stored(
        user_id=user_id,
        question_id=question_id,
        topic_id=topic_id,
        progress=folded,
        pattern=pattern_of(folded, policy),
        # A request that was made stays made, whatever happens to the attempts that caused it.
        explanation_requested=(before is not None and before.explanation_requested)
        or (folded.correct_count < folded.attempts_count and _went_wrong(history)),
    )


def _went_wrong(history: Sequence[ScoredAttempt]) -> bool:
    """Whether the last answer of a session to the question is wrong or unsure."""
    last = {attempt.client_session_uuid: attempt.outcome for attempt in history}
    return any(outcome is not Outcome.CORRECT for outcome in last.values())
