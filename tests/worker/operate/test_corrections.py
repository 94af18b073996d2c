"""Void and rescore: what leaves the log, what stays on record, who is told, and the fold after."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.words import Outcome, Pattern, Status
from tests import factories as make
from tests.factories import RIGHT, WRONG, answer, at, right, sent, unsure, wrong
from worker.domain.dispositions import Busy, Disposition, Duplicate, Ingested
from worker.domain.policy import Policy
from worker.errors import IngestError
from worker.ingest.transaction import Ingest
from worker.operate.repair import verify
from worker.operate.rescore import rescore
from worker.operate.void import void
from worker.store.audit import By

POLICY = Policy()
BY = By("ops", "the key was wrong")


@pytest.fixture
def ingest(engine: AsyncEngine) -> Ingest:
    return Ingest(engine, POLICY)


async def _nothing_amiss(engine: AsyncEngine) -> None:
    for user_id in await make.users(engine):
        assert await verify(engine, user_id, POLICY) == []


async def _audit(engine: AsyncEngine) -> list[tuple[str, str]]:
    found = await make.rows(engine, "SELECT * FROM ingest_audit ORDER BY id")
    assert all(row["actor"] == BY.actor and row["reason"] == BY.reason for row in found)
    return [(row["operation"], row["subject"]) for row in found]


# ---------------------------------------------------------------------------------------- void


async def test_a_voided_session_leaves_the_fold_and_stays_on_record(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    kept, dropped = await make.publish(engine, 2, user_id=7)
    await ingest([sent(right(kept, at(0)))])
    without = await make.progress(engine)
    uuid = uuid4()
    await ingest([sent(wrong(kept, at(1)), wrong(dropped, at(1)), uuid=uuid)])

    effect = await void(engine, uuid, POLICY, BY)

    assert effect == (7, 1, 2, 2)
    after = await make.progress(engine)
    # The request for an explanation was made, and stays so.
    assert after[7, kept.question_id].pop("explanation_requested")
    without[7, kept.question_id].pop("explanation_requested")
    assert after == without
    assert await make.count(engine, "study_question_attempts") == 3
    assert await make.count(engine, "study_quiz_sessions") == 2
    assert await _audit(engine) == [("void", f"session {uuid}")]
    await _nothing_amiss(engine)


async def test_a_void_again_changes_nothing_and_its_redelivery_is_a_duplicate(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    delivery = sent(wrong(question))
    await ingest([delivery])
    assert delivery.client_session_uuid is not None
    await void(engine, delivery.client_session_uuid, POLICY, BY)
    before = await make.contents(engine)

    assert await void(engine, delivery.client_session_uuid, POLICY, BY) == (1, 0, 0, 0)
    assert await make.contents(engine) == before
    assert len(await _audit(engine)) == 1
    assert await ingest([delivery]) == [Duplicate()]
    assert await make.progress(engine) == {}
    await _nothing_amiss(engine)


async def test_a_late_batch_is_folded_without_the_voided_ones(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    uuid = uuid4()
    await ingest([sent(wrong(question, at(5)), uuid=uuid)])
    await ingest([sent(right(question, at(9)))])
    await void(engine, uuid, POLICY, BY)

    await ingest([sent(right(question, at(2)))])

    (row,) = (await make.progress(engine)).values()
    assert (row["attempts_count"], row["correct_count"]) == (2, 2)
    assert row["pattern"] == Pattern.KNOWN
    await _nothing_amiss(engine)


async def test_jobs_of_a_voided_session_that_have_not_left_are_withdrawn(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    only, also_elsewhere = await make.publish(engine, 2)
    await ingest([sent(right(also_elsewhere, at(0)))])
    uuid = uuid4()
    await ingest([sent(wrong(only, at(1)), wrong(also_elsewhere, at(1)), uuid=uuid)])
    assert await _jobs(engine) == [
        ("explanation.requested", only.question_id),
        ("explanation.requested", also_elsewhere.question_id),
        ("review.requested", None),
    ]

    await void(engine, uuid, POLICY, BY)

    assert await _jobs(engine) == [("explanation.requested", also_elsewhere.question_id)]
    # The one that was withdrawn can be asked for again.
    await ingest([sent(wrong(only, at(2)))])
    assert ("explanation.requested", only.question_id) in await _jobs(engine)


async def _jobs(engine: AsyncEngine) -> list[tuple[str, int | None]]:
    found = await make.rows(
        engine,
        "SELECT routing_key, CAST(CAST(body AS jsonb) ->> 'question_id' AS bigint) AS question"
        " FROM outbox WHERE exchange = 'study.followups' ORDER BY id",
    )
    return [(row["routing_key"], row["question"]) for row in found]


async def test_an_unknown_session_is_one_sentence(engine: AsyncEngine) -> None:
    with pytest.raises(IngestError, match=r"No session .* is on record"):
        await void(engine, UUID(int=1), POLICY, BY)
    assert await _audit(engine) == []


async def test_voids_and_batches_of_one_user_at_once_lose_nothing(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    questions = await make.publish(engine, 3)
    uuids = [UUID(int=n) for n in range(1, 9)]
    for n, uuid in enumerate(uuids):
        await ingest([sent(*(wrong(each, at(n)) for each in questions), uuid=uuid)])

    await asyncio.gather(
        *(void(engine, uuid, POLICY, BY) for uuid in uuids[:4]),
        *(ingest([sent(*(right(each, at(n - 0.5)) for each in questions))]) for n in range(4)),
    )

    assert {row["attempts_count"] for row in (await make.progress(engine)).values()} == {8}
    await _nothing_amiss(engine)


SESSIONS = st.lists(
    st.tuples(
        st.lists(  # question, choice, unsure, hour
            st.tuples(
                st.integers(0, 2), st.sampled_from([RIGHT, WRONG]), st.booleans(), st.integers(0, 9)
            ),
            min_size=1,
            max_size=4,
        ),
        st.one_of(st.none(), st.integers(0, 5)),  # voided after so many more sessions
    ),
    min_size=1,
    max_size=6,
)


@given(drawn=SESSIONS)
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_progress_is_the_fold_of_the_sessions_that_are_not_void(
    engine: AsyncEngine, ingest: Ingest, drawn: list[tuple[list[Any], int | None]]
) -> None:
    questions = await make.publish(engine, 3)
    deliveries = [
        sent(
            *(
                answer(questions[number], choice, at(hours=hour), unsure=unsure)
                for number, choice, unsure, hour in answers
            )
        )
        for answers, _ in drawn
    ]
    for n, delivery in enumerate(deliveries):
        await ingest([delivery])
        for earlier, (_, wait) in enumerate(drawn[: n + 1]):
            if wait is not None and (earlier + wait == n or n == len(drawn) - 1):
                uuid = deliveries[earlier].client_session_uuid
                assert uuid is not None
                await void(engine, uuid, POLICY, BY)
    await _nothing_amiss(engine)
    found = await make.progress(engine)
    await make.forget(engine)

    for delivery, (_, wait) in zip(deliveries, drawn, strict=True):
        if wait is None:
            await ingest([delivery])
    expected = await make.progress(engine)
    await make.forget(engine)

    for row in [*found.values(), *expected.values()]:
        row.pop("explanation_requested")  # once asked for, it stays so
    assert found == expected


# ------------------------------------------------------------------------------------- rescore


async def test_a_rescore_gives_what_the_right_key_would_have_given(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    asked, other = await make.publish(engine, 2, user_id=7)
    deliveries = [
        sent(wrong(asked, at(0)), right(other, at(0))),
        sent(right(asked, at(1)), wrong(other, at(1))),
        sent(unsure(asked, at(2), WRONG)),
        sent(wrong(asked, at(3)), wrong(asked, at(3, minutes=1))),
    ]
    for delivery in deliveries:
        await ingest([delivery])

    effect = await rescore(engine, asked.question_id, WRONG, POLICY, BY)

    assert effect.attempts == 5 and effect.sessions == 4 and effect.told == 4
    found = await make.contents(engine)
    told = {each.client_session_uuid: each.sessions for each in await make.told(engine)}
    await _nothing_amiss(engine)
    assert await _audit(engine) == [("rescore", f"question {asked.question_id}, user 7")]

    # The same deliveries under the right key from the start.
    await make.forget(engine)
    for delivery in deliveries:
        await ingest([delivery])
    expected = await make.contents(engine)
    for row in [*found["progress"], *expected["progress"]]:
        row.pop("explanation_requested")  # asked for by the wrong key: that can't be undone
    assert found["sessions"] == expected["sessions"]
    assert found["attempts"] == expected["attempts"]
    assert found["progress"] == expected["progress"]
    assert told == {each.client_session_uuid: each.sessions for each in await make.told(engine)}


async def test_a_rescore_tells_the_viewers_and_a_redelivery_is_told_the_same(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    delivery = sent(wrong(question))
    await ingest([delivery])
    await rescore(engine, question.question_id, WRONG, POLICY, BY)
    await ingest([delivery])

    first, rescored, again = await make.told(engine)
    assert (first.status, first.sessions[0].correct) == (Status.INGESTED, 0)
    assert rescored.status is Status.ALREADY_INGESTED
    assert (rescored.sessions[0].correct, rescored.sessions[0].newly_correct) == (1, 1)
    assert rescored.received_at == first.received_at
    assert again == rescored


async def test_a_rescore_again_changes_and_tells_nothing(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    await ingest([sent(wrong(question))])
    await rescore(engine, question.question_id, WRONG, POLICY, BY)
    before = await make.contents(engine)

    assert await rescore(engine, question.question_id, WRONG, POLICY, BY) == (0, 0, 0, 0)
    assert await rescore(engine, question.question_id, None, POLICY, BY) == (0, 0, 0, 0)
    assert await make.contents(engine) == before
    assert len(await _audit(engine)) == 1


async def test_without_a_choice_the_key_that_the_question_has_now_counts(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    await ingest([sent(right(question))])
    await make.execute(engine, "UPDATE study_questions SET correct_choice = 3")

    effect = await rescore(engine, question.question_id, None, POLICY, BY)

    assert effect.attempts == 1
    (row,) = (await make.progress(engine)).values()
    assert row["last_outcome"] == Outcome.WRONG
    # It has gone wrong, and nobody had asked for an explanation.
    assert await _jobs(engine) == [("explanation.requested", question.question_id)]
    await _nothing_amiss(engine)


async def test_a_rescore_leaves_voided_sessions_void_and_untold(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    uuid = uuid4()
    await ingest([sent(wrong(question), uuid=uuid)])
    await void(engine, uuid, POLICY, BY)

    effect = await rescore(engine, question.question_id, WRONG, POLICY, BY)

    assert (effect.attempts, effect.told, effect.progress) == (1, 0, 0)
    (attempt,) = await make.rows(engine, "SELECT * FROM study_question_attempts")
    assert (attempt["outcome"], attempt["correct_choice"]) == (Outcome.CORRECT, WRONG)
    assert await make.progress(engine) == {}


async def test_a_question_that_changed_hands_is_rescored_for_both(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine, user_id=1)
    await ingest([sent(wrong(question, at(0)))])
    await make.execute(engine, "UPDATE study_questions SET user_id = 2")
    assert isinstance((await ingest([sent(wrong(question, at(1)))]))[0], Ingested)

    await rescore(engine, question.question_id, WRONG, POLICY, BY)

    progress = await make.progress(engine)
    assert {row["correct_count"] for row in progress.values()} == {1} and len(progress) == 2
    await _nothing_amiss(engine)


async def test_a_rescore_amid_ingest_leaves_one_key(engine: AsyncEngine, ingest: Ingest) -> None:
    (question,) = await make.publish(engine)
    await ingest([sent(wrong(question, at(0)))])

    async def batches(start: float) -> list[list[Disposition | Busy]]:
        return [
            await ingest([sent(wrong(question, at(start) + timedelta(minutes=n)))])
            for n in range(4)
        ]

    await asyncio.gather(
        batches(1), rescore(engine, question.question_id, WRONG, POLICY, BY), batches(2)
    )

    found = await make.rows(engine, "SELECT correct_choice, outcome FROM study_question_attempts")
    assert len(found) == 9
    assert {(row["correct_choice"], row["outcome"]) for row in found} == {(WRONG, "correct")}
    await _nothing_amiss(engine)


async def test_an_unknown_question_is_one_sentence(engine: AsyncEngine) -> None:
    with pytest.raises(IngestError, match="no question 99"):
        await rescore(engine, 99, RIGHT, POLICY, BY)


# ------------------------------------------------------------------------- what is told again


async def test_what_a_rescore_tells_is_as_of_now_and_the_inbox_keeps_it(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    first, second = await make.publish(engine, 2)
    delivery = sent(wrong(first, at(0)), right(second, at(0)))
    await ingest([delivery])
    await ingest([sent(right(second, at(9)))])  # it moves the other question's due time

    await rescore(engine, first.question_id, WRONG, POLICY, BY)

    progress = await make.progress(engine)
    due = {
        each.pub_id: progress[each.user_id, each.question_id]["due_at"] for each in (first, second)
    }
    (again,) = (await make.told(engine))[2:]
    assert {each.question_pub_id: each.due_at for each in again.due} == due
    await ingest([delivery])
    assert (await make.told(engine))[3].due == again.due


async def test_every_published_id_of_a_question_is_told_when_it_is_due(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    (question,) = await make.publish(engine)
    await make.execute(
        engine,
        "INSERT INTO published (pub_id, kind, source_id) VALUES ('alias', 'question', :id)",
        id=question.question_id,
    )
    await ingest([sent(right("alias", at(0)), right(question, at(1)))])
    (told,) = await make.told(engine)
    assert [each.question_pub_id for each in told.due] == ["alias", question.pub_id]
    assert len({each.due_at for each in told.due}) == 1


async def test_a_void_tells_the_viewer_and_a_redelivery_is_told_the_same(
    engine: AsyncEngine, ingest: Ingest
) -> None:
    kept, dropped = await make.publish(engine, 2)
    await ingest([sent(right(kept, at(0)))])
    (before,) = await make.told(engine)
    delivery = sent(wrong(kept, at(1)), wrong(dropped, at(1)))
    await ingest([delivery])

    await void(engine, delivery.content.client_session_uuid, POLICY, BY)  # type: ignore[union-attr]
    await void(engine, delivery.content.client_session_uuid, POLICY, BY)  # type: ignore[union-attr]

    (told,) = (await make.told(engine))[2:]
    assert told.status is Status.ALREADY_INGESTED
    assert told.voided_at is not None and told.sessions == ()
    assert told.due == before.due  # of the question that has an answer left, and as it was
    assert await ingest([delivery]) == [Duplicate()]
    assert (await make.told(engine))[3] == told
