"""The report as one HTML page without external files or scripts, in light and dark, for any width.

Every name in it is somebody else's text, and is escaped. Everything that it shows as a color or a
length is also in the text.
"""

from datetime import date
from html import escape
from pathlib import Path
from typing import Final

from schemas.words import Pattern
from worker.operate.report.charts import columns, numbers, shares, stacked, table
from worker.operate.report.picture import Picture, Topic

_TARGET: Final = 0.9
"""The retention that the schedule aims at."""

_STYLE: Final = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")

_MEANING: Final = {
    Pattern.MASTERED: "right three times on three days, and stable for weeks",
    Pattern.LEECH: "forgotten four times or more",
    Pattern.STUCK: "tried often, and never known for long",
    Pattern.RELAPSED: "known before, but not the last time",
    Pattern.RECOVERING: "forgotten before, right again",
    Pattern.HESITANT: "often unsure",
    Pattern.KNOWN: "right every time",
    Pattern.LEARNING: "being learned",
}


def page(picture: Picture) -> str:
    """The whole page."""
    body = "".join(
        (
            _head(picture),
            _figures(picture),
            _mastery(picture),
            _forecast(picture),
            _retention(picture),
            _patterns(picture),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="referrer" content="no-referrer">'
        f"<title>Study report for user {picture.user_id}</title>"
        f"<style>{_STYLE}</style></head><body><main>{body}"
        "<footer>Days are UTC days. Predictions are the scheduler's (FSRS-6): the chance that an"
        " answer would be right if it were asked for now.</footer></main></body></html>\n"
    )


def _head(picture: Picture) -> str:
    made = f"{_day(picture.made_at.date())} {picture.made_at.year}, {picture.made_at:%H:%M} UTC"
    return (
        f"<h1>Study report for user {picture.user_id}</h1>"
        f'<p class="soft">As of {made}: {_count(picture.attempts, "answer")} to'
        f" {_count(picture.questions, 'question')}.</p>"
    )


def _figures(picture: Picture) -> str:
    figures = (
        ("Known", f"{_percent(picture.known / picture.questions)}"),
        (
            "Due now",
            f"{picture.due} ({picture.overdue} overdue)" if picture.overdue else f"{picture.due}",
        ),
        ("Would be recalled now", _percent(picture.recall)),
        (
            "Recalled in reviews",
            "none yet" if picture.retention is None else _percent(picture.retention),
        ),
    )
    return (
        '<dl class="figures">'
        + "".join(f"<div><dt>{what}</dt><dd>{value}</dd></div>" for what, value in figures)
        + "</dl>"
    )


def _mastery(picture: Picture) -> str:
    key = "".join(
        f'<li><svg aria-hidden="true"><rect class="{name}" width="100%" height="100%"/></svg>'
        f"{word}</li>"
        for name, word in (("mastered", "mastered"), ("known", "known"), ("open", "not known"))
    )
    return _section(
        "Mastery by topic",
        "The share of each topic that is known. The topics with the most questions due come first.",
        f'<ul class="key">{key}</ul>' + "".join(map(_topic, picture.topics)),
    )


def _topic(topic: Topic) -> str:
    known, rest = topic.known - topic.mastered, topic.seen - topic.known
    said = (
        f"{topic.mastered} mastered, {known} known and {rest} not known"
        f" of {_count(topic.seen, 'question')}"
    )
    bar = stacked((("mastered", topic.mastered), ("known", known), ("open", rest)), said)
    return (
        f'<div class="topic"><h3>{escape(topic.name)}</h3>{bar}<p>{said}; {topic.due} due;'
        f" {_percent(topic.recall)} would be recalled now.</p></div>"
    )


def _forecast(picture: Picture) -> str:
    days = picture.forecast
    counts = [day.due for day in days]
    columns_shown = [picture.overdue, *counts]
    said = (
        f"{_count(picture.overdue, 'question')} overdue, and {sum(counts)} more coming due within"
        f" {len(days)} days, {counts[0]} of them today."
    )
    middle = days[len(days) // 2].day
    return _section(
        "What is due",
        said,
        f'<figure><div class="top">{max([*columns_shown, 1])}</div>{columns(columns_shown, said)}'
        f"{_axis('before today', _day(middle), _day(days[-1].day))}</figure>"
        + numbers(
            ("Day", "Due"),
            [("before", picture.overdue), *((_day(day.day), day.due) for day in days if day.due)],
        ),
    )


def _retention(picture: Picture) -> str:
    weeks = picture.weeks
    values = [week.recalled / week.reviews if week.reviews else None for week in weeks]
    if picture.retention is None:
        return _section(
            "Retention",
            f"No review in the last {len(weeks)} weeks: a review is an answer a day or more after"
            " the one before.",
            "",
        )
    reviews = sum(week.reviews for week in weeks)
    said = (
        f"{_percent(picture.retention)} of {_count(reviews, 'review')} in the last"
        f" {len(weeks)} weeks were recalled; the dashed line is the {_percent(_TARGET)} that the"
        " schedule aims at."
    )
    return _section(
        "Retention",
        said,
        f'<figure><div class="top">100 %</div>{shares(values, _TARGET, said)}'
        f"{_axis(_day(weeks[0].monday), 'by week', _day(weeks[-1].monday))}</figure>"
        + numbers(
            ("Week from", "Reviews", "Recalled"),
            [
                (_day(week.monday), week.reviews, _percent(week.recalled / week.reviews))
                for week in weeks
                if week.reviews
            ],
        ),
    )


def _patterns(picture: Picture) -> str:
    most = max(picture.patterns.values())
    rows = "".join(
        f"<dt>{pattern.value}</dt><dd>"
        f"{stacked((('bar', count), ('none', most - count)), _MEANING[pattern])}"
        f'<span class="top">{_MEANING[pattern]}</span></dd><dd>{count}</dd>'
        for pattern, count in picture.patterns.items()
        if count
    )
    stubborn = "<p>No question is a leech or stuck.</p>"
    if picture.stubborn:
        stubborn = (
            "<h2>The most difficult</h2><p>Asking these again does not help. Study the material"
            ' again, or rewrite the questions.</p><div class="scroll" tabindex="0" role="region"'
            ' aria-label="The most difficult questions">'
            + table(
                ("Question", "Topic", "Pattern", "Forgotten", "Answers", "Due"),
                [
                    (
                        each.pub_id or f"no. {each.question_id}",
                        each.topic,
                        each.pattern.value,
                        each.lapses,
                        each.attempts,
                        _day(each.due_from.date()),
                    )
                    for each in picture.stubborn
                ],
            )
            + "</div>"
        )
    return _section(
        "Patterns",
        "The number of questions with each pattern.",
        f'<dl class="patterns">{rows}</dl>{stubborn}',
    )


def _section(title: str, said: str, inside: str) -> str:
    return f'<section><h2>{title}</h2><p class="soft">{said}</p>{inside}</section>'


def _axis(*words: str) -> str:
    spans = "".join(f"<span>{word}</span>" for word in words)
    return f'<div class="axis" aria-hidden="true">{spans}</div>'


def _day(day: date) -> str:
    return f"{day.day} {day:%b}"


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", "\u00a0%")


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
