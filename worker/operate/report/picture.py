"""The figures of a user's report: plain values computed from rows, for a page or for a program.

Pure: the rows and the time come in as values. Days are UTC days. Shares are from 0 to 1.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from schemas.words import Outcome, Pattern
from worker.domain.schedule import Memory, due_from, retrievability
from worker.store.operate.report import QuestionNow, Week

DAYS: Final = 30
"""The number of days in the forecast."""
WEEKS: Final = 12
"""The number of weeks in the retention chart."""
_WORST: Final = 10
"""The number of questions that are listed as the most difficult."""


@dataclass(frozen=True, slots=True)
class Topic:
    """How much of a topic is known. `recall` is the mean predicted recall now."""

    topic_id: int
    name: str
    seen: int
    mastered: int
    known: int
    """Questions whose last answer was correct, including the mastered ones."""
    due: int
    recall: float


@dataclass(frozen=True, slots=True)
class Stubborn:
    """A question that keeps being forgotten."""

    question_id: int
    pub_id: str | None
    topic: str
    pattern: Pattern
    lapses: int
    attempts: int
    due_at: datetime
    """As the schedule has it."""
    due_from: datetime
    """The time from which on it is due."""


@dataclass(frozen=True, slots=True)
class Day:
    """The number of questions that become due on a day."""

    day: date
    due: int


@dataclass(frozen=True, slots=True)
class Recall:
    """How many of a week's reviews were recalled."""

    monday: date
    reviews: int
    recalled: int


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything in a user's report."""

    user_id: int
    made_at: datetime
    questions: int
    attempts: int
    known: int
    due: int
    recall: float
    """The predicted share of questions that the user would recall now."""
    retention: float | None
    """The share of reviews in the last weeks that were recalled. None if there were no reviews."""
    topics: tuple[Topic, ...]
    overdue: int
    """The number of questions that were due before today."""
    forecast: tuple[Day, ...]
    """Today and the following days."""
    weeks: tuple[Recall, ...]
    patterns: dict[Pattern, int]
    stubborn: tuple[Stubborn, ...]


def since(now: datetime) -> datetime:
    """The Monday with which the reviews begin."""
    monday = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(now.weekday())
    return monday - timedelta(weeks=WEEKS - 1)


def picture(
    user_id: int, questions: Sequence[QuestionNow], weeks: Iterable[Week], now: datetime
) -> Picture:
    """Computes the report. `questions` is not empty, and `now` is in UTC."""
    reviewed = {week.monday: week for week in weeks}
    first = since(now).date()
    mondays = [first + timedelta(weeks=n) for n in range(WEEKS)]
    recalls = tuple(Recall(*reviewed.get(monday, Week(monday, 0, 0))) for monday in mondays)
    reviews = sum(week.reviews for week in recalls)
    found = Counter(question.pattern for question in questions)
    return Picture(
        user_id=user_id,
        made_at=now,
        questions=len(questions),
        attempts=sum(question.attempts for question in questions),
        known=sum(map(_is_known, questions)),
        due=sum(due_from(question.due_at) <= now for question in questions),
        recall=_mean_recall(questions, now),
        retention=sum(week.recalled for week in recalls) / reviews if reviews else None,
        topics=_topics(questions, now),
        overdue=sum(due_from(question.due_at).date() < now.date() for question in questions),
        forecast=_forecast(questions, now),
        weeks=recalls,
        patterns={pattern: found[pattern] for pattern in Pattern},
        stubborn=_stubborn(questions),
    )


def _topics(questions: Sequence[QuestionNow], now: datetime) -> tuple[Topic, ...]:
    """The topics, with the most due first."""
    by_topic: dict[int, list[QuestionNow]] = {}
    for question in questions:
        by_topic.setdefault(question.topic_id, []).append(question)
    topics = [
        Topic(
            topic_id=topic_id,
            name=its[0].topic_name or f"Topic {topic_id}",
            seen=len(its),
            mastered=sum(question.pattern is Pattern.MASTERED for question in its),
            known=sum(map(_is_known, its)),
            due=sum(due_from(question.due_at) <= now for question in its),
            recall=_mean_recall(its, now),
        )
        for topic_id, its in by_topic.items()
    ]
    return tuple(sorted(topics, key=lambda topic: (-topic.due, -topic.seen, topic.topic_id)))


def _forecast(questions: Iterable[QuestionNow], now: datetime) -> tuple[Day, ...]:
    due = Counter(due_from(question.due_at).date() for question in questions)
    days = [now.date() + timedelta(days=n) for n in range(DAYS)]
    return tuple(Day(day, due[day]) for day in days)


def _stubborn(questions: Iterable[QuestionNow]) -> tuple[Stubborn, ...]:
    found = [each for each in questions if each.pattern in (Pattern.LEECH, Pattern.STUCK)]
    found.sort(key=lambda each: (-each.lapses, -each.attempts, each.question_id))
    return tuple(
        Stubborn(
            each.question_id,
            each.pub_id,
            each.topic_name or f"Topic {each.topic_id}",
            each.pattern,
            each.lapses,
            each.attempts,
            each.due_at,
            due_from(each.due_at),
        )
        for each in found[:_WORST]
    )


def _is_known(question: QuestionNow) -> bool:
    return question.last_outcome is Outcome.CORRECT


def _mean_recall(questions: Sequence[QuestionNow], now: datetime) -> float:
    recalls = [
        retrievability(
            Memory(each.stability, each.difficulty, each.due_at), each.last_answered_at, now
        )
        for each in questions
    ]
    return sum(recalls) / len(recalls)
