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
from schemas.followups import Kind
from schemas.ingest_result import IngestResult, ReplacedTime, Skipped
from schemas.progress import ProgressMark
from schemas.words import Status
from worker.domain.ids import derived_id
from worker.domain.records import Mark, Message
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
    user_id: int,
    mark: Mark,
    erased_at: datetime | None = None,
) -> str:
    """The `IngestResult` of a batch that was ingested, as JSON.

    `sessions` are (topic_id, quiz_session_id, summary), `due` are (question_pub_id, due_at), and
    `mark` is what the batch gave the user's progress.
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
            "progress": {"user_id": str(user_id), **mark._asdict()},
            **({} if erased_at is None else {"erased_at": erased_at}),
        }
    ).decode()


def progress_mark(user_id: int, mark: Mark) -> ProgressMark:
    """The mark as viewers get it."""
    return ProgressMark(user_id=str(user_id), epoch=mark.epoch, version=mark.version)


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


def followup(kind: Kind, subject: str, body: str, traceparent: str | None) -> Message:
    """A follow-up job. Its id is the same every time for this kind and subject."""
    return Message(
        followup_id(kind, subject),
        amqp.FOLLOWUPS_EXCHANGE,
        kind.routing_key,
        kind.message_type,
        _headers(traceparent),
        body,
    )


def followup_id(kind: Kind, subject: str) -> UUID:
    """The id of the follow-up job about this subject, always the same."""
    return derived_id(_NAMESPACE, f"{kind.routing_key}/{subject}")


def _headers(traceparent: str | None) -> dict[str, str]:
    return {} if traceparent is None else {amqp.TRACEPARENT_HEADER: traceparent}
