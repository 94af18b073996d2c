"""The expected state: docs/contract.md applied to every recorded batch once more, in plain Python.

Two things come from the database, because the contract leaves them open: when each batch was
received, and in which order one user's batches were ingested. Pure: it names no table.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from chaos.evidence import Recorded, Row
from chaos.fold import CORRECT, UNSURE, WRONG, Answer, History

_EARLIEST = datetime(2015, 1, 1, tzinfo=UTC)
_WANTS_REVIEW = ("relapsed", "stuck", "leech")


class Counted(NamedTuple):
    """An attempt that counts."""

    position: int
    attempt: Row
    question: Row


@dataclass(slots=True)
class Verdict:
    """What must happen to one batch: ingested for `user_id`, or rejected for `reason`."""

    uuid: UUID
    digest: bytes
    reason: str | None
    user_id: int | None
    counted: list[Counted]
    skipped: list[Row]
    sent: list[datetime | None]
    """The times of all its attempts, as sent."""


@dataclass(slots=True)
class Ingested:
    """What the ingest of one batch must have stored, by the keys that the checker compares."""

    sessions: dict[int, Row] = field(default_factory=dict)
    attempts: dict[int, Row] = field(default_factory=dict)
    summaries: dict[int, Row] = field(default_factory=dict)
    jobs: dict[tuple[str, int, int | None], Row] = field(default_factory=dict)
    """The follow-up jobs by routing key, topic, and question if the job is about a single one."""


def verdict(recorded: Recorded, published: Mapping[str, Row]) -> Verdict:
    """Resolve: which attempts count and for whom, or why none does."""
    found = Verdict(
        recorded.client_session_uuid,
        digest(recorded.body),
        None,
        None,
        counted=[],
        skipped=[],
        sent=[_sent_at(attempt) for attempt in recorded.body["attempts"]],
    )
    owners = set()
    for position, attempt in enumerate(recorded.body["attempts"]):
        question = published.get(attempt["question_pub_id"])
        reason = _unresolved(question)
        if question is not None and reason is None:
            owners.add(question["user_id"])
            if attempt.get("selected_choice") is None and not attempt.get("is_unsure"):
                reason = "no_answer"
        if question is None or reason is not None:
            found.skipped.append(
                {
                    "position": position,
                    "question_pub_id": attempt["question_pub_id"],
                    "reason": reason,
                }
            )
        else:
            found.counted.append(Counted(position, attempt, question))
    if not owners:
        found.reason = "nothing_resolved"
    elif len(owners) > 1:
        found.reason = "mixed_principals"
    elif not found.counted:
        found.reason = "nothing_to_score"
    else:
        (found.user_id,) = owners
    return found


def digest(body: Row) -> bytes:
    """The SHA-256 of the normalized content, which is equal for two bodies that mean the same."""
    attempts = [
        [
            attempt["question_pub_id"],
            attempt.get("selected_choice"),
            attempt.get("is_unsure", False),
            at and at.isoformat(),
        ]
        for attempt in body["attempts"]
        for at in [_sent_at(attempt)]
    ]
    text = json.dumps([body["client_session_uuid"], attempts], separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


class Replay:
    """Ingests batches again, each user's in the given order, and keeps every history."""

    def __init__(self) -> None:
        self.histories: dict[tuple[int, int], History] = {}
        self.topics: dict[tuple[int, int], int] = {}
        self.explained: set[tuple[int, int]] = set()

    def ingest_together(self, verdicts: Sequence[Verdict], received_at: datetime) -> list[Ingested]:
        """What each of these batches must have left behind, committed by one transaction: all
        take their places in history, and then each is judged.
        """
        for verdict in verdicts:
            for each in verdict.counted:
                answer, _ = _scored(verdict, each, received_at)
                key = (_user(verdict), each.question["id"])
                self.histories.setdefault(key, History()).add(answer)
        found = []
        for verdict in verdicts:
            done = Ingested()
            for topic_id, counted in _by_topic(verdict.counted).items():
                self._ingest_topic(verdict, topic_id, counted, received_at, done)
            found.append(done)
        return found

    def _ingest_topic(
        self,
        verdict: Verdict,
        topic_id: int,
        counted: Sequence[Counted],
        received_at: datetime,
        done: Ingested,
    ) -> None:
        by_question: dict[int, list[Answer]] = {}
        for each in counted:
            answer, row = _scored(verdict, each, received_at)
            by_question.setdefault(each.question["id"], []).append(answer)
            done.attempts[each.position] = row
        answers = [answer for some in by_question.values() for answer in some]
        counts = {
            outcome: sum(answer.outcome == outcome for answer in answers)
            for outcome in (CORRECT, WRONG, UNSURE)
        }
        summary = counts | {"newly_correct": 0, "recovered": 0, "relapsed": 0}
        to_review = []
        for question_id, some in by_question.items():
            key = (_user(verdict), question_id)
            history = self.histories[key]
            self.topics[key] = topic_id
            some.sort()
            before = [answer.outcome for answer in history.answers if answer < some[0]]
            known_before = bool(before) and before[-1] == CORRECT
            if some[-1].outcome == CORRECT:
                summary["newly_correct"] += CORRECT not in before
                summary["recovered"] += CORRECT in before and not known_before
            else:
                summary["relapsed"] += known_before
                if key not in self.explained:
                    self.explained.add(key)
                    done.jobs["explanation.requested", topic_id, question_id] = {
                        "user_id": _user(verdict),
                        "outcome": some[-1].outcome,
                    }
            if history.pattern in _WANTS_REVIEW:
                to_review.append({"question_id": question_id, "pattern": history.pattern})
        done.summaries[topic_id] = summary
        done.sessions[topic_id] = {
            "user_id": _user(verdict),
            "question_ids": list(by_question),
            "status": "finalized",
            "cursor": len(answers),
            **{f"{outcome}_count": count for outcome, count in counts.items()},
            "finished_at": max(answer.answered_at for answer in answers),
        }
        if to_review:
            done.jobs["review.requested", topic_id, None] = {
                "user_id": _user(verdict),
                "questions": to_review,
            }


def _scored(verdict: Verdict, each: Counted, received_at: datetime) -> tuple[Answer, Row]:
    selected, right_choice = each.attempt.get("selected_choice"), each.question["correct_choice"]
    is_right = None if selected is None else selected == right_choice
    outcome = UNSURE if each.attempt.get("is_unsure") else CORRECT if is_right else WRONG
    sent_at = verdict.sent[each.position]
    answered_at = _effective(verdict.sent, each.position, received_at)
    answer = Answer(
        *(answered_at, sent_at or answered_at, verdict.uuid, each.position, outcome, is_right)
    )
    return answer, {
        "user_id": each.question["user_id"],
        "study_question_id": each.question["id"],
        "study_topic_id": each.question["topic_id"],
        "selected_choice": selected,
        "correct_choice": right_choice,
        "is_correct": is_right,
        "outcome": outcome,
        "answered_at": answered_at,
        "answered_at_sent": sent_at,
        "time_was": _time_was(each.attempt, sent_at, received_at),
        "utc_offset": _offset(each.attempt),
        "duration_ms": each.attempt.get("duration_ms"),
    }


def _effective(sent: Sequence[datetime | None], position: int, received_at: datetime) -> datetime:
    """The attempt's own time if it can be true, else that of the nearest whose can."""
    credible = [at for at in sent[: position + 1] if at and _EARLIEST <= at <= received_at]
    later = [at for at in sent[position:] if at and _EARLIEST <= at <= received_at]
    return credible[-1] if credible else later[0] if later else received_at


def _time_was(
    attempt: Mapping[str, Any], sent_at: datetime | None, received_at: datetime
) -> str | None:
    if sent_at is None:
        return "missing" if attempt.get("answered_at") is None else "unreadable"
    if sent_at > received_at:
        return "in_the_future"
    return "too_early" if sent_at < _EARLIEST else None


def _offset(attempt: Mapping[str, Any]) -> int | None:
    """The offset from UTC with which the time was sent, in minutes."""
    if _sent_at(attempt) is None:
        return None
    offset = datetime.fromisoformat(attempt["answered_at"]).utcoffset()
    return None if offset is None else offset // timedelta(minutes=1)


def _unresolved(question: Row | None) -> str | None:
    if question is None:
        return "unknown_publication"
    if question["withdrawn"]:
        return "withdrawn"
    return "question_deleted" if question["deleted"] else None


def _sent_at(attempt: Mapping[str, Any]) -> datetime | None:
    """The time as sent, in UTC. None if it is null or not readable."""
    try:
        at = datetime.fromisoformat(attempt.get("answered_at") or "")
    except ValueError:
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _by_topic(counted: Iterable[Counted]) -> dict[int, list[Counted]]:
    topics: dict[int, list[Counted]] = {}
    for each in counted:
        topics.setdefault(each.question["topic_id"], []).append(each)
    return topics


def _user(verdict: Verdict) -> int:
    assert verdict.user_id is not None
    return verdict.user_id
