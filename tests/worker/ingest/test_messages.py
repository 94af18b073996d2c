"""JSON that is written by hand equals what the wire's model would write."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.followups import ExplanationRequested, QuestionPattern, ReviewRequested
from schemas.ingest_result import Due, IngestResult, ReplacedTime, SessionSummary, Skipped
from schemas.progress import ProgressMark
from schemas.words import Outcome, Pattern, SkipReason, Status, TimeWas
from worker.domain.records import Mark
from worker.domain.summary import Summary
from worker.ingest import followups, messages

_IDS = st.integers(1, 2**63 - 1)
_TIMES = st.datetimes(timezones=st.just(UTC))
_PUB_IDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
_SUMMARIES = st.builds(Summary, *[st.integers(0, 1_000)] * 6)


@pytest.mark.parametrize("outcome", [Outcome.WRONG, Outcome.UNSURE])
def test_a_request_for_an_explanation_is_the_model_as_json(outcome: Outcome) -> None:
    session_id = UUID("0b1c6b6e-8f0c-4f9e-9d5c-0a9f6f7f2a51")

    body = followups.explanation_requested(2**40, 7, 3, session_id, outcome, None).body

    model = ExplanationRequested(
        user_id=2**40, question_id=7, topic_id=3, quiz_session_id=session_id, outcome=outcome
    )
    assert body == model.model_dump_json()


@given(
    _IDS,
    _IDS,
    st.uuids(),
    st.lists(st.tuples(_IDS, st.sampled_from(Pattern)), min_size=1),
)
def test_a_request_for_a_review_is_the_model_as_json(
    user_id: int, topic_id: int, session_id: UUID, questions: list[tuple[int, Pattern]]
) -> None:
    body = followups.review_requested(user_id, topic_id, session_id, questions, None).body

    model = ReviewRequested(
        user_id=user_id,
        topic_id=topic_id,
        quiz_session_id=session_id,
        questions=tuple(
            QuestionPattern(question_id=question_id, pattern=pattern)
            for question_id, pattern in questions
        ),
    )
    assert body == model.model_dump_json()


@given(
    st.uuids(),
    _TIMES,
    st.lists(
        st.builds(
            Skipped,
            position=st.integers(0, 999),
            question_pub_id=_PUB_IDS,
            reason=st.sampled_from(SkipReason),
        )
    ),
    st.lists(st.tuples(_IDS, st.uuids(), _SUMMARIES)),
    st.lists(st.tuples(_PUB_IDS, _TIMES)),
    st.lists(
        st.builds(
            ReplacedTime,
            position=st.integers(0, 999),
            time_was=st.sampled_from(TimeWas),
            answered_at=_TIMES,
        )
    ),
)
def test_the_result_of_a_first_ingest_is_the_model_as_json(
    uuid: UUID,
    received_at: datetime,
    skipped: list[Skipped],
    sessions: list[tuple[int, UUID, Summary]],
    due: list[tuple[str, datetime]],
    replaced: list[ReplacedTime],
) -> None:
    told = messages.ingested(uuid, received_at, skipped, sessions, due, replaced, 7, Mark("e", 3))

    model = IngestResult(
        client_session_uuid=uuid,
        status=Status.INGESTED,
        received_at=received_at,
        skipped=tuple(skipped),
        sessions=tuple(
            SessionSummary(topic_id=topic_id, quiz_session_id=session_id, **summary._asdict())
            for topic_id, session_id, summary in sessions
        ),
        due=tuple(Due(question_pub_id=pub_id, due_at=due_at) for pub_id, due_at in due),
        replaced_times=tuple(replaced),
        progress=ProgressMark(user_id="7", epoch="e", version=3),
    )
    assert told == model.model_dump_json(exclude_none=True)
