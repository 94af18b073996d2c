"""Prints a trial run as text and as JSON, for `dead replay --dry-run`."""

from typing import Any

from worker.domain.records import Stored
from worker.operate.dead.rehearse import ProgressChange, Rehearsal
from worker.store import progress
from worker.store.operate.dead import Brief


def as_json(seen: Rehearsal) -> dict[str, Any]:
    """What would be written, as plain values."""
    return {
        "would_be": seen.disposition,
        "would_be_because": seen.reason,
        "would_say": seen.detail,
        "sessions": [
            each._asdict() | {"quiz_session_id": str(each.quiz_session_id)}
            for each in seen.sessions
        ],
        "attempts": [
            each._asdict() | {"answered_at": each.answered_at.isoformat()} for each in seen.attempts
        ],
        "progress": [
            {
                "question_id": each.question_id,
                "before": _columns(each.before),
                "after": _columns(each.after),
            }
            for each in seen.progress
        ],
        "messages": [each._asdict() for each in seen.messages],
    }


def as_lines(letter: Brief, seen: Rehearsal) -> list[str]:
    """What would be written, as lines for a person."""
    why = f" ({seen.reason}: {seen.detail})" if seen.reason else ""
    lines = [
        f"session {letter.client_session_uuid or '?'} of {letter.viewer or '?'},"
        f" dead of {letter.reason}: would be {seen.disposition}{why}"
    ]
    lines += [
        f"  user {each.user_id}, topic {each.topic_id}: {each.correct} correct,"
        f" {each.wrong} wrong, {each.unsure} unsure"
        for each in seen.sessions
    ]
    lines += [
        f"  attempt {each.position}: question {each.question_id}, choice"
        f" {each.selected_choice}, {each.outcome} at {each.answered_at.isoformat()}"
        for each in seen.attempts
    ]
    lines += [_change(each) for each in seen.progress]
    lines += [f"  message to {each.routing_key}: {each.body}" for each in seen.messages]
    return lines


def _change(change: ProgressChange) -> str:
    before, after = _columns(change.before) or {}, _columns(change.after) or {}
    changed = (
        f"{name} {before[name]} -> {after[name]}" if name in before else f"{name} {after[name]}"
        for name in after
        if before.get(name) != after[name]
    )
    return f"  progress on question {change.question_id}: {', '.join(changed)}"


def _columns(stored: Stored | None) -> dict[str, Any] | None:
    if stored is None:
        return None
    return {
        name: value if isinstance(value, int | float | None) else str(value)
        for name, value in progress.columns(stored).items()
    }
