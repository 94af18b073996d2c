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

PROGRESS_REQUEST: Final[dict[str, Any]] = {"user_id": "42", "cursor": "3f2a9c1d04be.42.1187"}

PROGRESS_PAGE: Final[dict[str, Any]] = {
    "user_id": "42",
    "since": "3f2a9c1d04be.42.1187",
    "cursor": "3f2a9c1d04be.42.1203",
    "epoch": "3f2a9c1d04be",
    "version": 1203,
    "decay": 0.1542,
    "questions": [
        {
            "question_id": "17",
            "pub_ids": ["q-17"],
            "version": 1203,
            "last_answered_at": "2026-03-01T09:30:00.250000Z",
            "last_outcome": "correct",
            "stability": 2.3065,
            "interval_days": 2,
            "due_at": "2026-03-03T09:30:00.250000Z",
            "correct": 1,
            "wrong": 0,
            "unsure": 0,
            "pattern": "learning",
        }
    ],
    "forget": ["21"],
    "next": "nothing",
}

PROGRESS_REFUSAL: Final[dict[str, Any]] = {
    "user_id": "43",
    "reason": "user_not_granted",
    "detail": "The viewer is not granted user 43.",
}

PROGRESS_MARK: Final[dict[str, Any]] = {
    "user_id": "42",
    "epoch": "3f2a9c1d04be",
    "version": 1203,
}

CHECK: Final[dict[str, Any]] = {"client_session_uuids": [_SESSION]}

CHECKED: Final[dict[str, Any]] = {"epoch": "3f2a9c1d04be", "has": [], "missing": [_SESSION]}

RECALL: Final[dict[str, Any]] = {"since": "2026-03-01T02:00:00Z"}
