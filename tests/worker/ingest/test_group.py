"""A group is an optimization: it leaves the rows that its batches leave one after another.

All of a group is committed at once, so that each batch is told what holds with all of it: its own
place in history, and the schedule after the whole group.
"""

import json
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.amqp import RESULTS_EXCHANGE
from schemas.attempt_batch import Attempt
from schemas.errors import Rejection
from schemas.followups import REVIEW
from schemas.words import RejectReason
from tests import factories as make
from tests.database_fixtures import on_either_content
from tests.factories import Published, answer, at, incoming, sent
from worker.domain.dispositions import Busy, Disposition, Duplicate, Ingested, Rejected
from worker.domain.policy import Policy
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest

pytestmark = on_either_content

# Indices into the questions below, so that an example prints as what it is.
QUESTIONS = st.integers(0, 6)
ANSWERS = st.tuples(
    QUESTIONS,
    st.sampled_from([1, 2, None]),
    st.booleans(),
    st.one_of(st.integers(0, 4), st.integers(0, 60)),
)
DELIVERIES = st.lists(
    st.tuples(
        st.integers(0, 3),  # which uuid
        st.lists(ANSWERS, min_size=1, max_size=4),
        st.sampled_from(["phone", "tablet", None]),
    ),
    min_size=1,
    max_size=7,
)
"""Few uuids, so that they come again: with the same content or another."""


def _attempt(questions: list[Published | str], drawn: tuple[int, int | None, bool, int]) -> Attempt:
    number, choice, unsure, hour = drawn
    return answer(questions[number], choice, at(hours=hour), unsure=unsure)


def _plain(disposition: Disposition | Busy) -> tuple[str, RejectReason | None]:
    match disposition:
        case Ingested():
            return "ingested", None
        case Duplicate():
            return "duplicate", None
        case Rejected(reason=reason):
            return "rejected", reason
        case Busy():
            return "busy", None


def _whatever_the_group(contents: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Less what a batch is told that depends on which others are in: due times, what the session
    changed, and the review that it asks for.
    """

    def plain(told: Any) -> Any:
        return told | {
            "due": [each["question_pub_id"] for each in told.get("due", ())],
            "sessions": [
                each | {"newly_correct": 0, "recovered": 0, "relapsed": 0}
                for each in told.get("sessions", ())
            ],
        }

    return contents | {
        "inbox": [row | {"told": plain(row["told"])} for row in contents["inbox"]],
        "outbox": [
            row | {"body": plain(row["body"])} if row["exchange"] == RESULTS_EXCHANGE else row
            for row in contents["outbox"]
            if row["routing_key"] != REVIEW.routing_key
        ],
    }


async def _both_ways(
    engine: AsyncEngine, group: list[Incoming]
) -> tuple[list[Disposition | Busy], list[Disposition | Busy]]:
    ingest = Ingest(engine, Policy())
    one_by_one = [each for delivery in group for each in await ingest([delivery])]
    expected = await make.contents(engine)
    await make.forget(engine)
    together = await ingest(group)
    found = await make.contents(engine)
    await make.forget(engine)
    assert _whatever_the_group(found) == _whatever_the_group(expected)
    return one_by_one, together


@given(st.data())
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_a_group_is_its_batches_one_after_another(
    engine: AsyncEngine, data: st.DataObject
) -> None:
    mine, other_topic = await make.publish(engine, 3, user_id=1), await make.publish(engine)
    (yours,) = await make.publish(engine, user_id=2)
    await make.withdraw(engine, mine[2])
    questions: list[Published | str] = [*mine, *other_topic, yours, "unknown", mine[0]]

    drawn = data.draw(DELIVERIES)
    repeats = data.draw(st.lists(st.integers(0, len(drawn) - 1), max_size=3))
    group = [
        incoming(
            make.batch(*(_attempt(questions, each) for each in answers), uuid=UUID(int=number + 1)),
            viewer,
        )
        for number, answers, viewer in [*drawn, *(drawn[n] for n in repeats)]
    ]

    one_by_one, together = await _both_ways(engine, group)

    assert [_plain(each) for each in together] == [_plain(each) for each in one_by_one]


@given(st.data())
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_the_results_of_a_group_do_not_depend_on_the_order_of_its_batches(
    engine: AsyncEngine, data: st.DataObject
) -> None:
    questions = [*await make.publish(engine, 2), *await make.publish(engine, 1)]
    answers = st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([1, 2]), st.booleans(), st.integers(0, 60)),
        min_size=1,
        max_size=4,
    )
    early, late = (
        [
            incoming(make.batch(*(_attempt([*questions], each) for each in drawn)))
            for drawn in data.draw(st.lists(answers, min_size=1, max_size=most))
        ]
        for most in (2, 5)
    )
    told = []
    for order in (late, data.draw(st.permutations(late))):
        await Ingest(engine, Policy())(early)
        await Ingest(engine, Policy())(order)
        contents = await make.contents(engine)
        reviews = [row for row in contents["outbox"] if row["routing_key"] == REVIEW.routing_key]
        told.append(
            (
                contents["progress"],
                contents["inbox"],
                sorted(json.dumps(row["body"], sort_keys=True) for row in reviews),
            )
        )
        await make.forget(engine)
    assert told[0] == told[1]


async def test_every_batch_of_a_group_is_told_when_the_question_is_due_after_all_of_it(
    engine: AsyncEngine,
) -> None:
    (question,) = await make.publish(engine)
    await Ingest(engine, Policy())([sent(make.right(question, at(2)))])
    await Ingest(engine, Policy())(
        [
            sent(make.wrong(question, at(9))),
            sent(make.right(question, at(1))),
            sent(make.right(question, at(12))),
        ]
    )
    (row,) = (await make.progress(engine)).values()
    _, *group = await make.told(engine)
    assert [each.due[0].due_at for each in group] == [row["due_at"]] * 3
    changes = [each.sessions[0] for each in group]
    assert [(each.newly_correct, each.recovered, each.relapsed) for each in changes] == [
        (0, 0, 1),
        (1, 0, 0),
        (0, 1, 0),
    ]


async def test_results_leave_in_the_order_of_delivery(engine: AsyncEngine) -> None:
    (question,) = await make.publish(engine)
    known = sent(make.right(question))
    group = [
        known,
        known,
        sent(make.right("unknown")),
        sent(make.wrong(question, at(1))),
        incoming(Rejection(RejectReason.MALFORMED, "No."), uuid=UUID(int=1)),
        sent(make.right(question, at(2))),
    ]

    await _both_ways(engine, group)
    await Ingest(engine, Policy())(group)

    assert [each.client_session_uuid for each in await make.told(engine)] == [
        delivery.client_session_uuid for delivery in group
    ]


async def test_a_batch_after_the_second_try_of_a_uuid_sees_its_effect(engine: AsyncEngine) -> None:
    """The second batch is told what the first of them, by then ingested, left behind."""
    (question,) = await make.publish(engine)
    uuid = UUID(int=7)
    group = [
        sent(make.right("unknown"), uuid=uuid),
        sent(make.right(question, at(0)), uuid=uuid),
        sent(make.right(question, at(1))),
    ]

    await _both_ways(engine, group)
    await Ingest(engine, Policy())(group)

    told = await make.told(engine)
    assert [each.sessions[0].newly_correct for each in told[1:]] == [1, 0]
