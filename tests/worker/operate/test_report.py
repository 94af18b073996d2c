"""The user's report: every number, computed by hand from a history, and the page."""

import asyncio
import json
import re
import stat
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from typer.testing import CliRunner

from schemas.words import Outcome, Pattern
from tests import factories
from worker.cli.main import app
from worker.domain.policy import Policy
from worker.errors import NoHistory
from worker.ingest.transaction import Ingest
from worker.operate.due import due
from worker.operate.report import page as pages
from worker.operate.report.gather import gather
from worker.operate.report.page import page
from worker.operate.report.picture import (
    DAYS,
    WEEKS,
    Picture,
    QuestionThen,
    picture,
    since,
)
from worker.operate.report.retold import Review
from worker.store.engine import transaction
from worker.store.operate import report as stored

NOW = datetime(2024, 3, 13, 12, 0, tzinfo=UTC)  # a Wednesday


def question(number: int, *, due: timedelta = timedelta(), **changed: Any) -> QuestionThen:
    """A question known since yesterday, due at `due` from now."""
    good = QuestionThen(
        question_id=number,
        pub_id=f"q-{number}",
        title=None,
        topic_id=1,
        topic_name="Verbs",
        attempts=3,
        lapses=0,
        last_outcome=Outcome.CORRECT,
        last_answered_at=NOW - timedelta(days=1),
        pattern=Pattern.KNOWN,
        stability=10.0,
        difficulty=5.0,
        due_at=NOW + due,
    )
    return replace(good, **changed)


def reviews(at: datetime, count: int, recalled: int, predicted: float = 0.8) -> list[Review]:
    return [Review(at, number < recalled, predicted) for number in range(count)]


def test_the_forecast_tells_what_is_overdue_apart_from_each_day() -> None:
    found = picture(
        1,
        [
            question(1, due=timedelta(days=-40)),
            question(2, due=timedelta(hours=-1)),  # from yesterday on
            question(3, due=timedelta(hours=11)),
            question(4, due=timedelta(hours=13)),
            question(5, due=timedelta(hours=24)),  # from tomorrow at 0:00 on
            question(6, due=timedelta(days=DAYS - 1, hours=12)),
            question(7, due=timedelta(days=DAYS, hours=12)),  # beyond
        ],
        [],
        NOW,
    )
    assert (found.overdue, found.due) == (2, 3)
    due = {day.day: day.due for day in found.forecast}
    assert len(due) == DAYS
    assert {day: count for day, count in due.items() if count} == {
        date(2024, 3, 13): 2,
        date(2024, 3, 14): 1,
        date(2024, 4, 11): 1,
    }


def test_retention_is_of_the_last_weeks_and_every_week_is_there() -> None:
    assert since(NOW) == datetime(2023, 12, 25, tzinfo=UTC)
    first, last = datetime(2023, 12, 25, tzinfo=UTC), datetime(2024, 3, 12, 8, tzinfo=UTC)
    before = first - timedelta(seconds=1)
    given = [*reviews(first, 4, 1), *reviews(last, 6, 6), *reviews(before, 9, 0)]
    found = picture(1, [question(1)], given, NOW)
    assert found.retention == 0.7
    assert found.predicted == pytest.approx(0.8)
    assert len(found.weeks) == WEEKS
    one, other = found.weeks[0], found.weeks[-1]
    assert (one.monday, one.reviews, one.recalled) == (date(2023, 12, 25), 4, 1)
    assert (other.monday, other.reviews, other.recalled) == (date(2024, 3, 11), 6, 6)
    assert other.predicted == pytest.approx(0.8)
    assert sum(week.reviews for week in found.weeks) == 10
    nothing = picture(1, [question(1)], [], NOW)
    assert (nothing.retention, nothing.predicted) == (None, None)


def test_topics_with_most_to_do_come_first_and_the_worst_leech_too() -> None:
    wrong: dict[str, Any] = {"last_outcome": Outcome.WRONG, "topic_id": 2, "topic_name": ""}
    found = picture(
        1,
        [
            question(1, due=timedelta(days=5), pattern=Pattern.MASTERED),
            question(2, due=timedelta(days=5)),
            question(3, pattern=Pattern.LEECH, lapses=4, **wrong),
            question(4, pattern=Pattern.LEECH, lapses=7, pub_id=None, **wrong),
            question(5, pattern=Pattern.STUCK, lapses=0, attempts=30, **wrong),
        ],
        [],
        NOW,
    )
    two, one = found.topics
    assert (two.name, two.seen, two.known, two.mastered, two.due) == (
        "Topic 2",
        3,
        0,
        0,
        2,
    )  # one is not published
    assert (one.name, one.seen, one.known, one.mastered, one.due) == ("Verbs", 2, 2, 1, 0)
    assert [each.question_id for each in found.stubborn] == [4, 3, 5]
    assert found.patterns[Pattern.LEECH] == 2
    assert sum(found.patterns.values()) == found.questions == 5


async def test_the_rows_come_from_the_log(engine: AsyncEngine) -> None:
    one, two = await factories.publish(engine, 2, user_id=42)
    await factories.publish(engine, 1, user_id=43)
    days = [datetime(2024, 3, day, 9, tzinfo=UTC) for day in (4, 5, 6, 12)]
    ingest = Ingest(engine, Policy(21.0, 4, 10, 5))
    batches = [
        factories.batch(factories.right(one, days[0]), factories.wrong(two, days[0])),
        # Twice on one day is one review; unsure but right is a pass, unsure and wrong is none.
        factories.batch(
            factories.right(one, days[1]), factories.wrong(one, days[1] + timedelta(hours=1))
        ),
        factories.batch(factories.unsure(two, days[2], factories.RIGHT)),
        factories.batch(
            factories.unsure(one, days[3], factories.WRONG),
            factories.unsure(two, days[3], None),
        ),
    ]
    await ingest([factories.incoming(batch) for batch in batches])
    found = await gather(engine, Policy(), 42, NOW)
    assert (found.questions, found.attempts, found.known) == (2, 7, 0)
    assert [(week.reviews, week.recalled) for week in found.weeks[-2:]] == [(2, 2), (2, 0)]
    assert sum(week.reviews for week in found.weeks) == 4
    with pytest.raises(NoHistory, match="User 44 has no study history before 2024-03-13 12:00"):
        await gather(engine, Policy(), 44, NOW)


async def test_an_earlier_moment_knows_nothing_of_later_answers(engine: AsyncEngine) -> None:
    one, two = await factories.publish(engine, 2, user_id=42)
    first = datetime(2024, 3, 4, 9, tzinfo=UTC)
    second = first + timedelta(days=3)
    ingest = Ingest(engine, Policy())
    for batch in (
        factories.batch(factories.wrong(one, second), factories.wrong(two, second)),
        factories.batch(factories.right(one, first)),
    ):
        await ingest([factories.incoming(batch)])
    then = await gather(engine, Policy(), 42, second - timedelta(seconds=1))
    assert (then.questions, then.attempts, then.known, then.retention) == (1, 1, 1, None)
    assert then.patterns[Pattern.LEARNING] == 1
    now = await gather(engine, Policy(), 42, second)
    assert (now.questions, now.attempts, now.known, now.retention) == (2, 3, 0, 0.0)
    # 2.3065 days is the stability after a first correct answer, and three days have passed.
    assert now.predicted == pytest.approx(0.8809, abs=1e-4)
    assert now.patterns[Pattern.RELAPSED] == 1
    with pytest.raises(NoHistory):
        await gather(engine, Policy(), 42, first - timedelta(seconds=1))


async def test_its_figures_are_those_of_the_stored_progress(engine: AsyncEngine) -> None:
    """As `due` has them, although the report folds the answers by itself."""
    questions = await factories.publish(engine, 3, user_id=42)
    ingest = Ingest(engine, Policy())
    for day in (1, 2, 6):
        at = NOW - timedelta(days=30 - day)
        await ingest([factories.sent(*(factories.right(each, at) for each in questions[:day]))])
    found = await gather(engine, Policy(), 42, NOW)
    rows = await due(engine, 42, NOW)
    assert [(each.question_id, each.pub_id, each.recall, each.due_from) for each in found.next] == [
        (row.question_id, row.pub_ids[0], recall, row.due_from) for row, recall in rows
    ]
    assert found.due == len(rows) == 3


async def test_titles_stand_where_content_has_them_and_withdrawn_questions_are_not_due(
    engine: AsyncEngine,
) -> None:
    titled, untitled, withdrawn = await factories.publish(engine, 3, user_id=42)
    await factories.execute(
        engine,
        "INSERT INTO study_question_texts (study_question_id, title)"
        f" VALUES ({titled.question_id}, 'What is <b>bold</b>?')",
    )
    at = NOW - timedelta(days=30)
    answers = [factories.wrong(each, at) for each in (titled, untitled, withdrawn)]
    await Ingest(engine, Policy())([factories.sent(*answers)])
    await factories.execute(
        engine, f"UPDATE published SET deleted = true WHERE pub_id = '{withdrawn.pub_id}'"
    )
    found = await gather(engine, Policy(), 42, NOW)
    assert (found.questions, found.due, found.unpublished) == (3, 2, 1)
    assert sum(topic.due for topic in found.topics) == 2
    words = Page(page(found)).words
    assert "What is <b>bold</b>?" in words
    assert titled.pub_id not in words
    assert untitled.pub_id in words
    assert withdrawn.pub_id not in words
    assert "1 question of them is no longer published, and never due." in words


class Page(HTMLParser):
    """What a reader of the page, and a browser, would find in it."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def some() -> Picture:
    hostile = '<script>alert("x")</script>&amp;\u202e'
    return picture(
        42,
        [
            question(
                1, topic_name=hostile, pattern=Pattern.LEECH, lapses=9, pub_id='"><img src=x>'
            ),
            question(2, due=timedelta(days=3), topic_id=2),
        ],
        reviews(NOW - timedelta(days=1), 10, 9),
        NOW,
    )


async def test_the_names_of_many_questions_take_one_pass_over_all_publications(
    engine: AsyncEngine,
) -> None:
    """The table is the application's, without an index by question."""
    questions = await factories.publish(engine, 60)
    await factories.execute(
        engine,
        "INSERT INTO published (pub_id, kind, source_id)"
        " SELECT 'z' || n, 'question', n FROM generate_series(1, 5000) AS n",
    )
    await Ingest(engine, Policy())([factories.sent(*(factories.right(each) for each in questions))])
    await factories.execute(engine, "SELECT pg_stat_force_next_flush()")
    scans = "SELECT seq_scan AS n FROM pg_stat_user_tables WHERE relname = 'published'"
    (before,) = await factories.rows(engine, scans)
    async with transaction(engine) as connection:
        ids = [each.question_id for each in questions]
        found = await stored.names(connection, 1, ids)
        await connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    assert {found[each.question_id].pub_id for each in questions} == {
        each.pub_id for each in questions
    }
    (after,) = await factories.rows(engine, scans)
    assert after["n"] - before["n"] <= 1


def test_the_page_loads_nothing_and_runs_nothing(some: Picture) -> None:
    found = Page(page(some))
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "img", "link", "iframe", "form"})
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert not [attrs for _, attrs in found.tags if {"src", "href", "srcset"} & attrs.keys()]
    assert "url(" not in page(some)
    assert '<script>alert("x")</script>' in found.words
    assert '"><img src=x>' in found.words


def test_every_chart_says_what_it_shows_and_gives_its_numbers(some: Picture) -> None:
    html = page(some)
    found = Page(html)
    charts = [attrs for tag, attrs in found.tags if tag == "svg"]
    assert charts
    for attrs in charts:
        assert attrs.get("aria-hidden") == "true" or (
            attrs["role"] == "img" and len(attrs["aria-label"] or "") > 10
        )
    assert html.count("<figure>") == html.count("<details>") == 2
    assert all(attrs.get("scope") for tag, attrs in found.tags if tag == "th")
    assert ("html", {"lang": "en"}) in found.tags
    for svg in re.findall(r"<svg.*?</svg>", html):
        ElementTree.fromstring(svg)


def test_a_first_day_has_a_page_too() -> None:
    html = page(picture(1, [question(1, attempts=1)], [], NOW))
    assert "1 answer to 1 question." in html
    assert "No review in the last" in html
    assert "No question is a leech or stuck." in html


def test_what_is_due_now_is_all_in_the_chart(some: Picture) -> None:
    """Also what was due before today, which no day of the forecast has."""
    due = [
        *(question(n, due=timedelta(days=-n)) for n in range(1, 23)),
        *(question(30 + n, due=timedelta(hours=12, minutes=-n)) for n in range(9)),
        question(50, due=timedelta(days=3)),
    ]
    html = page(picture(1, due, [], NOW))
    assert "<dt>Due now</dt><dd>31<span>22 of them overdue</span></dd>" in html
    assert "22 questions overdue, and 10 more coming due within 30 days, 9 of them today." in html
    (chart,) = re.findall(r"What is due.*?<figure>(.*?)</figure>", html)
    assert chart.count("<rect") == 3  # what is overdue, today, and the day after the day after
    assert ">overdue<" in chart
    assert "<td>22</td>" in html.partition("What is due")[2].partition("</details>")[0]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        # Fourteen answers, the first wrong, a run of eight: by no means new.
        ({"attempts": 14, "pattern": Pattern.LEARNING}, "not settled yet"),
        ({"attempts": 1, "pattern": Pattern.LEARNING}, "not settled yet"),
        ({"attempts": 1, "pattern": Pattern.RELAPSED}, "right before, but not the last time"),
        ({"attempts": 2, "pattern": Pattern.KNOWN}, "right every time"),
    ],
)
def test_the_word_for_a_pattern_is_true_of_every_question_that_has_it(
    changed: dict[str, Any], expected: str
) -> None:
    html = page(picture(1, [question(1, **changed)], [], NOW))
    assert f">{expected}</span>" in html
    assert not re.search(r"\b(still )?new\b", html.partition("Patterns")[2])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([(100, 79)], "chance alone explains such a difference"),
        ([(1_000, 900)], "this one remembers more"),
        ([(1_000, 700)], "this one forgets more"),
        ([(1, 0)], "chance alone explains such a difference"),
    ],
)
def test_one_sentence_says_why_prediction_and_measurement_differ(
    given: list[tuple[int, int]], said: str
) -> None:
    its: Iterable[Review] = [
        review for count, recalled in given for review in reviews(NOW, count, recalled)
    ]
    words = Page(page(picture(1, [question(1)], its, NOW))).words
    assert said in words
    assert sum(each in words for each in ("chance alone", "remembers more", "forgets more")) == 1


def test_what_to_review_next_is_the_most_forgotten_of_what_is_due() -> None:
    found = picture(
        1,
        [
            question(1, stability=9.0),
            question(2, stability=2.0, title="Which verb?"),
            question(3, stability=1.0, pub_id=None),
            question(4, stability=1.0, due=timedelta(days=2)),
            question(5, stability=5.0, due=timedelta(days=-3)),
        ],
        [],
        NOW,
    )
    assert [each.question_id for each in found.next] == [2, 5, 1]
    assert [each.overdue_days for each in found.next] == [0, 3, 0]
    html = page(found)
    assert html.index("Which verb?") < html.index("q-5") < html.index(">q-1<")
    assert "3 days overdue" in html
    assert "Nothing is due." in page(picture(1, [question(1, due=timedelta(9))], [], NOW))


def _luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_words_and_shapes_stand_out_in_light_and_dark() -> None:
    """WCAG 2.1: 4.5 to 1 for words, 3 to 1 for shapes that carry a number of their own."""
    light, dark = re.findall(r":root \{(.*?)\}", pages.STYLE, re.DOTALL)[:2]
    for theme in (light, dark):
        colors = dict(re.findall(r"--(\w+): (#\w{6})", theme))

        def contrast(one: str, other: str, colors: dict[str, str] = colors) -> float:
            high, low = sorted((_luminance(colors[one]), _luminance(colors[other])))[::-1]
            return (high + 0.05) / (low + 0.05)

        for word in ("ink", "soft"):
            assert contrast(word, "paper") >= 4.5
            assert contrast(word, "card") >= 4.5
        for shape in ("bar", "accent", "good"):
            assert contrast(shape, "card") >= 3


async def test_the_command_writes_a_page_that_only_its_owner_reads(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (asked,) = await factories.publish(engine, 1, user_id=42)
    ingest = Ingest(engine, Policy(21.0, 4, 10, 5))
    await ingest([factories.sent(factories.right(asked))])
    monkeypatch.setenv("INGEST_DATABASE_URL", database_url)
    monkeypatch.setenv("INGEST_AMQP_URL", "amqp://unused")
    path = tmp_path / "report.html"

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["report", *words])

    written, told, nobody = await asyncio.to_thread(
        lambda: (
            run("--user", "42", "--html", str(path)),
            run("--user", "42", "--json"),
            run("--user", "7"),
        )
    )
    past, odd = await asyncio.to_thread(
        lambda: (
            run("--user", "42", "--json", "--at", "2100-01-01T00:00"),
            run("--user", "42", "--at", "9999-12-31T23:59"),
        )
    )
    later = json.loads(past.stdout)
    assert (later["at"], later["due"]) == ("2100-01-01T00:00:00+00:00", 1)
    assert [each["pub_id"] for each in later["next"]] == [asked.pub_id]
    assert odd.exit_code == 2
    assert "from 1970 to 8999" in odd.output
    assert written.exit_code == 0, written.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert asked.pub_id in path.read_text(encoding="utf-8")
    found = json.loads(told.stdout)
    assert (found["user_id"], found["questions"], found["topics"][0]["known"]) == (42, 1, 1)
    assert datetime.fromisoformat(found["made_at"]).tzinfo is not None
    assert str(nobody.exception).startswith("User 7 has no study history before ")
