"""What is written down as JSON by hand is what the wire's model would write."""

from uuid import UUID

import pytest

from schemas.followups import ExplanationRequested
from schemas.words import Outcome
from worker import messages


@pytest.mark.parametrize("outcome", [Outcome.WRONG, Outcome.UNSURE])
def test_a_request_for_an_explanation_is_the_model_as_json(outcome: Outcome) -> None:
    session_id = UUID("0b1c6b6e-8f0c-4f9e-9d5c-0a9f6f7f2a51")

    body = messages.explanation_requested(2**40, 7, 3, session_id, outcome, None).body

    model = ExplanationRequested(
        user_id=2**40, question_id=7, topic_id=3, quiz_session_id=session_id, outcome=outcome
    )
    assert body == model.model_dump_json()
