"""The ingest transaction on a real database: its decisions, rows and results."""

import traceback
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from asyncpg import (
    CheckViolationError,
    IntegrityConstraintViolationError,
    RaiseError,
    UniqueViolationError,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.errors import Rejection
from schemas.followups import EXPLANATION, REVIEW, ExplanationRequested, ReviewRequested
from schemas.ingest_result import IngestResult
from schemas.words import Outcome, Pattern, RejectReason, SkipReason, Status
from tests import factories as make
from tests.database_fixtures import on_either_content
from tests.factories import RIGHT, WRONG, at, batch, incoming, right, sent, unsure, wrong
from worker.domain.dispositions import Busy, Disposition, Duplicate, Ingested, Rejected
from worker.domain.policy import Policy
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.operate.repair import verify

pytestmark = on_either_content


@pytest.fixture
def ingest(engine: AsyncEngine) -> Ingest:
    return Ingest(engine, Policy())


async def _one(ingest: Ingest, delivery: Incoming) -> Disposition | Busy:
    (disposition,) = await ingest([delivery])
    return disposition


async def _rejected(ingest: Ingest, delivery: Incoming) -> RejectReason:
    disposition = await _one(ingest, delivery)
    assert isinstance(disposition, Rejected)
    return disposition.reason


async def _stored(engine: AsyncEngine) -> dict[str, int]:
    return {table: await make.count(engine, table) for table in make.LOG_TABLES}


NOTHING = {
    "study_question_attempts": 0,
    "study_quiz_sessions": 0,
    "study_question_progress": 0,
    "ingest_inbox": 0,
}


# ------------------------------------------------------------------------------ what is stored


async def test_a_batch_becomes_a_session_its_attempts_progress_a_receipt_and_a_result(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    first, second = await make.publish(engine, 2, user_id=7)
    delivery = sent(right(first, at(0)), wrong(second, at(0, minutes=1)), unsure(first, at(1)))

    disposition = await _one(ingest, delivery)

    assert isinstance(disposition, Ingested)
    uuid = delivery.client_session_uuid
    assert uuid is not None
    (session,) = await make.rows(engine, "SELECT * FROM study_quiz_sessions")
    assert session == session | {
        "user_id": 7,
        "study_topic_id": first.topic_id,
        "question_ids": [first.question_id, second.question_id],
        "subject_distribution": {str(first.topic_id): 3},
        "status": "finalized",
        "cursor": 3,
        "source": "viewer",
        "client_session_uuid": uuid,
        "correct_count": 1,
        "wrong_count": 1,
        "unsure_count": 1,
        "finished_at": at(1),
        "finalized_at": disposition.received_at,
        "created_at": disposition.received_at,
        "updated_at": disposition.received_at,
    }
    attempts = await make.rows(engine, "SELECT * FROM study_question_attempts ORDER BY position")
    assert [
        (each["study_question_id"], each["outcome"], each["is_correct"], each["answered_at"])
        for each in attempts
    ] == [
        (first.question_id, "correct", True, at(0)),
        (second.question_id, "wrong", False, at(0, minutes=1)),
        (first.question_id, "unsure", True, at(1)),
    ]
    assert {each["quiz_session_id"] for each in attempts} == {session["id"]}
    assert set(await make.progress(engine)) == {(7, first.question_id), (7, second.question_id)}
    (inbox,) = await make.rows(engine, "SELECT * FROM ingest_inbox")
    assert (inbox["client_session_uuid"], inbox["user_id"]) == (uuid, 7)
    assert inbox["received_at"] == disposition.received_at
    (told,) = await make.told(engine)
    assert told.status is Status.INGESTED
    assert told == IngestResult.model_validate(inbox["summary"])
    (summary,) = told.sessions
    assert summary.topic_id == first.topic_id and summary.quiz_session_id == session["id"]
    assert (summary.correct, summary.wrong, summary.unsure) == (1, 1, 1)
    assert (summary.newly_correct, summary.recovered, summary.relapsed) == (0, 0, 0)
    assert await verify(engine, 7, Policy()) == []


async def test_each_topic_has_a_session_of_its_own(engine: AsyncEngine, ingest: Ingest) -> None:
    (first,), (second,) = await make.publish(engine), await make.publish(engine)

    await ingest([sent(right(second), wrong(first), right(second, at(1)))])

    sessions = await make.rows(
        engine,
        "SELECT study_topic_id, cursor, question_ids, wrong_count FROM study_quiz_sessions"
        " ORDER BY study_topic_id",
    )
    assert [tuple(session.values()) for session in sessions] == [
        (first.topic_id, 1, [first.question_id], 1),
        (second.topic_id, 2, [second.question_id], 0),
    ]
    positions = await make.rows(
        engine,
        "SELECT study_topic_id, position FROM study_question_attempts ORDER BY position",
    )
    assert [row["study_topic_id"] for row in positions] == [
        second.topic_id,
        first.topic_id,
        second.topic_id,
    ], "positions are those in the batch"
    (told,) = await make.told(engine)
    assert [each.topic_id for each in told.sessions] == [second.topic_id, first.topic_id]


async def test_the_attempt_keeps_the_correct_choice_as_it_was(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    await ingest([sent(right(question, at(0)))])
    await make.execute(engine, "UPDATE study_questions SET correct_choice = 2")
    await ingest([sent(right(question, at(1)), wrong(question, at(2)))])

    attempts = await make.rows(
        engine,
        "SELECT selected_choice, correct_choice, outcome FROM study_question_attempts"
        " ORDER BY answered_at",
    )
    assert [tuple(each.values()) for each in attempts] == [
        (RIGHT, 1, "correct"),
        (RIGHT, 2, "wrong"),
        (WRONG, 2, "correct"),
    ]
    assert await verify(engine, 1, Policy()) == []


async def test_two_published_ids_of_one_question_are_one_history(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    await make.execute(
        engine,
        "INSERT INTO published (pub_id, kind, source_id) VALUES ('other', 'question', :id)",
        id=question.question_id,
    )
    await ingest([sent(right(question, at(0)), right("other", at(1)))])
    ((_, row),) = (await make.progress(engine)).items()
    assert row["attempts_count"] == 2


# ---------------------------------------------------------------------------------- skipped


async def test_each_attempt_that_cannot_count_is_skipped_with_its_own_reason(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    good, gone, deleted, other_kind, dangling = await make.publish(engine, 5)
    await make.withdraw(engine, gone)
    await make.delete_question(engine, deleted)
    for pub_id, change in (
        (other_kind.pub_id, "kind = 'note'"),
        (dangling.pub_id, "source_id = 4711"),
    ):
        await make.execute(engine, f"UPDATE published SET {change} WHERE pub_id = :id", id=pub_id)

    disposition = await _one(
        ingest,
        sent(
            right("never-published"),
            right(gone),
            right(deleted),
            right(other_kind),
            right(dangling),
            make.no_answer(good),
            right(good),
        ),
    )

    assert isinstance(disposition, Ingested)
    (told,) = await make.told(engine)
    assert [(each.position, each.question_pub_id, each.reason) for each in told.skipped] == [
        (0, "never-published", SkipReason.UNKNOWN_PUBLICATION),
        (1, gone.pub_id, SkipReason.WITHDRAWN),
        (2, deleted.pub_id, SkipReason.QUESTION_DELETED),
        (3, other_kind.pub_id, SkipReason.UNKNOWN_PUBLICATION),
        (4, dangling.pub_id, SkipReason.QUESTION_DELETED),
        (5, good.pub_id, SkipReason.NO_ANSWER),
    ]
    (attempt,) = await make.rows(engine, "SELECT * FROM study_question_attempts")
    assert (attempt["position"], attempt["study_question_id"]) == (6, good.question_id)


async def test_withdrawn_takes_precedence_over_deleted(engine: AsyncEngine, ingest: Ingest) -> None:
    good, both = await make.publish(engine, 2)
    await make.withdraw(engine, both)
    await make.delete_question(engine, both)
    await ingest([sent(right(both), right(good))])
    (told,) = await make.told(engine)
    assert [each.reason for each in told.skipped] == [SkipReason.WITHDRAWN]


async def test_a_topic_left_without_attempts_makes_no_session(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (answered,), (skipped,) = await make.publish(engine), await make.publish(engine)
    await ingest([sent(make.no_answer(skipped), right(answered))])
    (session,) = await make.rows(engine, "SELECT study_topic_id FROM study_quiz_sessions")
    assert session["study_topic_id"] == answered.topic_id


async def test_not_sure_without_a_selection_is_an_answer(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    await ingest([sent(unsure(question, choice=None))])
    (attempt,) = await make.rows(engine, "SELECT * FROM study_question_attempts")
    assert (attempt["outcome"], attempt["selected_choice"], attempt["is_correct"]) == (
        "unsure",
        None,
        None,
    )


# ---------------------------------------------------------------------------------- rejected


async def test_a_batch_without_a_published_question_is_rejected(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (gone,) = await make.publish(engine)
    await make.withdraw(engine, gone)
    assert await _rejected(ingest, sent(right("x"), right(gone))) is RejectReason.NOTHING_RESOLVED
    assert await _stored(engine) == NOTHING | {"outbox": 1, "ingest_dead_letters": 1}


async def test_a_batch_of_two_owners_is_rejected(engine: AsyncEngine, ingest: Ingest) -> None:
    (mine,), (yours,) = await make.publish(engine, user_id=1), await make.publish(engine, user_id=2)
    reason = await _rejected(ingest, sent(right(mine), right(yours)))
    assert reason is RejectReason.MIXED_PRINCIPALS
    reason = await _rejected(ingest, sent(right(mine), make.no_answer(yours)))
    assert reason is RejectReason.MIXED_PRINCIPALS, "an answer is no matter: it was resolved"
    assert await _stored(engine) == NOTHING | {"outbox": 2, "ingest_dead_letters": 2}


async def test_a_withdrawn_question_of_another_owner_does_not_mix(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (mine,), (yours,) = await make.publish(engine, user_id=1), await make.publish(engine, user_id=2)
    await make.withdraw(engine, yours)
    assert isinstance(await _one(ingest, sent(right(mine), right(yours))), Ingested)


async def test_the_principal_owns_what_counts_whatever_comes_before_it(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    gone, deleted = await make.publish(engine, 2, user_id=1)
    (mine,) = await make.publish(engine, user_id=2)
    await make.withdraw(engine, gone)
    await make.delete_question(engine, deleted)
    await make.grant(engine, make.VIEWER, 2)
    first, nobodys = await ingest(
        [
            sent(right("unknown"), right(gone), right(deleted), right(mine)),
            sent(right("unknown"), right(gone)),
        ]
    )
    assert isinstance(first, Ingested)
    assert isinstance(nobodys, Rejected) and nobodys.reason is RejectReason.NOTHING_RESOLVED
    assert list(await make.progress(engine)) == [(2, mine.question_id)]


async def test_a_batch_of_two_owners_has_none_that_could_be_granted(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (mine,), (yours,) = await make.publish(engine, user_id=1), await make.publish(engine, user_id=2)
    await make.grant(engine, make.VIEWER, 1)
    for mixed in ((mine, yours), (yours, mine)):
        reason = await _rejected(ingest, sent(*map(right, mixed)))
        assert reason is RejectReason.MIXED_PRINCIPALS


async def test_a_batch_without_any_answer_is_rejected(engine: AsyncEngine, ingest: Ingest) -> None:
    (question,) = await make.publish(engine)
    reason = await _rejected(ingest, sent(make.no_answer(question), right("unknown")))
    assert reason is RejectReason.NOTHING_TO_SCORE
    assert await _stored(engine) == NOTHING | {"outbox": 1, "ingest_dead_letters": 1}


async def test_a_viewer_with_grants_writes_for_those_users_alone(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (mine,), (yours,) = await make.publish(engine, user_id=1), await make.publish(engine, user_id=2)
    assert isinstance(await _one(ingest, sent(right(yours))), Ingested), "no grants: anyone"
    await make.grant(engine, make.VIEWER, 1)
    assert isinstance(await _one(ingest, sent(right(mine))), Ingested)
    assert await _rejected(ingest, sent(right(yours))) is RejectReason.PRINCIPAL_NOT_GRANTED
    assert isinstance(await _one(ingest, sent(right(yours), viewer="tablet")), Ingested)
    await make.grant(engine, make.VIEWER, 2)
    assert isinstance(await _one(ingest, sent(right(yours))), Ingested)


async def test_a_rejection_from_before_passes_through_and_is_told_when_it_can_be_addressed(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    malformed = Rejection(RejectReason.MALFORMED, "The body is not JSON.")
    uuid = uuid4()
    assert (
        await ingest(
            [
                incoming(malformed, uuid=uuid, traceparent="00-aa-bb-01"),
                incoming(malformed),
                incoming(malformed, viewer=None, uuid=uuid),
            ]
        )
        == [Rejected(RejectReason.MALFORMED, "The body is not JSON.")] * 3
    )

    (row,) = await make.outbox(engine)
    assert row["headers"] == {
        amqp.CLIENT_SESSION_UUID_HEADER: str(uuid),
        amqp.TRACEPARENT_HEADER: "00-aa-bb-01",
    }
    (told,) = await make.told(engine)
    assert (told.status, told.reason, told.detail) == (
        Status.REJECTED,
        RejectReason.MALFORMED,
        "The body is not JSON.",
    )
    assert await _stored(engine) == NOTHING | {"outbox": 1, "ingest_dead_letters": 2}


async def test_a_rejected_batch_may_be_sent_again_once_its_questions_are_published(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    await make.withdraw(engine, question)
    delivery = sent(right(question))
    assert await _rejected(ingest, delivery) is RejectReason.NOTHING_RESOLVED
    await make.execute(engine, "UPDATE published SET deleted = false")
    assert isinstance(await _one(ingest, delivery), Ingested)
    assert [each.status for each in await make.told(engine)] == [Status.REJECTED, Status.INGESTED]


# --------------------------------------------------------------------------------- answered_at


@pytest.mark.parametrize(
    ("text", "effective"),
    [
        ("2024-03-04T09:00:00Z", at(0)),
        ("2024-03-04T09:00:00", at(0)),
        ("2024-03-04T11:00:00+02:00", at(0)),
        ("2024-03-03T21:00:00.000001-12:00", at(0) + timedelta(microseconds=1)),
        ("2024-03-03T24:00:00-09:00", at(0)),
        ("2024-03-04t08:59:60z", at(0)),
        ("0001-01-01T00:00:00+14:00", None),
        (None, None),
        ("", None),
        ("yesterday", None),
        ("1709542800", None),
        ("2024-02-30T00:00:00Z", None),
        ("\ud800", None),
    ],
)
async def test_answered_at_is_read_or_becomes_the_time_of_ingest(
    engine: AsyncEngine, ingest: Ingest, text: str | None, effective: datetime | None
) -> None:
    (question,) = await make.publish(engine)
    disposition = await _one(ingest, sent(right(question, text)))
    assert isinstance(disposition, Ingested)
    (attempt,) = await make.rows(engine, "SELECT * FROM study_question_attempts")
    assert attempt["answered_at"] == (effective or disposition.received_at)
    assert attempt["answered_at_sent"] == effective
    assert await verify(engine, 1, Policy()) == []


@pytest.mark.parametrize(
    "text", ["2990-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59Z"]
)
async def test_a_time_in_the_future_is_clamped_and_kept_as_it_was_sent(
    engine: AsyncEngine, ingest: Ingest, text: str
) -> None:
    (question,) = await make.publish(engine)
    disposition = await _one(ingest, sent(right(question, text)))
    assert isinstance(disposition, Ingested)
    (attempt,) = await make.rows(engine, "SELECT * FROM study_question_attempts")
    assert attempt["answered_at"] == disposition.received_at
    as_sent = datetime.fromisoformat(text)
    assert abs(attempt["answered_at_sent"] - as_sent) <= timedelta(microseconds=1)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
async def test_times_at_the_edges_of_the_calendar_do_not_break_a_question(
    engine: AsyncEngine, ingest: Ingest, text: str
) -> None:
    """The driver writes these two as infinities, and reads infinities back without a zone."""
    (question,) = await make.publish(engine)
    for answered_at in (text, at(1), at(0), text):
        assert isinstance(await _one(ingest, sent(right(question, answered_at))), Ingested)
    ((_, row),) = (await make.progress(engine)).items()
    assert row["attempts_count"] == 4
    assert await verify(engine, 1, Policy()) == []
    (topic,) = await make.rows(engine, "SELECT * FROM study_topic_progress")
    assert 0 < topic["mean_retrievability"] <= 1


# ------------------------------------------------------------------------------- late batches


async def test_a_late_batch_lands_at_its_place_in_history(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    first, late, last = (
        sent(right(question, at(0))),
        sent(wrong(question, at(3))),
        sent(right(question, at(10))),
    )
    await ingest([first, late, last])
    in_order = await make.progress(engine)
    await make.forget(engine)

    for delivery in (first, last, late):
        await ingest([delivery])

    assert await make.progress(engine) == in_order
    told = (await make.told(engine))[-1]
    assert told.sessions[0].relapsed == 1, "correct before it, wrong in it, whatever came later"


async def test_before_is_what_lay_ahead_of_the_session_in_history(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    await ingest([sent(wrong(question, at(10)))])
    await ingest([sent(right(question, at(5)))])
    await ingest([sent(right(question, at(20)))])
    await ingest([sent(right(question, at(0)))])
    assert [
        (each.sessions[0].newly_correct, each.sessions[0].recovered)
        for each in await make.told(engine)
    ] == [(0, 0), (1, 0), (0, 1), (1, 0)]


async def test_a_batch_that_is_late_within_its_group_is_folded_at_its_place(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    await ingest([sent(right(question, at(0)))])
    await ingest([sent(wrong(question, at(9))), sent(right(question, at(4)))])
    await ingest([sent(right(question, at(12))), sent(wrong(question, at(2)))])
    ((_, row),) = (await make.progress(engine)).items()
    assert (row["attempts_count"], row["lapse_count"]) == (5, 2)
    assert await verify(engine, 1, Policy()) == []


async def test_a_schedule_by_another_scheduler_is_folded_again_not_carried_on(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    await ingest([sent(right(question, at(0)))])
    await make.execute(
        engine, "UPDATE study_question_progress SET scheduler = 'fsrs-5', stability = 99"
    )
    await ingest([sent(right(question, at(5)))])
    assert await verify(engine, 1, Policy()) == []


async def test_answers_clamped_to_one_receipt_are_folded_as_sent(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    soon = datetime.now(UTC) + timedelta(days=400)
    await ingest(
        [
            sent(wrong(question, soon + timedelta(days=2))),
            sent(right(question, soon + timedelta(days=1))),
            sent(unsure(question, None)),
        ]
    )
    ((_, row),) = (await make.progress(engine)).items()
    assert (row["last_outcome"], row["lapse_count"], row["first_correct_at"]) == (
        "wrong",
        1,
        row["last_answered_at"],
    )
    await ingest([sent(right(question, soon))])
    assert await verify(engine, 1, Policy()) == []


async def test_how_long_an_answer_took_is_stored_and_no_reason_for_another_batch(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    """A viewer that learned to send it may repeat a batch that it first sent without it."""
    questions = await make.publish(engine, 2)
    first, second = map(right, questions)
    before = sent(replace(first, duration_ms=4200), second)
    again = sent(first, replace(second, duration_ms=7), uuid=before.client_session_uuid)

    assert isinstance(await _one(ingest, before), Ingested)
    assert isinstance(await _one(ingest, again), Duplicate)

    kept = await make.rows(
        engine, "SELECT duration_ms FROM study_question_attempts ORDER BY position"
    )
    assert [row["duration_ms"] for row in kept] == [4200, None]


# --------------------------------------------------------------------------------- follow-ups


async def _explanations(engine: AsyncEngine) -> list[ExplanationRequested]:
    return [
        ExplanationRequested.model_validate_json(row["body"])
        for row in await make.outbox(engine)
        if row["type"] == EXPLANATION.message_type
    ]


async def _reviews(engine: AsyncEngine) -> list[ReviewRequested]:
    return [
        ReviewRequested.model_validate_json(row["body"])
        for row in await make.outbox(engine)
        if row["type"] == REVIEW.message_type
    ]


async def test_an_explanation_is_requested_of_what_ended_wrong_or_unsure(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    fine, bad, doubtful, mended = await make.publish(engine, 4, user_id=5)
    delivery = incoming(
        batch(
            right(fine),
            wrong(bad),
            unsure(doubtful),
            wrong(mended),
            right(mended, at(1)),
        ),
        traceparent="00-11-22-01",
    )
    await ingest([delivery])

    (told,) = await make.told(engine)
    session = told.sessions[0].quiz_session_id
    assert await _explanations(engine) == [
        ExplanationRequested(
            user_id=5,
            question_id=question.question_id,
            topic_id=question.topic_id,
            quiz_session_id=session,
            outcome=outcome,
        )
        for question, outcome in ((bad, Outcome.WRONG), (doubtful, Outcome.UNSURE))
    ]
    jobs = [row for row in await make.outbox(engine) if row["exchange"] == amqp.FOLLOWUPS_EXCHANGE]
    assert {row["routing_key"] for row in jobs} == {EXPLANATION.routing_key}
    assert all(row["headers"] == {amqp.TRACEPARENT_HEADER: "00-11-22-01"} for row in jobs)


async def test_an_explanation_is_requested_once_for_ever(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    await ingest([sent(wrong(question, at(2))), sent(wrong(question, at(3)))])
    await ingest([sent(wrong(question, at(4)))])
    await ingest([sent(wrong(question, at(1)))])
    await ingest([sent(right(question, at(5)))])
    await ingest([sent(unsure(question, at(6)))])
    assert len(await _explanations(engine)) == 1


async def test_a_review_is_requested_of_a_session_with_its_questions_and_their_patterns(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    relapsed, leech, stuck, known = await make.publish(engine, 4, user_id=3)
    ups_and_downs = [(right, wrong)[n % 2](leech, at(n)) for n in range(7)]
    await ingest([sent(right(relapsed, at(0)), *ups_and_downs)])
    await ingest([sent(*(wrong(stuck, at(n)) for n in range(4)), right(known, at(0)))])
    before = len(await _reviews(engine))

    await ingest(
        [
            sent(
                wrong(relapsed, at(20)),
                right(leech, at(20)),
                wrong(leech, at(21)),
                wrong(stuck, at(20)),
                right(known, at(20)),
            )
        ]
    )

    review = (await _reviews(engine))[before:]
    assert len(review) == 1
    assert (review[0].user_id, review[0].topic_id) == (3, relapsed.topic_id)
    assert review[0].quiz_session_id == (await make.told(engine))[-1].sessions[0].quiz_session_id
    assert {each.question_id: each.pattern for each in review[0].questions} == {
        relapsed.question_id: Pattern.RELAPSED,
        leech.question_id: Pattern.LEECH,
        stuck.question_id: Pattern.STUCK,
    }


async def test_a_review_is_one_for_each_session_and_none_for_what_goes_well(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (one,), (two,) = await make.publish(engine), await make.publish(engine)
    await ingest([sent(right(one), right(two))])
    assert await _reviews(engine) == []
    await ingest([sent(wrong(one, at(1)), wrong(two, at(1)))])
    assert [review.topic_id for review in await _reviews(engine)] == [one.topic_id, two.topic_id]
    await ingest([sent(wrong(one, at(2)))])
    assert len(await _reviews(engine)) == 3, "still relapsed in another session"


async def test_a_pattern_now_is_that_of_the_whole_history(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    await ingest([sent(right(question, at(9)))])
    await ingest([sent(right(question, at(1)), wrong(question, at(2)))])
    assert await _reviews(engine) == [], "recovered since, though the session ended badly"
    assert len(await _explanations(engine)) == 1


# --------------------------------------------------------------------------------- duplicates


async def test_a_duplicate_changes_nothing_and_is_told_all_that_the_first_was(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    good, gone = await make.publish(engine, 2)
    await make.withdraw(engine, gone)
    delivery = sent(wrong(good), right(gone))
    await ingest([delivery])
    (first,) = await make.told(engine)
    before = {**await make.contents(engine), "outbox": None}
    await make.withdraw(engine, good)
    await make.delete_question(engine, good)
    await make.grant(engine, make.VIEWER, 999)

    assert await ingest([delivery]) == [Duplicate()]

    assert {**await make.contents(engine), "outbox": None} == before
    again = (await make.told(engine))[-1]
    assert again == first.model_copy(update={"status": Status.ALREADY_INGESTED})
    assert first.skipped and first.sessions
    assert len(await make.outbox(engine)) == 3, "a result, an explanation, a result again"


async def test_the_same_meaning_in_other_words_is_a_duplicate(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    uuid = uuid4()
    await ingest([sent(right(question, "2024-03-04T09:00:00Z"), uuid=uuid)])
    assert await ingest([sent(right(question, "2024-03-04T10:00:00+01:00"), uuid=uuid)]) == [
        Duplicate()
    ]


@pytest.mark.parametrize("same_group", [True, False])
async def test_a_uuid_with_other_content_is_rejected(
    engine: AsyncEngine, ingest: Ingest, same_group: bool
) -> None:
    (question,) = await make.publish(engine)
    uuid = uuid4()
    deliveries = [sent(right(question), uuid=uuid), sent(wrong(question), uuid=uuid)]
    groups = [deliveries] if same_group else [[each] for each in deliveries]

    first, second = [each for group in groups for each in await ingest(group)]

    assert isinstance(first, Ingested)
    assert isinstance(second, Rejected) and second.reason is RejectReason.UUID_REUSED
    ((_, row),) = (await make.progress(engine)).items()
    assert (row["attempts_count"], row["last_outcome"]) == (1, "correct")
    assert [each.status for each in await make.told(engine)] == [Status.INGESTED, Status.REJECTED]


async def test_a_uuid_thrice_in_a_group_is_ingested_once(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    delivery = sent(right(question))
    dispositions = await ingest([delivery] * 3)
    assert isinstance(dispositions[0], Ingested)
    assert dispositions[1:] == [Duplicate(), Duplicate()]
    ((_, row),) = (await make.progress(engine)).items()
    assert row["attempts_count"] == 1
    assert len(await make.told(engine)) == 3


async def test_a_rejected_first_does_not_spoil_a_good_second_of_its_uuid(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    uuid = uuid4()
    bad, good = sent(right("unknown"), uuid=uuid), sent(right(question), uuid=uuid)
    rejected, ingested, again, other = await ingest([bad, good, good, bad])
    assert isinstance(rejected, Rejected) and rejected.reason is RejectReason.NOTHING_RESOLVED
    assert isinstance(ingested, Ingested)
    assert again == Duplicate()
    assert isinstance(other, Rejected) and other.reason is RejectReason.UUID_REUSED


async def test_each_viewer_is_told_and_nobody_when_nobody_is_known(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    content = batch(right(question))
    await ingest([incoming(content, viewer=None)])
    assert await make.outbox(engine) == []
    await ingest([incoming(content, "phone"), incoming(content, "tablet")])
    for viewer in ("phone", "tablet"):
        (told,) = await make.told(engine, viewer)
        assert told.status is Status.ALREADY_INGESTED


async def test_ingesting_an_empty_group_does_nothing(engine: AsyncEngine, ingest: Ingest) -> None:
    assert await ingest([]) == []


# --------------------------------------------------------------------------- outbox messages


async def test_a_message_about_a_single_event_always_has_the_same_id(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    delivery = sent(right(question, at(0)), wrong(question, at(1)))
    await ingest([delivery])
    first = await make.outbox(engine)
    await make.forget(engine)
    await ingest([delivery])
    again = await make.outbox(engine)

    assert [row["type"] for row in first] == [
        EXPLANATION.message_type,
        REVIEW.message_type,
        amqp.INGEST_RESULT_TYPE,
    ]
    assert [row["message_id"] for row in first] == [row["message_id"] for row in again]
    assert [(row["exchange"], row["routing_key"]) for row in first] == [
        (amqp.FOLLOWUPS_EXCHANGE, EXPLANATION.routing_key),
        (amqp.FOLLOWUPS_EXCHANGE, REVIEW.routing_key),
        (amqp.RESULTS_EXCHANGE, amqp.result_key(make.VIEWER)),
    ]
    assert len(await _explanations(engine)) == len(await _reviews(engine)) == 1
    assert len(await make.told(engine)) == 1


# ------------------------------------------------------------------ faults are no duplicates


async def _nothing_stored(engine: AsyncEngine) -> None:
    stored = await _stored(engine)
    assert not any(stored.values()), stored


async def test_another_uniqueness_than_the_inboxs_is_a_fault(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    """The second wall: a quiz session of this uuid, but no receipt in the inbox."""
    (question,) = await make.publish(engine)
    delivery = sent(right(question))
    await ingest([delivery])
    for lost in (
        ["ingest_inbox", "outbox"],
        ["study_question_attempts", "study_question_progress"],
    ):
        for table in lost:
            await make.execute(engine, f"DELETE FROM {table}")
        before = await make.contents(engine)
        with pytest.raises(UniqueViolationError, match="study_quiz_sessions_pkey"):
            await ingest([delivery])
        assert await make.contents(engine) == before


async def test_a_message_id_taken_by_another_message_is_a_fault(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    delivery = sent(right(question))
    await ingest([delivery])
    taken = (await make.outbox(engine))[0]["message_id"]
    await make.forget(engine)
    await make.execute(
        engine,
        "INSERT INTO outbox (message_id, exchange, routing_key, type, headers, body)"
        " VALUES (:id, 'x', 'x', 'x', '{}', 'x')",
        id=taken,
    )
    with pytest.raises(UniqueViolationError, match="outbox_message_id_key"):
        await ingest([delivery])
    await make.execute(engine, "DELETE FROM outbox")
    await _nothing_stored(engine)


@pytest.mark.parametrize(
    "constraint",
    [
        "ALTER TABLE study_question_attempts ADD CHECK (position < 1)",
        "ALTER TABLE study_question_progress ADD CHECK (attempts_count < 2)",
        "CREATE UNIQUE INDEX ON ingest_inbox ((1))",
    ],
)
async def test_a_violated_constraint_surfaces_and_nothing_is_stored(
    engine: AsyncEngine, ingest: Ingest, constraint: str
) -> None:
    (question,) = await make.publish(engine)
    await make.execute(engine, constraint)
    group = [sent(right(question, at(0)), right(question, at(1))), sent(right(question, at(2)))]
    with pytest.raises(IntegrityConstraintViolationError):
        await ingest(group)
    await _nothing_stored(engine)


async def test_a_fault_in_the_commit_itself_surfaces_and_nothing_is_stored(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    await make.execute(
        engine,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no'; END $$",
    )
    await make.execute(
        engine,
        "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON outbox DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    with pytest.raises(RaiseError, match="no"):
        await ingest([sent(right(question))])
    await _nothing_stored(engine)


async def test_errors_do_not_show_what_people_answered(engine: AsyncEngine, ingest: Ingest) -> None:
    (question,) = await make.publish(engine)
    await make.execute(engine, "ALTER TABLE study_question_attempts ADD CHECK (position < 0)")
    with pytest.raises(CheckViolationError) as caught:
        await ingest([sent(right(question))])
    shown = "".join(traceback.format_exception(caught.value))
    assert "study_question_attempts" in shown
    assert make.MONDAY.strftime("%Y-%m-%d") not in shown, "the server quotes the failing row"
