"""The follow-up jobs: when each kind is requested, and how corrections affect them.

`FOLLOWUPS` is the registry. finalize, `void` and `rescore` iterate over it, so a new kind must
define its behavior for each of them. Pure.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from pydantic_core import to_json

from schemas.followups import EXPLANATION, REVIEW, Kind
from schemas.words import CORRECT, Outcome, Pattern
from worker.domain.history import Change
from worker.domain.patterns import wants_review
from worker.domain.records import Message, UserQuestion
from worker.ingest import messages


@dataclass(frozen=True, slots=True)
class FinalizedSession:
    """The data of a quiz session that was just finalized, as far as follow-up jobs need it."""

    user_id: int
    topic_id: int
    quiz_session_id: UUID
    changes: Mapping[int, Change]
    """The effect of the session on each question, by question id."""
    patterns: Mapping[int, Pattern]
    """The pattern of each question now, by question id."""
    traceparent: str | None


class VoidedSessions(NamedTuple):
    """Quiz sessions of one batch that were voided."""

    user_id: int
    quiz_session_ids: Collection[UUID]
    unanswered: Collection[int]
    """The questions that have no attempt left."""


class Corrected(NamedTuple):
    """A question that, after a rescore, turns out to be answered wrong for the first time."""

    user_id: int
    question_id: int
    topic_id: int
    quiz_session_id: UUID
    outcome: Outcome


class Followup(NamedTuple):
    """A kind of job, with a function for everything that may request or withdraw it."""

    kind: Kind
    on_session: Callable[[FinalizedSession, set[UserQuestion]], Iterable[Message]]
    """The jobs of a finalized session. The set has the (user_id, question_id) whose explanation was
    requested; the function adds to it."""
    on_void: Callable[[VoidedSessions], Iterable[UUID]]
    """The message ids of jobs that are no longer needed when these sessions are void."""
    on_rescore: Callable[[Corrected], Iterable[Message]]
    """The jobs that a correction causes."""


def explanation_requested(
    user_id: int,
    question_id: int,
    topic_id: int,
    quiz_session_id: UUID,
    outcome: Outcome,
    traceparent: str | None,
) -> Message:
    """A request for an explanation. It has the same id every time for this user and question."""
    # `ExplanationRequested` as JSON, written directly: see `messages`.
    body = (
        f'{{"user_id":{user_id},"question_id":{question_id},"topic_id":{topic_id},'
        f'"quiz_session_id":"{quiz_session_id}","outcome":"{outcome}"}}'
    )
    return messages.followup(EXPLANATION, _explained(user_id, question_id), body, traceparent)


def _explained(user_id: int, question_id: int) -> str:
    return f"{user_id}/{question_id}"


def _explanations(session: FinalizedSession, explained: set[UserQuestion]) -> Iterable[Message]:
    """A request for each question whose last answer is not correct and that was never asked
    about.
    """
    for question_id, change in session.changes.items():
        asked = session.user_id, question_id
        if change.after is not CORRECT and asked not in explained:
            explained.add(asked)
            yield explanation_requested(
                session.user_id,
                question_id,
                session.topic_id,
                session.quiz_session_id,
                change.after,
                session.traceparent,
            )


def _explanations_withdrawn(voided: VoidedSessions) -> Iterable[UUID]:
    # Where the question was answered in another session, the explanation is still wanted: it is
    # requested once for all of them.
    return [
        messages.followup_id(EXPLANATION, _explained(voided.user_id, each))
        for each in voided.unanswered
    ]


def _explanation_after_all(corrected: Corrected) -> Iterable[Message]:
    return [explanation_requested(*corrected, None)]


def review_requested(
    user_id: int,
    topic_id: int,
    quiz_session_id: UUID,
    questions: Iterable[tuple[int, Pattern]],
    traceparent: str | None,
) -> Message:
    """A request for a review of the questions of a session that are relapsed, stuck or leeches.

    `questions` are (question_id, pattern).
    """
    # `ReviewRequested` as JSON.
    body = to_json(
        {
            "user_id": user_id,
            "topic_id": topic_id,
            "quiz_session_id": quiz_session_id,
            "questions": [{"question_id": id, "pattern": pattern} for id, pattern in questions],
        }
    ).decode()
    return messages.followup(REVIEW, str(quiz_session_id), body, traceparent)


def _review(session: FinalizedSession, explained: set[UserQuestion]) -> Iterable[Message]:
    """One request for all of the session's questions that are relapsed, stuck or leeches."""
    patterns = session.patterns
    to_review = [(each, patterns[each]) for each in session.changes if wants_review(patterns[each])]
    if not to_review:
        return []
    return [
        review_requested(
            session.user_id,
            session.topic_id,
            session.quiz_session_id,
            to_review,
            session.traceparent,
        )
    ]


def _reviews_withdrawn(voided: VoidedSessions) -> Iterable[UUID]:
    return [messages.followup_id(REVIEW, str(each)) for each in voided.quiz_session_ids]


def _no_review(corrected: Corrected) -> Iterable[Message]:
    """No request, because a review belongs to the end of a session, and the session is over."""
    return []


FOLLOWUPS: Final = (
    Followup(EXPLANATION, _explanations, _explanations_withdrawn, _explanation_after_all),
    Followup(REVIEW, _review, _reviews_withdrawn, _no_review),
)
