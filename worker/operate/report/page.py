"""The report as one HTML page without external files or scripts, in light and dark, for any width.

Every name in it is somebody else's text, and is escaped. Everything that it shows as a color or a
length is also in the text.
"""

from collections.abc import Iterable, Sequence
from datetime import date
from html import escape
from math import sqrt
from pathlib import Path
from typing import Final

from schemas.words import Pattern
from worker.operate.report.charts import columns, numbers, shares, stacked
from worker.operate.report.picture import Next, Picture, Recall, Stubborn, Topic

_TARGET: Final = 0.9
"""The retention that the schedule aims at."""

_FEW: Final = 30
"""With fewer reviews, any difference may be chance."""

STYLE: Final = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")

_MEANING: Final = {
    Pattern.MASTERED: "right three times on three days, and stable for weeks",
    Pattern.LEECH: "forgotten again and again",
    Pattern.STUCK: "tried often, and never right three times in a row",
    Pattern.RELAPSED: "right before, but not the last time",
    Pattern.RECOVERING: "forgotten before, right again",
    Pattern.HESITANT: "unsure in two or more of the last four answers",
    Pattern.KNOWN: "right every time",
    Pattern.LEARNING: "not settled yet",
}


def page(picture: Picture, *, stylesheet: str | None = None) -> str:
    """The whole page, with its style in it or, for a server, in the `stylesheet` at this address.

    A server says itself in a header what the page may load.
    """
    body = "".join(
        (
            _head(picture),
            _figures(picture),
            _next(picture),
            _forecast(picture),
            _mastery(picture),
            _recall(picture),
            _patterns(picture),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>Study report for user {picture.user_id}</title>"
        f"{_style(stylesheet)}</head><body><main>{body}"
        "<footer>Days are UTC days. A question is due from 12 hours before the moment that the"
        " schedule gives it, and overdue from the next day on. Predictions are the scheduler's"
        " (FSRS-6): the chance that an answer would be right at that moment.</footer>"
        "</main></body></html>\n"
    )


def _style(stylesheet: str | None) -> str:
    if stylesheet is not None:
        return f'<link rel="stylesheet" href="{escape(stylesheet)}">'
    return (
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{STYLE}</style>"
    )


def _head(picture: Picture) -> str:
    at = f"{_day(picture.at.date())} {picture.at.year}, {picture.at:%H:%M} UTC"
    gone = ""
    if picture.unpublished:
        gone = (
            f" {_count(picture.unpublished, 'question')} of them"
            f" {'is' if picture.unpublished == 1 else 'are'} no longer published, and never due."
        )
    return (
        f"<h1>Study report for user {picture.user_id}</h1>"
        f'<p class="soft">As of {at}: {_count(picture.attempts, "answer")} to'
        f" {_count(picture.questions, 'question')}.{gone}</p>"
    )


def _figures(picture: Picture) -> str:
    measured = "no review yet"
    if picture.retention is not None and picture.predicted is not None:
        measured = (
            f"{_percent(picture.retention)}<span>predicted: {_percent(picture.predicted)}</span>"
        )
    late = f"<span>{picture.overdue:,} of them overdue</span>" if picture.overdue else ""
    figures = (
        ("Right the last time", _percent(picture.known / picture.questions)),
        ("Due now", f"{picture.due:,}{late}"),
        ("Recalled in reviews", measured),
        ("Would be recalled now", f"{_percent(picture.recall)}<span>of all questions</span>"),
    )
    return (
        '<dl class="figures">'
        + "".join(f"<div><dt>{what}</dt><dd>{value}</dd></div>" for what, value in figures)
        + "</dl>"
    )


def _next(picture: Picture) -> str:
    if not picture.next:
        return _section("Review these next", "Nothing is due.", "")
    said = "The due questions that are most likely forgotten come first."
    if (rest := picture.due - len(picture.next)) > 0:
        said += f" {_count(rest, 'more question')} {'is' if rest == 1 else 'are'} due after these."
    return _section(
        "Review these next",
        said,
        _listed(
            (
                _name(each),
                f"{_percent(each.recall)} likely recalled",
                f"{_count(each.overdue_days, 'day')} overdue" if each.overdue_days else "due today",
                each.topic,
                each.pattern.value,
            )
            for each in picture.next
        ),
    )


def _mastery(picture: Picture) -> str:
    key = "".join(
        f'<li><svg aria-hidden="true"><rect class="{name}" width="100%" height="100%"/></svg>'
        f"{word}</li>"
        for name, word in (("mastered", "mastered"), ("known", "known"), ("open", "not known"))
    )
    return _section(
        "Mastery by topic",
        "Known means right the last time. The topics with the most questions due come first.",
        f'<ul class="key">{key}</ul>' + "".join(map(_topic, picture.topics)),
    )


def _topic(topic: Topic) -> str:
    known, rest = topic.known - topic.mastered, topic.seen - topic.known
    said = (
        f"{topic.mastered} mastered, {known} known and {rest} not known"
        f" of {_count(topic.seen, 'question')}"
    )
    bar = stacked((("mastered", topic.mastered), ("known", known), ("open", rest)), said)
    late = f" ({topic.overdue} overdue)" if topic.overdue else ""
    return (
        f'<div class="topic"><h3>{escape(topic.name)}</h3>{bar}<p>{said}; {topic.due} due{late};'
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
        f"{_axis('overdue', _day(middle), _day(days[-1].day))}</figure>"
        + numbers(
            ("Day", "Due"),
            [("overdue", picture.overdue), *((_day(day.day), day.due) for day in days if day.due)],
        ),
    )


def _recall(picture: Picture) -> str:
    title = "Predicted and measured recall"
    weeks = picture.weeks
    if picture.retention is None or picture.predicted is None:
        return _section(
            title,
            f"No review in the last {len(weeks)} weeks: a review is an answer a day or more after"
            " the one before.",
            "",
        )
    reviews = sum(week.reviews for week in weeks)
    said = (
        f"Of {_count(reviews, 'review')} in the last {len(weeks)} weeks,"
        f" {_percent(picture.predicted)} were expected to be recalled, and"
        f" {_percent(picture.retention)} were. {_why(picture, reviews)} {_now(picture)}"
    )
    key = (
        '<ul class="key"><li><svg aria-hidden="true"><rect class="bar" width="100%" height="100%"/>'
        '</svg>recalled</li><li><svg aria-hidden="true"><rect class="guess" y="40%" width="100%"'
        ' height="20%"/></svg>predicted</li><li><svg aria-hidden="true"><line class="target" x1="0"'
        ' x2="100%" y1="50%" y2="50%"/></svg>'
        f"the {_percent(_TARGET)} that the schedule aims at</li></ul>"
    )
    measured = [week.recalled / week.reviews if week.reviews else None for week in weeks]
    chart = shares(measured, [week.predicted for week in weeks], _TARGET, said)
    return _section(
        title,
        said,
        f'{key}<figure><div class="top">100 %</div>{chart}'
        f"{_axis(_day(weeks[0].monday), 'by week', _day(weeks[-1].monday))}</figure>"
        + numbers(
            ("Week from", "Reviews", "Predicted", "Recalled"),
            [_of_week(week) for week in weeks if week.reviews],
        ),
    )


def _of_week(week: Recall) -> tuple[str, int, str, str]:
    predicted = week.predicted or 0.0
    return (
        _day(week.monday),
        week.reviews,
        _percent(predicted),
        _percent(week.recalled / week.reviews),
    )


def _why(picture: Picture, reviews: int) -> str:
    """One sentence that explains the difference between what was predicted and what was measured.

    By chance, a share of n reviews lies within two standard errors, sqrt(p (1 - p) / n), of the
    predicted share in about 95 of 100 cases. Of a few reviews not even that can be said.
    """
    predicted, measured = picture.predicted or 0.0, picture.retention or 0.0
    error = sqrt(predicted * (1 - predicted) / reviews)
    if reviews < _FEW or abs(measured - predicted) <= 2 * error:
        return "With this number of reviews, chance alone explains such a difference."
    if measured > predicted:
        return (
            "The prediction is that of an average learner, and this one remembers more, so"
            " questions come back earlier than they need to."
        )
    return (
        "The prediction is that of an average learner, and this one forgets more, so"
        " questions come back later than they should."
    )


def _now(picture: Picture) -> str:
    """One sentence on why the recall of now is not that of reviews."""
    told = f"If all questions were asked now, {_percent(picture.recall)} would be recalled"
    if picture.recall > (picture.retention or 0.0):
        return (
            f"{told}: more, because reviews ask questions that are about to be forgotten, and most"
            " questions are not."
        )
    return f"{told}: not more, because {picture.due:,} are due, and are forgotten bit by bit."


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
            " again, or rewrite the questions.</p>"
            + _listed(
                (
                    _name(each),
                    f"forgotten {_times(each.lapses)} in {_count(each.attempts, 'answer')}",
                    each.pattern.value,
                    each.topic,
                    f"due {_day(each.due_from.date())}" if each.pub_id else "not published",
                )
                for each in picture.stubborn
            )
        )
    return _section(
        "Patterns",
        "The number of questions with each pattern.",
        f'<dl class="patterns">{rows}</dl>{stubborn}',
    )


def _name(question: Next | Stubborn) -> str:
    return question.title or question.pub_id or f"no. {question.question_id}"


def _listed(items: Iterable[Sequence[str]]) -> str:
    """A list of questions, each with what there is to say about it, for any width."""
    return (
        '<ol class="questions">'
        + "".join(
            f"<li>{escape(name)}<p>{escape(' · '.join(rest))}</p></li>" for name, *rest in items
        )
        + "</ol>"
    )


def _section(title: str, said: str, inside: str) -> str:
    return f'<section><h2>{title}</h2><p class="soft">{said}</p>{inside}</section>'


def _axis(*words: str) -> str:
    spans = "".join(f"<span>{word}</span>" for word in words)
    return f'<div class="axis" aria-hidden="true">{spans}</div>'


def _day(day: date) -> str:
    return f"{day.day} {day:%b}"


def _percent(share: float) -> str:
    """Whole percents. Only all is 100, and only nothing is 0."""
    whole = round(share * 100)
    if 0 < share < 1:
        whole = min(max(whole, 1), 99)
    return f"{whole}\u00a0%"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
