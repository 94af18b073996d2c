"""The messages that a transaction leaves in the outbox: results to viewers, follow-up jobs.

Pure: builds `Message` rows from the wire's models. A message about something that happens once
has an id derived from it, so that whoever receives it twice can tell.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID, uuid4, uuid5

from schemas import amqp
from schemas.followups import QuestionPattern, ReviewRequested
from schemas.ingest_result import IngestResult
from schemas.words import Outcome, Status
from worker.resolve import Incoming
from worker.store.outbox import Message

_NAMESPACE: Final = UUID("5f0c0f7e-8c43-4f0c-9c1d-3a3b7f6f2a51")


def result(incoming: Incoming, told: IngestResult) -> list[Message]:
    """The result for the viewer that sent the batch; none when nobody knows who that was."""
    return result_for(incoming.viewer, incoming.traceparent, told)


def result_for(viewer: str | None, traceparent: str | None, told: IngestResult) -> list[Message]:
    """The result for `viewer`; none when nobody knows who that is."""
    if viewer is None:
        return []
    uuid = str(told.client_session_uuid)
    once = told.status is Status.INGESTED
    return [
        Message(
            uuid5(_NAMESPACE, f"ingested/{uuid}") if once else uuid4(),
            amqp.RESULTS_EXCHANGE,
            amqp.result_key(viewer),
            amqp.INGEST_RESULT_TYPE,
            _headers(traceparent) | {amqp.CLIENT_SESSION_UUID_HEADER: uuid},
            told.model_dump_json(exclude_none=True),
        )
    ]


def explanation_requested(
    user_id: int,
    question_id: int,
    topic_id: int,
    quiz_session_id: UUID,
    outcome: Outcome,
    traceparent: str | None,
) -> Message:
    """Asks for an explanation; the same id whenever it is asked for this user and question."""
    # `ExplanationRequested` as JSON, written down: there are several to a batch.
    body = (
        f'{{"user_id":{user_id},"question_id":{question_id},"topic_id":{topic_id},'
        f'"quiz_session_id":"{quiz_session_id}","outcome":"{outcome}"}}'
    )
    return Message(
        explanation_id(user_id, question_id),
        amqp.FOLLOWUPS_EXCHANGE,
        amqp.EXPLANATION_REQUESTED,
        amqp.EXPLANATION_REQUESTED_TYPE,
        _headers(traceparent),
        body,
    )


def explanation_id(user_id: int, question_id: int) -> UUID:
    """The one id that a request for this explanation ever has."""
    return uuid5(_NAMESPACE, f"{amqp.EXPLANATION_REQUESTED}/{user_id}/{question_id}")


def review_id(quiz_session_id: UUID) -> UUID:
    """The one id that a request for a review of this session ever has."""
    return uuid5(_NAMESPACE, f"{amqp.REVIEW_REQUESTED}/{quiz_session_id}")


def review_requested(
    user_id: int,
    topic_id: int,
    quiz_session_id: UUID,
    questions: Sequence[QuestionPattern],
    traceparent: str | None,
) -> Message:
    """Asks for a review of a session's questions that went wrong before or keep going wrong."""
    job = ReviewRequested(
        user_id=user_id,
        topic_id=topic_id,
        quiz_session_id=quiz_session_id,
        questions=tuple(questions),
    )
    return Message(
        review_id(quiz_session_id),
        amqp.FOLLOWUPS_EXCHANGE,
        amqp.REVIEW_REQUESTED,
        amqp.REVIEW_REQUESTED_TYPE,
        _headers(traceparent),
        job.model_dump_json(),
    )


def _headers(traceparent: str | None) -> dict[str, str]:
    return {} if traceparent is None else {amqp.TRACEPARENT_HEADER: traceparent}
