"""The usual handler: one message, one transaction of the ORM, a query for each step.

It uses a plain `Session`. An asynchronous caller runs it with `AsyncSession.run_sync`. It leaves
the same rows as the worker.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID, uuid5

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from bench.peers import tables
from schemas.attempt_batch import AttemptBatch
from schemas.ingest_result import Due, IngestResult, SessionSummary
from schemas.words import Outcome, Status
from worker.domain.fold import Progress
from worker.domain.history import Change, is_late, place
from worker.domain.patterns import pattern_of, wants_review
from worker.domain.policy import Policy
from worker.domain.records import Message
from worker.domain.schedule import SCHEDULER_NAME, Memory
from worker.domain.scoring import ScoredAttempt, outcome_of, was_right
from worker.domain.summary import summarize
from worker.domain.times import effective_times
from worker.ingest import messages
from worker.ingest.followups import explanation_requested, review_requested
from worker.ingest.resolve import Incoming

_POLICY = Policy()


def handle(session: Session, body: bytes, viewer: str) -> list[Message]:
    """Ingests one message and commits. Returns what it has written to the outbox."""
    batch = AttemptBatch.model_validate_json(body)
    with session.begin():
        if session.get(tables.Inbox, batch.client_session_uuid) is None:
            return _ingest(session, batch, viewer)
    return []


def _ingest(session: Session, batch: AttemptBatch, viewer: str) -> list[Message]:
    published = {
        each.pub_id: each.source_id
        for each in session.scalars(
            select(tables.Published).where(
                tables.Published.kind == "question",
                tables.Published.deleted.is_(False),
                tables.Published.pub_id.in_([a.question_pub_id for a in batch.attempts]),
            )
        )
    }
    questions = {
        each.id: each
        for each in session.scalars(
            select(tables.Question).where(
                tables.Question.id.in_(published.values()), tables.Question.deleted_at.is_(None)
            )
        )
    }
    (user_id,) = {question.user_id for question in questions.values()}
    granted = session.scalars(select(tables.Grant.user_id).where(tables.Grant.viewer == viewer))
    assert user_id in (granted.all() or [user_id])
    inbox = tables.Inbox(
        client_session_uuid=batch.client_session_uuid,
        content_digest=batch.digest(),
        user_id=user_id,
        summary={},
    )
    session.add(inbox)
    session.flush()
    session.execute(select(func.pg_advisory_xact_lock(user_id)))
    progress = {
        each.study_question_id: each
        for each in session.scalars(
            select(tables.Progress).where(
                tables.Progress.user_id == user_id,
                tables.Progress.study_question_id.in_(questions),
            )
        )
    }
    topics: dict[int, list[tuple[tables.Question, ScoredAttempt]]] = defaultdict(list)
    rows = []
    sent = batch.sent_times.at
    texts = [attempt.answered_at for attempt in batch.attempts]
    times, was = effective_times(sent, texts, inbox.received_at, Policy().earliest_answer)
    for position, attempt in enumerate(batch.attempts):
        question = questions[published[attempt.question_pub_id]]
        sent_at, answered_at = sent[position], times[position]
        outcome = outcome_of(attempt.selected_choice, question.correct_choice, attempt.is_unsure)
        assert outcome is not None
        scored = ScoredAttempt(
            answered_at,
            sent_at or answered_at,
            batch.client_session_uuid,
            position,
            outcome,
            was_right(attempt.selected_choice, question.correct_choice),
        )
        topics[question.study_topic_id].append((question, scored))
        rows.append(
            tables.Attempt(
                user_id=user_id,
                study_question_id=question.id,
                study_topic_id=question.study_topic_id,
                quiz_session_id=_session_id(batch, question.study_topic_id),
                position=position,
                selected_choice=attempt.selected_choice,
                correct_choice=question.correct_choice,
                is_correct=scored.is_correct,
                outcome=outcome,
                answered_at=answered_at,
                answered_at_sent=sent_at,
                time_was=was[position],
            )
        )
    late = {
        question.id
        for scored_attempts in topics.values()
        for question, attempt in scored_attempts
        if question.id in progress and is_late(_progress(progress[question.id]), attempt)
    }
    stored = _histories(session, user_id, late) if late else {}
    summaries = []
    due: dict[int, datetime] = {}
    outgoing: list[Message] = []
    for topic_id, scored_attempts in topics.items():
        by_question: dict[int, list[ScoredAttempt]] = defaultdict(list)
        for question, scored in scored_attempts:
            by_question[question.id].append(scored)
        changes = []
        for question_id, attempts in by_question.items():
            before = progress.get(question_id)
            base = _progress(before) if before and question_id not in late else None
            now, [change], _ = place(base, stored.get(question_id, ()), [attempts])
            changes.append((question_id, change, now))
        summary = summarize(
            [attempt.outcome for _, attempt in scored_attempts],
            [change for _, change, _ in changes],
        )
        session_id = _session_id(batch, topic_id)
        total = len(scored_attempts)
        session.add(
            tables.Session(
                id=session_id,
                user_id=user_id,
                study_topic_id=topic_id,
                question_ids=list(by_question),
                subject_distribution={str(topic_id): total},
                status="finalized",
                cursor=total,
                source="viewer",
                client_session_uuid=batch.client_session_uuid,
                correct_count=summary.correct,
                wrong_count=summary.wrong,
                unsure_count=summary.unsure,
                finished_at=max(attempt.answered_at for _, attempt in scored_attempts),
                finalized_at=inbox.received_at,
            )
        )
        summaries.append(
            SessionSummary(topic_id=topic_id, quiz_session_id=session_id, **summary._asdict())
        )
        outgoing += _followups(user_id, topic_id, session_id, changes, progress)
        for question_id, change, now in changes:
            due[question_id] = now.memory.due_at
            _save(session, progress, user_id, topic_id, question_id, change, now)
    session.flush()  # sessions before the attempts that refer to them
    session.add_all(rows)
    told = IngestResult(
        client_session_uuid=batch.client_session_uuid,
        status=Status.INGESTED,
        received_at=inbox.received_at,
        sessions=tuple(summaries),
        due=tuple(
            Due(question_pub_id=pub_id, due_at=due[published[pub_id]])
            for pub_id in dict.fromkeys(each.question_pub_id for each in batch.attempts)
        ),
    )
    body = told.model_dump_json(exclude_none=True)
    inbox.summary = json.loads(body)
    incoming = Incoming(viewer, batch, batch.client_session_uuid)
    outgoing += messages.first_result(incoming, batch.client_session_uuid, body)
    session.add_all(tables.Outbox(**message._asdict()) for message in outgoing)
    return outgoing


def _session_id(batch: AttemptBatch, topic_id: int) -> UUID:
    return uuid5(batch.client_session_uuid, str(topic_id))


def _histories(
    session: Session, user_id: int, question_ids: set[int]
) -> dict[int, list[ScoredAttempt]]:
    found: dict[int, list[ScoredAttempt]] = defaultdict(list)
    for attempt, uuid in session.execute(
        select(tables.Attempt, tables.Session.client_session_uuid)
        .join(tables.Session, tables.Session.id == tables.Attempt.quiz_session_id)
        .where(
            tables.Attempt.user_id == user_id,
            tables.Attempt.study_question_id.in_(question_ids),
        )
    ):
        found[attempt.study_question_id].append(
            ScoredAttempt(
                attempt.answered_at,
                attempt.answered_at_sent or attempt.answered_at,
                uuid,
                attempt.position,
                Outcome(attempt.outcome),
                attempt.is_correct,
            )
        )
    return found


def _progress(row: tables.Progress) -> Progress:
    return Progress(
        row.attempts_count,
        row.correct_count,
        row.wrong_count,
        row.unsure_count,
        row.correct_run,
        row.best_run,
        row.spaced_run,
        row.recent_unsure,
        row.lapse_count,
        row.first_correct_at,
        Outcome(row.last_outcome),
        row.last_answered_at,
        Memory(row.stability, row.difficulty, row.due_at),
    )


def _save(
    session: Session,
    rows: dict[int, tables.Progress],
    user_id: int,
    topic_id: int,
    question_id: int,
    change: Change,
    now: Progress,
) -> None:
    row = rows.get(question_id)
    if row is None:
        row = rows[question_id] = tables.Progress(
            user_id=user_id, study_question_id=question_id, explanation_requested=False
        )
        session.add(row)
    *fields, memory = now
    for name, value in zip(Progress._fields, fields, strict=False):
        setattr(row, name, value)
    row.study_topic_id = topic_id
    row.stability, row.difficulty, row.due_at = memory
    row.pattern = pattern_of(now, _POLICY)
    row.scheduler = SCHEDULER_NAME
    row.explanation_requested = row.explanation_requested or change.after is not Outcome.CORRECT


def _followups(
    user_id: int,
    topic_id: int,
    session_id: UUID,
    changes: Sequence[tuple[int, Change, Progress]],
    rows: dict[int, tables.Progress],
) -> list[Message]:
    jobs = []
    to_review = []
    for question_id, change, now in changes:
        asked = question_id in rows and rows[question_id].explanation_requested
        if change.after is not Outcome.CORRECT and not asked:
            jobs.append(
                explanation_requested(
                    user_id, question_id, topic_id, session_id, change.after, None
                )
            )
        pattern = pattern_of(now, _POLICY)
        if wants_review(pattern):
            to_review.append((question_id, pattern))
    if to_review:
        jobs.append(review_requested(user_id, topic_id, session_id, to_review, None))
    return jobs
