"""Random histories: ties, second devices, clocks ahead, and sessions that interleave."""

from datetime import timedelta
from typing import Final
from uuid import UUID

from hypothesis import strategies as st

from tests.factories import MONDAY, RIGHT, WRONG, scored
from worker.domain.scoring import ScoredAttempt

Session = list[ScoredAttempt]

# Few values, so that ties are common; some days apart, so that the schedule matters.
MINUTES: Final = st.one_of(
    st.integers(0, 3), st.sampled_from([600, 1_439, 1_440, 1_441]), st.integers(0, 60 * 24 * 60)
)
ANSWERS: Final = st.sampled_from(
    [(RIGHT, False), (WRONG, False), (RIGHT, True), (WRONG, True), (None, True)]
)


@st.composite
def sessions(
    draw: st.DrawFn, *, max_sessions: int = 8, max_size: int = 4, interleaving: bool = True
) -> list[Session]:
    """Sessions on one question, each with the time of its receipt clamping its attempts."""
    found: list[Session] = []
    start = MONDAY
    for number in range(draw(st.integers(1, max_sessions))):
        offsets = draw(st.lists(MINUTES, min_size=1, max_size=max_size))
        if not interleaving:
            start += timedelta(days=draw(st.integers(1, 40)))
            offsets = [offset % 60 for offset in offsets]
        # A receipt before the last answer clamps it: a clock that runs ahead.
        received_at = start + timedelta(minutes=draw(MINUTES) if interleaving else 60)
        found.append(
            [
                scored(
                    choice,
                    start + timedelta(minutes=offset),
                    unsure=unsure,
                    session=UUID(int=draw(st.integers(0, 2**16)) * 1_000 + number),
                    position=position,
                    received_at=received_at,
                )
                for position, (offset, (choice, unsure)) in enumerate(
                    (offset, draw(ANSWERS)) for offset in offsets
                )
            ]
        )
        # One uuid for each session.
        uuid = found[-1][0].client_session_uuid
        found[-1] = [each._replace(client_session_uuid=uuid) for each in found[-1]]
    return found
