"""Attempts as xAPI statements (version 1.0.3): one `answered` for each, and `voided` if it is void.

Pure. A statement's id is derived from the session's uuid, the attempt's position and the number of
corrections before it, so that an export that is sent twice to a learning record store gives one set
of statements. A statement never changes, because stores refuse an id that comes back with other
content. After a correction, an export repeats the statement that was true before, voids it, and
states the attempt again under a new id. It repeats the earlier one because some stores refuse to
void what they do not have.

The IRIs of questions, topics and extensions are `urn:study-ingest:...`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final
from uuid import UUID, uuid5

_NAMESPACE: Final = UUID("0d0f8a53-9c9b-4d2e-8f3f-6a7f1f2a9b10")
_ANSWERED: Final = {
    "id": "http://adlnet.gov/expapi/verbs/answered",
    "display": {"en": "answered"},
}
_VOIDED: Final = {"id": "http://adlnet.gov/expapi/verbs/voided", "display": {"en": "voided"}}
_INTERACTION: Final = "http://adlnet.gov/expapi/activities/cmi.interaction"
_OURS: Final = "urn:study-ingest:"


def statements(batch: Mapping[str, Any], home_page: str) -> Iterator[dict[str, Any]]:
    """The statements of one `batch` record of an export, in the order of the answers.

    `home_page` is the IRI of the system that assigns the user ids, which are the actors' names.
    """
    attempts = [
        (attempt, session) for session in batch["sessions"] for attempt in session["attempts"]
    ]
    for attempt, session in sorted(attempts, key=lambda each: each[0]["position"]):
        for number, (state, until) in enumerate(_states(attempt, session["voided_at"])):
            statement = _answered(batch, session, attempt | state, number, home_page)
            yield statement
            if until is not None:
                yield _voided(statement["id"], until, home_page)


def _states(
    attempt: Mapping[str, Any], voided_at: str | None
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """What the attempt was, the oldest first, and what it is; each with the time at which it was
    replaced or voided.

    A void is final: nothing is stated of corrections after it.
    """
    for earlier in attempt["replaced"] or ():
        if earlier["was_void"]:
            yield earlier, voided_at
            return
        yield earlier, earlier["replaced_at"]
    yield {}, voided_at


def _answered(
    batch: Mapping[str, Any],
    session: Mapping[str, Any],
    attempt: Mapping[str, Any],
    corrections: int,
    home_page: str,
) -> dict[str, Any]:
    context: dict[str, Any] = {
        "registration": batch["client_session_uuid"],
        "contextActivities": {
            "parent": [{"id": f"{_OURS}topic:{attempt['study_topic_id']}"}],
            "grouping": [{"id": f"{_OURS}session:{session['id']}"}],
        },
        "extensions": {
            f"{_OURS}position": attempt["position"],
            f"{_OURS}received-at": batch["received_at"],
        },
    }
    if batch["viewer"] is not None:
        context["platform"] = batch["viewer"]
    return {
        "id": _id(batch["client_session_uuid"], attempt["position"], corrections),
        "actor": _agent(home_page, str(batch["user_id"])),
        "verb": _ANSWERED,
        "object": {
            "objectType": "Activity",
            "id": f"{_OURS}question:{attempt['study_question_id']}",
            "definition": {
                "type": _INTERACTION,
                "interactionType": "choice",
                "correctResponsesPattern": [str(attempt["correct_choice"])],
            },
        },
        "result": _result(attempt),
        "timestamp": attempt["answered_at"],
        "context": context,
        "version": "1.0.3",
    }


def _result(attempt: Mapping[str, Any]) -> dict[str, Any]:
    """Correct is 1. Unsure with the right selection, which passes, is 0.5. Everything else is 0."""
    correct = attempt["outcome"] == "correct"
    half = attempt["outcome"] == "unsure" and attempt["is_correct"] is True
    result: dict[str, Any] = {
        "score": {"scaled": 1.0 if correct else 0.5 if half else 0.0},
        "success": correct,
        "completion": True,
        "extensions": {f"{_OURS}outcome": attempt["outcome"]},
    }
    if attempt["selected_choice"] is not None:
        result["response"] = str(attempt["selected_choice"])
    if attempt["duration_ms"] is not None:
        result["duration"] = f"PT{attempt['duration_ms'] / 1000:.2f}S"
    return result


def _voided(statement_id: str, voided_at: str, home_page: str) -> dict[str, Any]:
    return {
        "id": str(uuid5(_NAMESPACE, f"voided/{statement_id}")),
        "actor": _agent(home_page, "study-ingest"),
        "verb": _VOIDED,
        "object": {"objectType": "StatementRef", "id": statement_id},
        "timestamp": voided_at,
        "version": "1.0.3",
    }


def _agent(home_page: str, name: str) -> dict[str, Any]:
    return {"objectType": "Agent", "account": {"homePage": home_page, "name": name}}


def _id(client_session_uuid: str, position: int, corrections: int) -> str:
    name = f"answered/{client_session_uuid}/{position}"
    return str(uuid5(_NAMESPACE, f"{name}/{corrections}" if corrections else name))
