"""The steps *score* and *finalize*: from planned batches to everything that is written.

Pure: questions and histories come in, rows and messages go out. All batches of a group are
committed at once, so they take their places in the histories at once. Each result says what its
batch changed at its own place, and when its questions are due after the whole group.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from schemas.ingest_result import ReplacedTime
from schemas.words import Pattern
from worker.domain import records
from worker.domain.dispositions import Ingested
from worker.domain.fold import Progress
from worker.domain.history import Change, History, is_late, place
from worker.domain.ids import derived_id
from worker.domain.patterns import pattern_of
from worker.domain.policy import Policy
from worker.domain.records import (
    AttemptRow,
    Mark,
    Message,
    SessionRow,
    Standing,
    Standings,
    Stored,
    UserQuestion,
    storable,
)
from worker.domain.schedule import SCHEDULER_NAME
from worker.domain.scoring import ScoredAttempt, outcome_of, was_right
from worker.domain.summary import Summary, summarize
from worker.domain.times import effective_times
from worker.ingest import messages
from worker.ingest.followups import FOLLOWUPS, FinalizedSession
from worker.ingest.resolve import Plan


class ScoredBatch(NamedTuple):
    """A batch in which every attempt has its outcome."""

    plan: Plan
    received_at: datetime
    topics: Mapping[int, Sequence[AttemptRow]]
    """The attempts by topic. Topics and attempts are in the order in which they were answered."""
    answers: Mapping[int, Sequence[ScoredAttempt]]
    """The same by question."""
    pub_ids: Mapping[str, int]
    """The question behind each published id of the batch: two ids may be those of one question."""
    replaced: Sequence[ReplacedTime]
    """The attempts whose time as sent can't be true."""
    last_answered_at: datetime | None
    """The last credible time; None if there is none."""
    late: Collection[int]
    """The questions whose history is needed, because an attempt is not later than what is folded,
    or because another scheduler computed the stored schedule.
    """


@dataclass(slots=True)
class Finalized:
    """Everything that a group's transaction writes."""

    sessions: list[SessionRow] = field(default_factory=list)
    progress: list[Stored] = field(default_factory=list)
    told: dict[UUID, str] = field(default_factory=dict)
    """The result of each batch, as JSON."""
    ingested: dict[UUID, Ingested] = field(default_factory=dict)
    messages: dict[UUID, list[Message]] = field(default_factory=dict)
    """The messages that each batch causes, in the order in which they are published."""
    histories: dict[UserQuestion, History] = field(default_factory=dict)
    """The histories that were given and that the group has added to."""


class _Folded(NamedTuple):
    """One (user, question) after the group."""

    progress: Progress
    pattern: Pattern
    changes: Iterator[Change]
    """What each session changed, in the order of delivery."""


def score(plan: Plan, received_at: datetime, policy: Policy) -> ScoredBatch:
    """Derives the outcome and the effective time of each attempt, and finds the late questions."""
    uuid = plan.client_session_uuid
    sent_times, offsets, _ = plan.batch.sent_times
    texts = [attempt.answered_at for attempt in plan.batch.attempts]
    times, was = effective_times(sent_times, texts, received_at, policy.earliest_answer)
    topics: dict[int, list[AttemptRow]] = {}
    answers: dict[int, list[ScoredAttempt]] = {}
    pub_ids: dict[str, int] = {}
    replaced: list[ReplacedTime] = []
    last_answered_at: datetime | None = None
    late: set[int] = set()
    for position, attempt, question in plan.answered:
        question_id, _, topic_id, right, progress, _, scheduler, _ = question
        sent_at = storable(sent_times[position])
        answered_at, time_was = times[position], was[position]
        if time_was is None:
            last_answered_at = answered_at
        else:
            replaced.append(
                ReplacedTime(position=position, time_was=time_was, answered_at=answered_at)
            )
        selected = attempt.selected_choice
        outcome = outcome_of(selected, right, attempt.is_unsure)
        assert outcome is not None, "attempts without an answer are skipped when planned"
        # By position, because this runs for each attempt.
        scored = ScoredAttempt(
            answered_at,
            sent_at or answered_at,
            uuid,
            position,
            outcome,
            was_right(selected, right),
        )
        if progress and (scheduler != SCHEDULER_NAME or is_late(progress, scored)):
            late.add(question_id)
        topics.setdefault(topic_id, []).append(
            AttemptRow(
                *(scored, question_id, selected, right, sent_at, time_was, offsets[position]),
                attempt.duration_ms,
            )
        )
        answers.setdefault(question_id, []).append(scored)
        pub_ids[attempt.question_pub_id] = question_id
    return ScoredBatch(
        plan, received_at, topics, answers, pub_ids, replaced, last_answered_at, late
    )


def in_one_transaction(
    batches: Sequence[ScoredBatch], standing: Standings, most: int
) -> Sequence[ScoredBatch]:
    """The batches that one transaction folds: at least the first one.

    More than `most` stored attempts are folded again only if the first batch needs them. A question
    that is folded anyway costs nothing more. If a batch is left out, the later ones on any of its
    questions are too, so that it does not become late on more of them.
    """
    if not any(batch.late for batch in batches):
        return batches
    chosen: list[ScoredBatch] = []
    folded: set[UserQuestion] = set()
    left_out: set[UserQuestion] = set()
    attempts = 0
    for batch in batches:
        user_id = batch.plan.user_id
        new = {(user_id, question_id) for question_id in batch.late} - folded
        more = sum([_attempts_of(standing[each]) for each in new])
        is_too_much = more and attempts + more > most
        answered = {(user_id, question_id) for question_id in batch.pub_ids.values()}
        if chosen and (is_too_much or not left_out.isdisjoint(answered)):
            left_out |= answered
            continue
        chosen.append(batch)
        folded |= new
        attempts += more
    return chosen


def _attempts_of(question: Standing) -> int:
    return question.progress.attempts_count if question.progress else 0


def not_reached(
    batches: Iterable[ScoredBatch], histories: Mapping[UserQuestion, History]
) -> set[UserQuestion]:
    """The late questions whose history is not there, or begins after an attempt that is late."""
    return {
        each
        for batch in batches
        for question_id in batch.late
        if (history := histories.get(each := (batch.plan.user_id, question_id))) is None
        or not all(map(history.reaches, batch.answers[question_id]))
    }


def finalize(
    batches: Sequence[ScoredBatch],
    standing: Standings,
    histories: Mapping[UserQuestion, History],
    policy: Policy,
    mark: Mark,
) -> Finalized:
    """Folds each (user, question) once. `histories` has that of each late one, and perhaps of
    others, and reaches all attempts. `mark` is the version of all that changes.
    """
    done = Finalized()
    new = _new(batches)
    late = {(batch.plan.user_id, each) for batch in batches for each in batch.late}
    placed = {
        each: place(*histories[each], sessions)
        if each in late
        else place(standing[each].progress, (), sessions)
        for each, sessions in new.items()
    }
    folded = {
        each: _Folded(now.progress, pattern_of(now.progress, policy), iter(now.changes))
        for each, now in placed.items()
    }
    done.histories = {
        each: (placed[each].history if each in late else None) or history.with_all(new[each])
        for each, history in histories.items()
        if each in new
    }
    explained = {each for each in folded if standing[each].explanation_requested}
    for batch in batches:
        plan, uuid = batch.plan, batch.plan.client_session_uuid
        outgoing: list[Message] = []
        sessions: list[tuple[int, UUID, Summary]] = []
        for topic_id, rows in batch.topics.items():
            session_id = derived_id(uuid, str(topic_id))
            changes: dict[int, Change] = {}
            patterns: dict[int, Pattern] = {}
            for question_id in dict.fromkeys([row.question_id for row in rows]):
                now = folded[plan.user_id, question_id]
                changes[question_id] = next(now.changes)
                patterns[question_id] = now.pattern
            summary = summarize([row.attempt.outcome for row in rows], changes.values())
            sessions.append((topic_id, session_id, summary))
            done.sessions.append(_session(batch, topic_id, session_id, list(changes), summary))
            session = FinalizedSession(
                plan.user_id,
                topic_id,
                session_id,
                changes,
                patterns,
                plan.incoming.traceparent,
            )
            for followup in FOLLOWUPS:
                # Also if nobody wants the jobs: what was requested must not depend on that.
                jobs = [*followup.on_session(session, explained)]
                if policy.wants(followup.kind.routing_key):
                    outgoing += jobs
        due = [
            (pub_id, folded[plan.user_id, question_id].progress.memory.due_at)
            for pub_id, question_id in batch.pub_ids.items()
        ]
        told = messages.ingested(
            uuid,
            batch.received_at,
            plan.skipped,
            sessions,
            due,
            batch.replaced,
            plan.user_id,
            mark,
            plan.erased_at,
        )
        outgoing += messages.first_result(plan.incoming, uuid, told)
        done.told[uuid] = told
        done.ingested[uuid] = Ingested(
            batch.received_at,
            batch.last_answered_at,
            [each.time_was for each in batch.replaced],
            records.Change(plan.user_id, plan.incoming.viewer, mark),
        )
        done.messages[uuid] = outgoing
    for each, now in folded.items():
        done.progress.append(
            Stored(*each, standing[each].topic_id, now.progress, now.pattern, each in explained)
        )
    return done


def _new(batches: Iterable[ScoredBatch]) -> dict[UserQuestion, list[Sequence[ScoredAttempt]]]:
    """The sessions of each (user, question), in the order of delivery."""
    new: dict[UserQuestion, list[Sequence[ScoredAttempt]]] = {}
    for batch in batches:
        user_id = batch.plan.user_id
        for question_id, answers in batch.answers.items():
            new.setdefault((user_id, question_id), []).append(answers)
    return new


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
