"""Values that are sent as text are read back unchanged, on the real server."""

from datetime import UTC, datetime

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.words import Outcome
from worker.domain.records import storable
from worker.store.literals import numbers, texts, time_of, times, words

_TIMES = text(
    f"SELECT {time_of('sent')} FROM"
    " unnest(CAST(CAST(:sent AS text) AS bigint[])) WITH ORDINALITY AS each (sent, place)"
    " ORDER BY place"
)
_OTHERS = text(
    "SELECT CAST(CAST(:numbers AS text) AS bigint[]), CAST(CAST(:truths AS text) AS boolean[]),"
    " CAST(CAST(:words AS text) AS text[]), CAST(CAST(:texts AS text) AS text[])"
)
_ANY_TIME = st.none() | st.datetimes(timezones=st.just(UTC)).map(storable)


@given(st.lists(_ANY_TIME, max_size=30))
@example([storable(datetime.min.replace(tzinfo=UTC)), storable(datetime.max.replace(tzinfo=UTC))])
@example([datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)])
@example([datetime(9000, 1, 1, 0, 0, 0, 1, tzinfo=UTC)])  # no double holds its microseconds
@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_times_are_read_back_to_the_microsecond(
    engine: AsyncEngine, sent: list[datetime | None]
) -> None:
    async with engine.connect() as connection:
        assert (await connection.scalars(_TIMES, {"sent": times(sent)})).all() == sent


@given(
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)),
    st.lists(st.booleans()),
    st.lists(st.sampled_from(Outcome)),
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))),
)
@example([None], [], [], ["", "null", "a,b", '"', "\\", "{}", " ", "\n"])
@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_numbers_truth_values_words_and_texts_are_read_back(
    engine: AsyncEngine,
    integers: list[int | None],
    truths: list[bool],
    outcomes: list[Outcome],
    any_texts: list[str],
) -> None:
    async with engine.connect() as connection:
        found = await connection.execute(
            _OTHERS,
            {
                "numbers": numbers(integers),
                "truths": numbers(truths),
                "words": words(outcomes),
                "texts": texts(any_texts),
            },
        )
        assert tuple(found.one()) == (integers, truths, outcomes, any_texts)
