"""The messages that a transaction leaves in the outbox: results for viewers, and follow-up jobs.

Pure: it builds `Message` rows. The messages of every batch are written as JSON text directly, in
the form that the wire's models would give, because creating the models takes three times as long. A
message about something that happens once has an id derived from it, so that a receiver can detect a
repetition.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID, uuid4

from pydantic_core import to_json

from schemas import amqp
from schemas.ingest_result import IngestResult, ReplacedTime, Skipped
from schemas.words import Outcome, Pattern, Status
from worker.domain.ids import derived_id
from worker.domain.records import Message
from worker.domain.summary import Summary
from worker.ingest.resolve import Incoming

_NAMESPACE: Final = UUID("5f0c0f7e-8c43-4f0c-9c1d-3a3b7f6f2a51")


def result(incoming: Incoming, told: IngestResult) -> list[Message]:
    """The result for the viewer that sent the batch. Empty if the viewer is unknown."""
    return result_for(incoming.viewer, incoming.traceparent, told)


def result_for(viewer: str | None, traceparent: str | None, told: IngestResult) -> list[Message]:
    """The result for `viewer`, except for a first ingest. Empty if the viewer is unknown."""
    body = told.model_dump_json(exclude_none=True)
    return _result(uuid4(), viewer, traceparent, told.client_session_uuid, body)


def first_result(incoming: Incoming, uuid: UUID, told: str) -> list[Message]:
    """The result of the batch `uuid` that was just ingested. `told` is what `ingested` returned."""
    message_id = derived_id(_NAMESPACE, f"ingested/{uuid}")
    return _result(message_id, incoming.viewer, incoming.traceparent, uuid, told)


def ingested(
    uuid: UUID,
    received_at: datetime,
    skipped: Sequence[Skipped],
    sessions: Iterable[tuple[int, UUID, Summary]],
    due: Iterable[tuple[str, datetime]],
    replaced: Sequence[ReplacedTime],
    erased_at: datetime | None = None,
) -> str:
    """The `IngestResult` of a batch that was ingested, as JSON.

    `sessions` are (topic_id, quiz_session_id, summary), `due` are (question_pub_id, due_at).
    """
    return to_json(
        {
            "client_session_uuid": uuid,
            "status": Status.INGESTED,
            "received_at": received_at,
            "skipped": skipped,
            "sessions": [
                {"topic_id": topic_id, "quiz_session_id": str(session_id), **summary._asdict()}
                for topic_id, session_id, summary in sessions
            ],
            "due": [{"question_pub_id": pub_id, "due_at": due_at} for pub_id, due_at in due],
            "replaced_times": replaced,
            **({} if erased_at is None else {"erased_at": erased_at}),
        }
    ).decode()


def _result(
    message_id: UUID, viewer: str | None, traceparent: str | None, uuid: UUID, body: str
) -> list[Message]:
    if viewer is None:
        return []
    return [
        Message(
            message_id,
            amqp.RESULTS_EXCHANGE,
            amqp.result_key(viewer),
            amqp.INGEST_RESULT_TYPE,
            _headers(traceparent) | {amqp.CLIENT_SESSION_UUID_HEADER: str(uuid)},
            body,
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
    """A request for an explanation. It has the same id every time for this user and question."""
    # `ExplanationRequested` as JSON.
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
    """The id of the request for this explanation, always the same."""
    return derived_id(_NAMESPACE, f"{amqp.EXPLANATION_REQUESTED}/{user_id}/{question_id}")


def review_id(quiz_session_id: UUID) -> UUID:
    """The id of the request for a review of this session, always the same."""
    return derived_id(_NAMESPACE, f"{amqp.REVIEW_REQUESTED}/{quiz_session_id}")


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
    return Message(
        review_id(quiz_session_id),
        amqp.FOLLOWUPS_EXCHANGE,
        amqp.REVIEW_REQUESTED,
        amqp.REVIEW_REQUESTED_TYPE,
        _headers(traceparent),
        body,
    )


def _headers(traceparent: str | None) -> dict[str, str]:
    return {} if traceparent is None else {amqp.TRACEPARENT_HEADER: traceparent}
