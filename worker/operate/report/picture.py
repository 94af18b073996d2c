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
from worker.operate.report.retold import Review

DAYS: Final = 30
"""The number of days in the forecast."""
WEEKS: Final = 12
"""The number of weeks in the retention chart."""
_WORST: Final = 10
"""The number of questions that are listed as the most difficult."""
_NEXT: Final = 10
"""The number of questions that are listed as the next to review."""


@dataclass(frozen=True, slots=True)
class QuestionThen:
    """One question at the moment of the report. Times are UTC, and stability is in days."""

    question_id: int
    pub_id: str | None
    """None if the question is not published, so that it can't be reviewed and is never due."""
    title: str | None
    topic_id: int
    topic_name: str
    attempts: int
    lapses: int
    last_outcome: Outcome
    last_answered_at: datetime
    pattern: Pattern
    stability: float
    difficulty: float
    due_at: datetime

    @property
    def due_from(self) -> datetime:
        """The time from which on it is due."""
        return due_from(self.due_at)

    def is_due(self, at: datetime) -> bool:
        """Whether it should be reviewed."""
        return self.pub_id is not None and self.due_from <= at

    def recall(self, at: datetime) -> float:
        """The predicted probability, 0..1, of recalling it."""
        memory = Memory(self.stability, self.difficulty, self.due_at)
        return retrievability(memory, self.last_answered_at, at)


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
    overdue: int
    recall: float


@dataclass(frozen=True, slots=True)
class Next:
    """A question that is due. `recall` is the predicted probability of recalling it now."""

    question_id: int
    pub_id: str
    title: str | None
    topic: str
    pattern: Pattern
    recall: float
    due_from: datetime
    overdue_days: int
    """The days, by the calendar, since it became due."""


@dataclass(frozen=True, slots=True)
class Stubborn:
    """A question that keeps being forgotten."""

    question_id: int
    pub_id: str | None
    title: str | None
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
    predicted: float | None
    """The share that the scheduler expected to be recalled. None if there were no reviews."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything in a user's report."""

    user_id: int
    at: datetime
    """The moment that the report is about. Later answers are left out."""
    questions: int
    unpublished: int
    """How many of them are not published, so that they are never due."""
    attempts: int
    known: int
    due: int
    recall: float
    """The predicted share of questions that the user would recall now."""
    retention: float | None
    """The share of reviews in the last weeks that were recalled. None if there were no reviews."""
    predicted: float | None
    """The share of the same reviews that the scheduler expected to be recalled."""
    topics: tuple[Topic, ...]
    overdue: int
    """The number of questions that were due before today."""
    forecast: tuple[Day, ...]
    """Today and the following days."""
    weeks: tuple[Recall, ...]
    patterns: dict[Pattern, int]
    next: tuple[Next, ...]
    """The due questions, the most forgotten first."""
    stubborn: tuple[Stubborn, ...]


def since(at: datetime) -> datetime:
    """The Monday with which the reviews begin."""
    monday = at.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(at.weekday())
    return monday - timedelta(weeks=WEEKS - 1)


def picture(
    user_id: int, questions: Sequence[QuestionThen], reviews: Iterable[Review], at: datetime
) -> Picture:
    """Computes the report. `questions` is not empty, and `at` is in UTC."""
    weeks = _weeks(reviews, at)
    count = sum(week.reviews for week in weeks)
    found = Counter(question.pattern for question in questions)
    return Picture(
        user_id=user_id,
        at=at,
        questions=len(questions),
        unpublished=sum(question.pub_id is None for question in questions),
        attempts=sum(question.attempts for question in questions),
        known=sum(map(_is_known, questions)),
        due=sum(question.is_due(at) for question in questions),
        recall=_mean_recall(questions, at),
        retention=sum(week.recalled for week in weeks) / count if count else None,
        predicted=(
            sum(week.predicted * week.reviews for week in weeks if week.predicted is not None)
            / count
            if count
            else None
        ),
        topics=_topics(questions, at),
        overdue=sum(_overdue_days(question, at) > 0 for question in questions),
        forecast=_forecast(questions, at),
        weeks=weeks,
        patterns={pattern: found[pattern] for pattern in Pattern},
        next=_next(questions, at),
        stubborn=_stubborn(questions),
    )


def _weeks(reviews: Iterable[Review], at: datetime) -> tuple[Recall, ...]:
    first = since(at).date()
    by_week: list[list[Review]] = [[] for _ in range(WEEKS)]
    for review in reviews:
        week = (review.answered_at.date() - first).days // 7
        if 0 <= week < WEEKS:
            by_week[week].append(review)
    return tuple(
        Recall(
            first + timedelta(weeks=number),
            len(its),
            sum(review.recalled for review in its),
            sum(review.predicted for review in its) / len(its) if its else None,
        )
        for number, its in enumerate(by_week)
    )


def _topics(questions: Sequence[QuestionThen], at: datetime) -> tuple[Topic, ...]:
    """The topics, with the most due first."""
    by_topic: dict[int, list[QuestionThen]] = {}
    for question in questions:
        by_topic.setdefault(question.topic_id, []).append(question)
    topics = [
        Topic(
            topic_id=topic_id,
            name=_topic_of(its[0]),
            seen=len(its),
            mastered=sum(question.pattern is Pattern.MASTERED for question in its),
            known=sum(map(_is_known, its)),
            due=sum(question.is_due(at) for question in its),
            overdue=sum(_overdue_days(question, at) > 0 for question in its),
            recall=_mean_recall(its, at),
        )
        for topic_id, its in by_topic.items()
    ]
    return tuple(sorted(topics, key=lambda topic: (-topic.due, -topic.seen, topic.topic_id)))


def _forecast(questions: Iterable[QuestionThen], at: datetime) -> tuple[Day, ...]:
    due = Counter(each.due_from.date() for each in questions if each.pub_id is not None)
    days = [at.date() + timedelta(days=n) for n in range(DAYS)]
    return tuple(Day(day, due[day]) for day in days)


def _next(questions: Iterable[QuestionThen], at: datetime) -> tuple[Next, ...]:
    due = [(each.recall(at), each) for each in questions if each.is_due(at)]
    due.sort(key=lambda found: (found[0], found[1].question_id))
    return tuple(
        Next(
            each.question_id,
            each.pub_id or "",
            each.title,
            _topic_of(each),
            each.pattern,
            recall,
            each.due_from,
            _overdue_days(each, at),
        )
        for recall, each in due[:_NEXT]
    )


def _stubborn(questions: Iterable[QuestionThen]) -> tuple[Stubborn, ...]:
    found = [each for each in questions if each.pattern in (Pattern.LEECH, Pattern.STUCK)]
    found.sort(key=lambda each: (-each.lapses, -each.attempts, each.question_id))
    return tuple(
        Stubborn(
            each.question_id,
            each.pub_id,
            each.title,
            _topic_of(each),
            each.pattern,
            each.lapses,
            each.attempts,
            each.due_at,
            each.due_from,
        )
        for each in found[:_WORST]
    )


def _topic_of(question: QuestionThen) -> str:
    return question.topic_name or f"Topic {question.topic_id}"


def _overdue_days(question: QuestionThen, at: datetime) -> int:
    return max(0, (at.date() - question.due_from.date()).days) if question.is_due(at) else 0


def _is_known(question: QuestionThen) -> bool:
    return question.last_outcome is Outcome.CORRECT


def _mean_recall(questions: Sequence[QuestionThen], at: datetime) -> float:
    return sum(question.recall(at) for question in questions) / len(questions)
