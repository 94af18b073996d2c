"""What one answer to a request says: pages, as JSON. Pure.

The pages are written as JSON text directly, in the form that the wire's model would give, because
creating the models takes three times as long.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic_core import to_json

from schemas.words import Next, StartsOver
from worker.domain.cursor import Cursor
from worker.domain.records import ChangedQuestion, ReadState
from worker.domain.schedule import DECAY

QUESTIONS_IN_A_PAGE: Final = 250
"""Some 70 kB."""
QUESTIONS_IN_AN_ANSWER: Final = 5_000


def pages(
    user_id: int,
    since: str | None,
    starts_over: StartsOver | None,
    state: ReadState,
    changed: Sequence[ChangedQuestion],
    live_ids: Mapping[int, Sequence[str]],
    *,
    in_a_page: int = QUESTIONS_IN_A_PAGE,
    in_an_answer: int = QUESTIONS_IN_AN_ANSWER,
) -> Iterator[bytes]:
    """The pages of an answer: at least one.

    `changed` is what follows the viewer's position, in order. It has one more than an answer holds
    if there is more.
    """
    told = changed[:in_an_answer]
    epoch = state.newest.epoch
    cursor = Cursor.read(since or "") if starts_over is None else None
    if cursor is None:  # what an erasure left is nothing, and nothing of it is missing
        cursor = Cursor(epoch, user_id, state.erased)
    for start in range(0, max(len(told), 1), in_a_page):
        part = told[start : start + in_a_page]
        end = start + len(part)
        after = changed[end : end + 1]
        if part:
            cursor = _after(part[-1], after, epoch, user_id)
        then = Next.PAGE if end < len(told) else Next.ASK if after else Next.NOTHING
        page: dict[str, Any] = {
            "user_id": str(user_id),
            "since": since,
            "cursor": str(cursor),
            "epoch": epoch,
            "version": cursor.complete,
        }
        if starts_over is not None:
            page["starts_over"] = starts_over
            if state.erased_at is not None:
                page["erased_at"] = state.erased_at
        page |= {
            "decay": DECAY,
            "questions": [_question(each, live_ids) for each in part if each.last_answered_at],
            "forget": [str(each.question_id) for each in part if each.last_answered_at is None],
            "next": then,
        }
        yield to_json(page)
        since, starts_over = str(cursor), None


def _after(
    last: ChangedQuestion, after: Sequence[ChangedQuestion], epoch: str, user_id: int
) -> Cursor:
    """The cursor after `last`, which may lie within a version."""
    is_whole = not after or after[0].version != last.version
    return Cursor(epoch, user_id, last.version, None if is_whole else last.question_id)


def _question(changed: ChangedQuestion, live_ids: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    assert changed.last_answered_at is not None and changed.due_at is not None
    return {
        "question_id": str(changed.question_id),
        "pub_ids": live_ids.get(changed.question_id, ()),
        "version": changed.version,
        "last_answered_at": changed.last_answered_at,
        "last_outcome": changed.last_outcome,
        "stability": changed.stability,
        "interval_days": (changed.due_at - changed.last_answered_at).days,
        "due_at": changed.due_at,
        "correct": changed.correct,
        "wrong": changed.wrong,
        "unsure": changed.unsure,
        "pattern": changed.pattern,
    }
