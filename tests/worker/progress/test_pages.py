"""Pages, without servers: however an answer is cut, a device ends up with the same."""

import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.progress import ProgressPage
from schemas.words import StartsOver
from tests.factories import MONDAY
from tests.worker.progress.device import Device
from worker.domain.cursor import BEFORE_ALL, Cursor, start
from worker.domain.records import ChangedQuestion, Mark, ReadState
from worker.progress.pages import pages

EPOCH = "0123456789ab"
STATE = ReadState(Mark(EPOCH, 1_000), None, 0)
IDS = st.integers(-(2**63), 2**63 - 1)


def question(version: int, question_id: int) -> ChangedQuestion:
    due_at = MONDAY + timedelta(days=3)
    return ChangedQuestion(version, question_id, MONDAY, "correct", 2.5, due_at, 1, 0, 0, "known")


def gone(version: int, question_id: int) -> ChangedQuestion:
    nothing = (None,) * 8
    return ChangedQuestion(version, question_id, *nothing)


@st.composite
def changes(draw: st.DrawFn) -> list[ChangedQuestion]:
    found = draw(st.dictionaries(st.integers(1, 40), st.tuples(st.integers(0, 6), st.booleans())))
    made = [
        question(version, each) if is_there else gone(version, each)
        for each, (version, is_there) in found.items()
    ]
    return sorted(made, key=lambda each: (each.version, each.question_id))


def after(found: list[ChangedQuestion], position: tuple[int, int]) -> list[ChangedQuestion]:
    return [each for each in found if (each.version, each.question_id) > position]


@given(found=changes(), in_a_page=st.integers(1, 5), in_an_answer=st.integers(1, 12))
def test_however_it_is_cut_a_device_that_asks_on_has_everything(
    found: list[ChangedQuestion], in_a_page: int, in_an_answer: int
) -> None:
    device = Device()
    device.asks.add("7")
    answers = 0
    while device.asks:
        cursor = device.request("7")["cursor"]
        position, why = start(cursor, 7, STATE.newest, 0)
        assert (why is StartsOver.FIRST) == (cursor is None)
        told = [
            *pages(
                7,
                cursor,
                why,
                STATE,
                after(found, position)[: in_an_answer + 1],
                {17: ["a", "b"]},
                in_a_page=in_a_page,
                in_an_answer=in_an_answer,
            )
        ]
        assert all(device.page(page) for page in told)
        assert [json.loads(page)["next"] for page in told[:-1]] == ["page"] * (len(told) - 1)
        answers += 1
        assert answers <= 41
    held = device.held["7"]
    assert held.questions.keys() == {
        str(each.question_id) for each in found if each.last_answered_at is not None
    }
    assert held.version == max((each.version for each in found), default=0)
    for page in told:
        ProgressPage.model_validate_json(page)


@given(found=changes(), in_a_page=st.integers(1, 5))
def test_what_a_page_calls_complete_is_complete(
    found: list[ChangedQuestion], in_a_page: int
) -> None:
    missing = {(each.version, each.question_id) for each in found}
    for page in pages(7, None, StartsOver.FIRST, STATE, found, {}, in_a_page=in_a_page):
        told = json.loads(page)
        for each in told["questions"]:
            missing.discard((each["version"], int(each["question_id"])))
        missing = {each for each in missing if str(each[1]) not in told["forget"]}
        assert all(version > told["version"] or version == 0 for version, _ in missing)


def test_a_page_is_the_model_as_json() -> None:
    state = ReadState(Mark(EPOCH, 1_000), MONDAY, 4)
    found = [gone(5, 1), question(6, 17)]
    (page,) = pages(42, None, StartsOver.FIRST, state, found, {17: ["a", "b"]})
    model = ProgressPage.model_validate_json(page)
    assert json.loads(model.model_dump_json(exclude_none=True)) == {
        key: value for key, value in json.loads(page).items() if value is not None
    }
    assert model.forget == ("1",)
    assert model.questions[0].pub_ids == ("a", "b")
    assert model.questions[0].interval_days == 3
    assert model.erased_at == MONDAY


def test_nothing_new_is_a_page_that_says_so() -> None:
    cursor = str(Cursor(EPOCH, 42, 7))
    (page,) = pages(42, cursor, None, STATE, [], {})
    told = json.loads(page)
    assert (told["since"], told["cursor"], told["next"]) == (cursor, cursor, "nothing")
    assert "starts_over" not in told


@given(user_id=IDS, version=st.integers(0, 2**53 - 1), question_id=st.none() | IDS)
def test_a_cursor_is_read_as_it_was_written(
    user_id: int, version: int, question_id: int | None
) -> None:
    cursor = Cursor(EPOCH, user_id, version, question_id)
    assert Cursor.read(str(cursor)) == cursor
    assert len(str(cursor)) <= 128


@given(text=st.text(max_size=128))
def test_any_text_is_a_cursor_or_starts_over(text: str) -> None:
    position, why = start(text, 42, Mark(EPOCH, 9), 0)
    assert (why is None) == (Cursor.read(text) is not None)
    assert why is None or position == BEFORE_ALL


@pytest.mark.parametrize(
    ("cursor", "why"),
    [
        (None, StartsOver.FIRST),
        ("", StartsOver.UNKNOWN_CURSOR),
        ("12", StartsOver.UNKNOWN_CURSOR),
        (f"{EPOCH}.43.5", StartsOver.UNKNOWN_CURSOR),
        ("ba9876543210.42.5", StartsOver.ANOTHER_EPOCH),
        (f"{EPOCH}.42.10", StartsOver.AHEAD),
        (f"{EPOCH}.42.3", StartsOver.ERASED),
        (f"{EPOCH}.42.3.17", StartsOver.ERASED),
        (f"{EPOCH}.42.4", None),
        (f"{EPOCH}.42.9.17", None),
    ],
)
def test_where_a_viewer_starts(cursor: str | None, why: StartsOver | None) -> None:
    assert start(cursor, 42, Mark(EPOCH, 9), 4)[1] is why
