"""One example of each message, as it is sent. A test validates them against the models."""

from typing import Any, Final

_SESSION: Final = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"
_TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

BATCH: Final[dict[str, Any]] = {
    "client_session_uuid": _SESSION,
    "attempts": [
        {
            "question_pub_id": "q-17",
            "selected_choice": 2,
            "is_unsure": False,
            "answered_at": "2026-03-01T09:30:00.250Z",
        },
        {"question_pub_id": "q-18", "selected_choice": None, "is_unsure": True},
    ],
}

INGESTED: Final[dict[str, Any]] = {
    "client_session_uuid": _SESSION,
    "status": "ingested",
    "received_at": "2026-03-01T09:30:02.118000Z",
    "skipped": [{"position": 1, "question_pub_id": "q-18", "reason": "withdrawn"}],
    "sessions": [
        {
            "topic_id": 7,
            "quiz_session_id": "0b0f8f6e-9d1c-4c57-8d8e-0b8ab7a6a2f4",
            "correct": 1,
            "wrong": 0,
            "unsure": 0,
            "newly_correct": 1,
            "recovered": 0,
            "relapsed": 0,
        }
    ],
}

REJECTED: Final[dict[str, Any]] = {
    "client_session_uuid": _SESSION,
    "status": "rejected",
    "received_at": "2026-03-01T09:30:02.118000Z",
    "reason": "principal_not_granted",
    "detail": "The viewer may not write the history of the questions' owner.",
}

HEADERS: Final[dict[str, Any]] = {"client-session-uuid": _SESSION, "traceparent": _TRACE}
