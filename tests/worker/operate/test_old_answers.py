"""Answers from before: they count like all others, once, and cause nothing else."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.attempt_batch import Attempt
from tests import factories as make
from tests.database_fixtures import THEIRS
from tests.factories import RIGHT, WRONG, Published, batch, incoming, right, sent, wrong
from tests.worker.operate.commands import invoke
from tests.worker.operate.conftest import Site
from tests.worker.operate.test_answers import one
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.operate.erase import erase, survey
from worker.operate.repair import verify
from worker.store.audit import By

pytestmark = pytest.mark.broker

LONG_AGO = datetime(2024, 5, 1, 9, tzinfo=UTC)
DAY = timedelta(days=1)
STRICT = {"INGEST_REQUIRE_USER_ID": "true"}
"""A viewer without a grant may then write for nobody."""


def line(question: Published | str, day: float, choice: int | None = RIGHT, **more: Any) -> Any:
    """One answer of user 7."""
    pub_id = question if isinstance(question, str) else question.pub_id
    at = (LONG_AGO + day * DAY).isoformat()
    return {"user_id": 7, "pub_id": pub_id, "selected_choice": choice, "answered_at": at} | more


async def brought_in(
    site: Site, folder: Path, *lines: dict[str, Any], words: Sequence[str] = (), code: int = 0
) -> dict[str, Any]:
    file = folder / "old.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    result = await invoke(site, "answers", "import", str(file), "--json", *words, **STRICT)
    assert result.exit_code == code, result.output
    return one("answers import", result.stdout)


async def refusal(site: Site, folder: Path, *lines: dict[str, Any]) -> str:
    """What the command says about lines that are not valid."""
    file = folder / "bad.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    result = await invoke(site, "answers", "import", str(file))
    assert await make.count(site.engine, "ingest_inbox") == 0
    return str(result.exception)


async def folded(engine: AsyncEngine) -> dict[Any, Any]:
    """All progress, without the columns that tell when a row was written."""
    return {
        (key[0], row["study_question_id"]): (
            row["attempts_count"],
            row["pattern"],
            row["stability"],
            row["due_at"],
            row["last_answered_at"],
        )
        for key, row in (await make.progress(engine)).items()
    }


@pytest.mark.parametrize("content", ["content-is-ours", THEIRS], indirect=True)
@pytest.mark.parametrize("owner", [7, None])
async def test_they_count_as_if_they_had_been_sent_then(
    site: Site, other_engine: AsyncEngine, tmp_path: Path, owner: int | None
) -> None:
    some = await make.publish(site.engine, 2, user_id=owner)
    theirs = await make.publish(other_engine, 2, user_id=7)
    assert [each.question_id for each in some] == [each.question_id for each in theirs]
    days = [0, 2, 2.01, 9, 40]
    said = await brought_in(
        site,
        tmp_path,
        *[line(each, day, WRONG if day == 2 else RIGHT) for day in days for each in some],
    )
    assert (said["answers"], said["users"], said["sessions"], said["added"]) == (10, 1, 4, 4)

    def sent_on(day: float, each: Published) -> Attempt:
        return (wrong if day == 2 else right)(each, LONG_AGO + day * DAY)

    for day in days:
        await Ingest(other_engine, Policy())([sent(*[sent_on(day, each) for each in theirs])])
    assert await folded(site.engine) == await folded(other_engine)
    assert await make.outbox(site.engine) == []


async def test_brought_in_again_they_change_nothing(site: Site, tmp_path: Path) -> None:
    some = await make.publish(site.engine, 2, user_id=7)
    lines = [line(each, day, session=f"s{day}") for day in (0, 1, 2) for each in some]
    before = await brought_in(site, tmp_path, *lines)
    progress = await make.progress(site.engine)
    again = await brought_in(site, tmp_path, *lines)
    assert (before["added"], before["known"]) == (3, 0)
    assert (again["added"], again["known"]) == (0, 3)
    assert await make.progress(site.engine) == progress


async def test_an_interrupted_import_goes_on_where_it_was(site: Site, tmp_path: Path) -> None:
    (question,) = await make.publish(site.engine, 1, user_id=7)
    lines = [line(question, day) for day in range(5)]
    await brought_in(site, tmp_path, *lines[:2])
    said = await brought_in(site, tmp_path, *lines)
    assert (said["added"], said["known"]) == (3, 2)
    assert await verify(site.engine, 7, Policy()) == []


async def test_they_land_before_what_was_answered_since(site: Site, tmp_path: Path) -> None:
    (question,) = await make.publish(site.engine, 1, user_id=7)
    live = incoming(batch(right(question, LONG_AGO + 100 * DAY)))
    await Ingest(site.engine, Policy())([live])
    await brought_in(site, tmp_path, *[line(question, day) for day in (0, 3, 20)])
    ((_, row),) = (await make.progress(site.engine)).items()
    assert (row["attempts_count"], row["last_answered_at"]) == (4, LONG_AGO + 100 * DAY)
    assert await verify(site.engine, 7, Policy()) == []


async def test_they_cause_no_job_and_neither_does_the_same_question_later(
    site: Site, tmp_path: Path
) -> None:
    known, new = await make.publish(site.engine, 2, user_id=7)
    await brought_in(site, tmp_path, *[line(known, day, WRONG) for day in range(12)])
    assert await make.outbox(site.engine) == []
    await Ingest(site.engine, Policy())([sent(wrong(known, LONG_AGO + 50 * DAY))])
    kinds = [each["routing_key"] for each in await make.outbox(site.engine)]
    assert "explanation.requested" not in kinds
    await Ingest(site.engine, Policy())([sent(wrong(new, LONG_AGO + 50 * DAY))])
    kinds = [each["routing_key"] for each in await make.outbox(site.engine)]
    assert kinds.count("explanation.requested") == 1


async def test_a_session_that_is_also_sent_by_the_outbox_counts_once(
    site: Site, tmp_path: Path
) -> None:
    (question,) = await make.publish(site.engine, 1, user_id=7)
    uuid = uuid4()
    await Ingest(site.engine, Policy())([sent(right(question, LONG_AGO), uuid=uuid)])
    said = await brought_in(site, tmp_path, line(question, 0, session=str(uuid)))
    assert (said["added"], said["known"]) == (0, 1)


@pytest.mark.parametrize("name", ["lesson 1", str(UUID(int=0)), "f" * 32, "2024-05-01"])
async def test_any_other_name_of_a_session_becomes_a_uuid_of_its_user(
    site: Site, tmp_path: Path, name: str
) -> None:
    (question,) = await make.publish(site.engine, 1, user_id=None)
    lines = [line(question, 0, session=name), line(question, 0, session=name, user_id=8)]
    said = await brought_in(site, tmp_path, *lines, line(question, 0, user_id=9))
    assert said["added"] == 3


async def test_more_answers_than_a_batch_may_have_become_several(
    site: Site, tmp_path: Path
) -> None:
    (question,) = await make.publish(site.engine, 1, user_id=7)
    lines = [line(question, n / 10_000, session=str(uuid4()), is_unsure=True) for n in range(1)]
    lines *= 2_500
    said = await brought_in(site, tmp_path, *lines)
    assert (said["sessions"], said["added"]) == (3, 3)
    assert await make.count(site.engine, "study_question_attempts") == 2_500


async def test_what_is_not_published_is_left_out_and_told(site: Site, tmp_path: Path) -> None:
    good, withdrawn, deleted = await make.publish(site.engine, 3, user_id=7)
    await make.withdraw(site.engine, withdrawn)
    await make.delete_question(site.engine, deleted)
    lines = [
        *[line(each, 0) for each in (good, withdrawn, deleted, "nowhere")],
        *[line(each, 1) for each in (withdrawn, "nowhere")],
    ]
    rehearsed = await brought_in(site, tmp_path, *lines, words=["--dry-run"])
    assert await make.count(site.engine, "ingest_inbox") == 0
    said = await brought_in(site, tmp_path, *lines)
    left_out = {"withdrawn": 2, "question_deleted": 1, "unknown_publication": 2}
    assert rehearsed["left_out"] == said["left_out"] == left_out
    assert (said["added"], said["empty"]) == (1, 1)
    assert await make.count(site.engine, "ingest_dead_letters") == 0


async def test_a_session_that_has_changed_is_refused_and_named(site: Site, tmp_path: Path) -> None:
    some = await make.publish(site.engine, 2, user_id=7)
    (foreign,) = await make.publish(site.engine, 1, user_id=8)
    await brought_in(site, tmp_path, line(some[0], 0))
    said = await brought_in(
        site, tmp_path, *[line(each, 0) for each in some], line(foreign, 1), code=1
    )
    assert [(each["line"], each["reason"]) for each in said["refused"]] == [
        (1, "uuid_reused"),
        (3, "mixed_principals"),
    ]
    assert "The file names user 7" in said["refused"][1]["detail"]
    assert await make.count(site.engine, "study_question_attempts") == 1
    assert await make.count(site.engine, "ingest_dead_letters") == 0
    plain = await invoke(site, "answers", "import", str(tmp_path / "old.jsonl"))
    assert "Refused, from line 3: mixed_principals" in plain.stdout


async def test_the_answers_of_an_erased_user_stay_erased(site: Site, tmp_path: Path) -> None:
    (question,) = await make.publish(site.engine, 1, user_id=None)
    lines = [line(question, 0), line(question, 0, user_id=8)]
    await brought_in(site, tmp_path, *lines)
    found = await survey(site.engine, 7, lambda done, total: None)
    await erase(site.engine, 7, found, By("tests", ""))
    await brought_in(site, tmp_path, *lines, line(question, 1))
    assert {user for user, _ in await make.progress(site.engine)} == {8}


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"answered_at": "yesterday"}, "Line 2: answered_at is 'yesterday', which is no time"),
        ({"selected_choice": None}, "Line 2: a line needs either selected_choice or is_unsure"),
        ({"user_id": "7"}, "Line 2: user_id is '7'"),
        ({"pub_id": ""}, "Line 2: pub_id is ''"),
        ({"duration_ms": -1}, "Line 2: duration_ms is -1"),
        ({"answer": 1}, "Line 2 has the unknown field 'answer'"),
    ],
)
async def test_one_line_that_is_not_valid_stops_all(
    site: Site, tmp_path: Path, fields: dict[str, Any], found: str
) -> None:
    (question,) = await make.publish(site.engine, 1, user_id=7)
    good = line(question, 0)
    assert (await refusal(site, tmp_path, good, good | fields)).startswith(found)


async def test_lines_of_a_session_that_are_apart_stop_all(site: Site, tmp_path: Path) -> None:
    (question,) = await make.publish(site.engine, 1, user_id=7)
    said = await refusal(site, tmp_path, *[line(question, day) for day in (0, 1, 0)])
    assert said.startswith("Line 3 continues the session that begins on line 1, after others")


async def test_a_file_without_answers_or_without_a_file_is_one_sentence(
    site: Site, tmp_path: Path
) -> None:
    assert await refusal(site, tmp_path) == "The file has no answers."
    result = await invoke(site, "answers", "import", str(tmp_path / "none.csv"))
    assert "none.csv can't be read: No such file or directory." in str(result.exception)


async def test_a_csv_as_databases_write_it_is_read(site: Site, tmp_path: Path) -> None:
    some = await make.publish(site.engine, 2, user_id=7)
    file = tmp_path / "old.csv"
    file.write_text(
        "user_id,pub_id,selected_choice,is_unsure,answered_at,session\n"
        f"7,{some[0].pub_id},{RIGHT},f,2024-05-01 09:00:00+02,s1\n"
        f"7,{some[1].pub_id},,t,2024-05-01 09:00:09.123456+02,s1\n"
    )
    result = await invoke(site, "answers", "import", str(file))
    assert "Added 1 sessions. 0 were already there" in result.stdout, result.output
    outcomes = await make.rows(
        site.engine, "SELECT outcome, utc_offset FROM study_question_attempts ORDER BY position"
    )
    assert [row["outcome"] for row in outcomes] == ["correct", "unsure"]


async def test_a_time_that_cannot_be_true_is_counted(site: Site, tmp_path: Path) -> None:
    (question,) = await make.publish(site.engine, 1, user_id=7)
    said = await brought_in(site, tmp_path, line(question, -20_000), line(question, 0))
    assert said["replaced_times"] == 1
