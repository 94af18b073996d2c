"""The steps *score* and *finalize*: from planned batches to all that is to be written.

Pure: questions and histories are handed in, rows and messages come out. Batches are taken in
the order of their delivery, with the same effect as one transaction for each.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from uuid import UUID, uuid5

from schemas.words import Outcome, Pattern
from worker import messages
from worker.domain.history import Change, History, is_late
from worker.domain.patterns import Thresholds, pattern_of, wants_review
from worker.domain.schedule import SCHEDULER_NAME
from worker.domain.scoring import ScoredAttempt, effective_time, outcome_of, was_right
from worker.domain.summary import Summary, summarize
from worker.errors import TransientFault
from worker.resolve import Plan
from worker.store.attempts import AttemptRow, SessionRow, storable
from worker.store.outbox import Message
from worker.store.progress import Standing, Stored


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """A batch whose every attempt has its outcome."""

    plan: Plan
    received_at: datetime
    topics: Mapping[int, Sequence[AttemptRow]]
    """The attempts by topic; topics and attempts in the order in which they were answered."""
    pub_ids: Mapping[int, str]
    """What the batch calls each question."""


@dataclass(slots=True)
class Finalized:
    """All that a group's transaction writes."""

    sessions: list[SessionRow] = field(default_factory=list)
    progress: dict[int, Stored] = field(default_factory=dict)
    told: dict[UUID, str] = field(default_factory=dict)
    """The result of each batch, as JSON."""
    messages: dict[UUID, list[Message]] = field(default_factory=dict)
    """What each batch causes, in the order in which it leaves."""


def score(plan: Plan, received_at: datetime, standing: Mapping[int, Standing]) -> ScoredBatch:
    """Derives each attempt's outcome and effective time.

    Raises `TransientFault` when a question has moved or gone since it was resolved.
    """
    uuid = plan.client_session_uuid
    sent_times = plan.batch.sent_times
    topics: dict[int, list[AttemptRow]] = {}
    pub_ids: dict[int, str] = {}
    for position, attempt, (question_id, user_id, topic_id) in plan.answered:
        question = standing.get(question_id)
        if question is None or question.user_id != user_id or question.topic_id != topic_id:
            raise TransientFault(f"Question {question_id} moved while it was being scored.")
        sent_at = storable(sent_times[position])
        answered_at = effective_time(sent_at, received_at)
        selected, right = attempt.selected_choice, question.correct_choice
        outcome = outcome_of(selected, right, attempt.is_unsure)
        assert outcome is not None, "attempts without an answer are skipped when planned"
        # By position, as in all that is done for each attempt.
        scored = ScoredAttempt(
            answered_at,
            sent_at or answered_at,
            uuid,
            position,
            outcome,
            was_right(selected, right),
        )
        topics.setdefault(topic_id, []).append(
            AttemptRow(scored, question_id, selected, right, sent_at)
        )
        pub_ids[question_id] = attempt.question_pub_id
    return ScoredBatch(plan, received_at, topics, pub_ids)


def late_questions(
    batches: Iterable[ScoredBatch], standing: Mapping[int, Standing]
) -> set[tuple[int, int]]:
    """The (user_id, question_id) whose whole history is needed: an attempt is not after what is
    folded, or what is folded was scheduled by another scheduler.
    """
    late = set()
    for batch in batches:
        for row in chain(*batch.topics.values()):
            stored = standing[row.question_id].stored
            if stored and (
                stored.scheduler != SCHEDULER_NAME or is_late(stored.progress, row.attempt)
            ):
                late.add((batch.plan.user_id, row.question_id))
    return late


def finalize(
    batches: Iterable[ScoredBatch],
    standing: Mapping[int, Standing],
    histories: Mapping[int, Sequence[ScoredAttempt]],
    thresholds: Thresholds,
) -> Finalized:
    """Folds every batch in turn; `histories` holds all attempts of each late question."""
    questions: dict[int, _Question] = {}
    done = Finalized()
    for batch in batches:
        plan, uuid = batch.plan, batch.plan.client_session_uuid
        outgoing: list[Message] = []
        sessions: list[tuple[int, UUID, Summary]] = []
        due: list[tuple[str, datetime]] = []
        for topic_id, rows in batch.topics.items():
            session_id = uuid5(uuid, str(topic_id))
            by_question = _by_question(rows)
            touched = []
            for question_id, answers in by_question.items():
                question = questions.get(question_id)
                if question is None:
                    question = questions[question_id] = _question(
                        standing[question_id], histories.get(question_id)
                    )
                change = question.history.add(answers)
                question.pattern = pattern_of(change.progress, thresholds)
                touched.append((question, change))
                due.append((batch.pub_ids[question_id], change.progress.memory.due_at))
            summary = summarize(
                [row.attempt.outcome for row in rows], [change for _, change in touched]
            )
            sessions.append((topic_id, session_id, summary))
            done.sessions.append(_session(batch, topic_id, session_id, list(by_question), summary))
            outgoing += _followups(batch, topic_id, session_id, touched)
        told = messages.ingested(uuid, batch.received_at, plan.skipped, sessions, due)
        outgoing += messages.first_result(plan.incoming, uuid, told)
        done.told[uuid] = told
        done.messages[uuid] = outgoing
    done.progress = {question_id: _stored(question) for question_id, question in questions.items()}
    return done


@dataclass(slots=True)
class _Question:
    standing: Standing
    history: History
    explanation_requested: bool
    pattern: Pattern = Pattern.LEARNING
    """Of all that is known now."""


def _question(standing: Standing, history: Sequence[ScoredAttempt] | None) -> _Question:
    stored = standing.stored
    return _Question(
        standing,
        History(stored.progress if stored and history is None else None, history or ()),
        stored.explanation_requested if stored else False,
    )


def _stored(question: _Question) -> Stored:
    progress = question.history.progress
    assert progress is not None
    question_id, user_id, topic_id, _, _ = question.standing
    return Stored(
        user_id, question_id, topic_id, progress, question.pattern, question.explanation_requested
    )


def _session(
    batch: ScoredBatch, topic_id: int, session_id: UUID, question_ids: list[int], summary: Summary
) -> SessionRow:
    rows = batch.topics[topic_id]
    return SessionRow(
        id=session_id,
        user_id=batch.plan.user_id,
        topic_id=topic_id,
        question_ids=question_ids,
        client_session_uuid=batch.plan.client_session_uuid,
        correct_count=summary.correct,
        wrong_count=summary.wrong,
        unsure_count=summary.unsure,
        finished_at=max([row.attempt.answered_at for row in rows]),
        received_at=batch.received_at,
        attempts=rows,
    )


def _followups(
    batch: ScoredBatch,
    topic_id: int,
    session_id: UUID,
    touched: Sequence[tuple[_Question, Change]],
) -> list[Message]:
    user_id, traceparent = batch.plan.user_id, batch.plan.incoming.traceparent
    jobs = []
    to_review = []
    for question, change in touched:
        if change.after is not Outcome.CORRECT and not question.explanation_requested:
            question.explanation_requested = True
            jobs.append(
                messages.explanation_requested(
                    user_id,
                    question.standing.question_id,
                    topic_id,
                    session_id,
                    change.after,
                    traceparent,
                )
            )
        if wants_review(question.pattern):
            to_review.append((question.standing.question_id, question.pattern))
    if to_review:
        jobs.append(
            messages.review_requested(user_id, topic_id, session_id, to_review, traceparent)
        )
    return jobs


def _by_question(rows: Iterable[AttemptRow]) -> dict[int, list[ScoredAttempt]]:
    questions: dict[int, list[ScoredAttempt]] = {}
    for row in rows:
        questions.setdefault(row.question_id, []).append(row.attempt)
    return questions
