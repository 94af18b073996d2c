"""The steps *score* and *finalize*: from planned batches to all that is to be written.

Pure: questions and histories are handed in, rows and messages come out. Batches are taken in
the order of their delivery, with the same effect as one transaction for each.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID, uuid5

from schemas.followups import QuestionPattern
from schemas.ingest_result import Due, IngestResult, SessionSummary
from schemas.words import Outcome, Pattern, Status
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


class Scored(NamedTuple):
    """One attempt: as it is folded, and as it is written."""

    attempt: ScoredAttempt
    row: AttemptRow


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """A batch whose every attempt has its outcome."""

    plan: Plan
    received_at: datetime
    attempts: tuple[Scored, ...]


@dataclass(slots=True)
class Finalized:
    """All that a group's transaction writes."""

    sessions: list[SessionRow] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    progress: dict[int, Stored] = field(default_factory=dict)
    told: dict[UUID, IngestResult] = field(default_factory=dict)
    messages: dict[UUID, list[Message]] = field(default_factory=dict)
    """What each batch causes, in the order in which it leaves."""


def score(plan: Plan, received_at: datetime, standing: Mapping[int, Standing]) -> ScoredBatch:
    """Derives each attempt's outcome and effective time.

    Raises `TransientFault` when a question has moved or gone since it was resolved.
    """
    uuid = plan.client_session_uuid
    sent_times = plan.batch.sent_times
    session_ids: dict[int, UUID] = {}
    scored = []
    for position, attempt, (question_id, user_id, topic_id) in plan.answered:
        question = standing.get(question_id)
        if question is None or question.user_id != user_id or question.topic_id != topic_id:
            raise TransientFault(f"Question {question_id} moved while it was being scored.")
        session_id = session_ids.get(topic_id)
        if session_id is None:
            session_id = session_ids[topic_id] = uuid5(uuid, str(topic_id))
        sent_at = storable(sent_times[position])
        answered_at = effective_time(sent_at, received_at)
        selected, right = attempt.selected_choice, question.correct_choice
        outcome = outcome_of(selected, right, attempt.is_unsure)
        assert outcome is not None, "attempts without an answer are skipped when planned"
        is_correct = was_right(selected, right)
        # By position, as in all that is done for each attempt.
        scored.append(
            Scored(
                ScoredAttempt(
                    answered_at, sent_at or answered_at, uuid, position, outcome, is_correct
                ),
                AttemptRow(
                    user_id,
                    question_id,
                    topic_id,
                    session_id,
                    position,
                    selected,
                    right,
                    is_correct,
                    outcome,
                    answered_at,
                    sent_at,
                ),
            )
        )
    return ScoredBatch(plan, received_at, tuple(scored))


def late_questions(
    batches: Iterable[ScoredBatch], standing: Mapping[int, Standing]
) -> set[tuple[int, int]]:
    """The (user_id, question_id) whose whole history is needed: an attempt is not after what is
    folded, or what is folded was scheduled by another scheduler.
    """
    late = set()
    for batch in batches:
        for attempt, row in batch.attempts:
            stored = standing[row.question_id].stored
            if stored and (
                stored.scheduler != SCHEDULER_NAME or is_late(stored.progress, [attempt])
            ):
                late.add((row.user_id, row.question_id))
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
        outgoing: list[Message] = []
        summaries = []
        due: list[Due] = []
        pub_ids = {
            question.question_id: attempt.question_pub_id
            for _, attempt, question in batch.plan.answered
        }
        for topic_id, scored in _by_topic(batch.attempts).items():
            touched = []
            for question_id, answers in _by_question(scored).items():
                question = questions.get(question_id)
                if question is None:
                    question = questions[question_id] = _question(
                        standing[question_id], histories.get(question_id)
                    )
                change = question.history.add(answers)
                question.pattern = pattern_of(change.progress, thresholds)
                touched.append((question, change))
                due_at = change.progress.memory.due_at
                due.append(Due(question_pub_id=pub_ids[question_id], due_at=due_at))
            summary = summarize(
                [attempt.outcome for attempt, _ in scored], [change for _, change in touched]
            )
            session_id = scored[0].row.session_id
            done.sessions.append(_session(batch, scored, summary))
            done.attempts += [row for _, row in scored]
            outgoing += _followups(batch, topic_id, session_id, touched)
            summaries.append(
                SessionSummary(topic_id=topic_id, quiz_session_id=session_id, **summary._asdict())
            )
        result = IngestResult(
            client_session_uuid=batch.plan.client_session_uuid,
            status=Status.INGESTED,
            received_at=batch.received_at,
            skipped=batch.plan.skipped,
            sessions=tuple(summaries),
            due=tuple(due),
        )
        outgoing += messages.result(batch.plan.incoming, result)
        done.told[result.client_session_uuid] = result
        done.messages[result.client_session_uuid] = outgoing
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


def _session(batch: ScoredBatch, scored: Sequence[Scored], summary: Summary) -> SessionRow:
    first = scored[0].row
    return SessionRow(
        id=first.session_id,
        user_id=first.user_id,
        topic_id=first.topic_id,
        question_ids=list(dict.fromkeys(row.question_id for _, row in scored)),
        client_session_uuid=batch.plan.client_session_uuid,
        correct_count=summary.correct,
        wrong_count=summary.wrong,
        unsure_count=summary.unsure,
        finished_at=max(attempt.answered_at for attempt, _ in scored),
        received_at=batch.received_at,
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
            to_review.append(
                QuestionPattern(question_id=question.standing.question_id, pattern=question.pattern)
            )
    if to_review:
        jobs.append(
            messages.review_requested(user_id, topic_id, session_id, to_review, traceparent)
        )
    return jobs


def _by_topic(scored: Iterable[Scored]) -> dict[int, list[Scored]]:
    topics: dict[int, list[Scored]] = {}
    for each in scored:
        topics.setdefault(each.row.topic_id, []).append(each)
    return topics


def _by_question(scored: Iterable[Scored]) -> dict[int, list[ScoredAttempt]]:
    questions: dict[int, list[ScoredAttempt]] = {}
    for attempt, row in scored:
        questions.setdefault(row.question_id, []).append(attempt)
    return questions
