"""The user's report: every number, computed by hand from a history, and the page."""

import asyncio
import json
import re
import stat
import xml.etree.ElementTree as ElementTree
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
from worker.ingest.transaction import Ingest
from worker.operate.report import page as pages
from worker.operate.report.page import page
from worker.operate.report.picture import DAYS, WEEKS, Picture, picture, since
from worker.store.engine import transaction
from worker.store.operate import report as stored
from worker.store.operate.report import QuestionNow, Week

NOW = datetime(2024, 3, 13, 12, 0, tzinfo=UTC)  # a Wednesday


def question(number: int, *, due: timedelta = timedelta(), **changed: Any) -> QuestionNow:
    """A question known since yesterday, due at `due` from now."""
    good = QuestionNow(
        question_id=number,
        pub_id=f"q-{number}",
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
    return good._replace(**changed)


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
    weeks = [Week(date(2023, 12, 25), 4, 1), Week(date(2024, 3, 11), 6, 6)]
    found = picture(1, [question(1)], weeks, NOW)
    assert found.retention == 0.7
    assert [week.monday for week in found.weeks][:: WEEKS - 1] == [weeks[0].monday, weeks[1].monday]
    assert sum(week.reviews for week in found.weeks) == 10
    assert picture(1, [question(1)], [], NOW).retention is None


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
    assert (two.name, two.seen, two.known, two.mastered, two.due) == ("Topic 2", 3, 0, 0, 3)
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
    async with transaction(engine) as connection:
        questions = await stored.questions(connection, 42)
        weeks = await stored.weeks(connection, 42, since(NOW))
        nobody = await stored.questions(connection, 44)
    assert [each.pub_id for each in questions] == [one.pub_id, two.pub_id]
    assert weeks == [Week(date(2024, 3, 4), 2, 2), Week(date(2024, 3, 11), 2, 0)]
    assert nobody == []


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
        [Week(date(2024, 3, 11), 10, 9)],
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
        found = await stored.questions(connection, 1)
        await connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    assert [each.pub_id for each in found] == [each.pub_id for each in questions]
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
    assert "<dt>Due now</dt><dd>31 (22 overdue)</dd>" in html
    assert "22 questions overdue, and 10 more coming due within 30 days, 9 of them today." in html
    (chart,) = re.findall(r"What is due.*?<figure>(.*?)</figure>", html)
    assert chart.count("<rect") == 3  # what is overdue, today, and the day after the day after
    assert ">before today<" in chart
    assert "<td>22</td>" in html.partition("What is due")[2].partition("</details>")[0]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        # Fourteen answers, the first wrong, a run of eight: by no means new.
        ({"attempts": 14, "pattern": Pattern.LEARNING}, "being learned"),
        ({"attempts": 1, "pattern": Pattern.LEARNING}, "being learned"),
        ({"attempts": 1, "pattern": Pattern.RELAPSED}, "known before, but not the last time"),
        ({"attempts": 2, "pattern": Pattern.KNOWN}, "right every time"),
    ],
)
def test_the_word_for_a_pattern_is_true_of_every_question_that_has_it(
    changed: dict[str, Any], expected: str
) -> None:
    html = page(picture(1, [question(1, **changed)], [], NOW))
    assert f">{expected}</span>" in html
    assert not re.search(r"\b(still )?new\b", html.partition("Patterns")[2])


def _luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_words_and_shapes_stand_out_in_light_and_dark() -> None:
    """WCAG 2.1: 4.5 to 1 for words, 3 to 1 for shapes that carry a number of their own."""
    light, dark = re.findall(r":root \{(.*?)\}", pages._STYLE, re.DOTALL)[:2]
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
    assert written.exit_code == 0, written.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert asked.pub_id not in path.read_text(encoding="utf-8"), "only stubborn questions are named"
    found = json.loads(told.stdout)
    assert (found["user_id"], found["questions"], found["topics"][0]["known"]) == (42, 1, 1)
    assert datetime.fromisoformat(found["made_at"]).tzinfo is not None
    assert str(nobody.exception) == "User 7 has no study history."
