"""The time of an answer: local time, with its offset from UTC."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from study_viewer import local_now
from study_viewer.schemas.attempt_batch import Attempt, AttemptBatch


@pytest.fixture(
    params=[
        ("UTC0", 0),
        ("<+0545>-5:45", 345),
        ("<-0330>3:30", -210),
        ("<+14>-14", 840),
        ("<odd>-1:30:40", 91),
    ]
)
def zone(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, int]]:
    """A time zone of the device as POSIX writes it, and its offset in minutes."""
    found: tuple[str, int] = request.param
    monkeypatch.setenv("TZ", found[0])
    time.tzset()
    yield found
    monkeypatch.undo()
    time.tzset()


def test_an_answer_tells_the_instant_and_the_offset_of_the_device(zone: tuple[str, int]) -> None:
    before = datetime.now(UTC)
    told = local_now()
    after = datetime.now(UTC)
    attempt = Attempt(question_pub_id="q", selected_choice=1, answered_at=told)
    times = AttemptBatch(client_session_uuid=uuid4(), attempts=(attempt,)).sent_times
    (at,), (offset,) = times.at, times.utc_offsets
    assert at is not None
    assert before - timedelta(milliseconds=1) <= at <= after
    assert offset == zone[1]
