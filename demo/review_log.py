"""A real review log as attempt batches: what was answered when, and in which order it arrives.

A review becomes an attempt as follows: card -> question (correct choice 1); rating 3 or 4 -> choice
1; rating 2 -> choice 1 and unsure; rating 1 -> choice 2. Consecutive reviews less than 30 minutes
apart make one batch.
"""

import csv
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple
from uuid import NAMESPACE_OID, uuid5

from demo.bank import Question
from study_viewer import Attempt, AttemptBatch
from study_viewer.schemas.attempt_batch import MAX_ATTEMPTS
from worker.errors import SettingsError

_GAP: Final = timedelta(minutes=30)
_SYNC: Final = timedelta(days=7)
USER: Final = 1
"""The learner, who owns all questions."""
_TOPIC: Final = 1


class Review(NamedTuple):
    """One line of the log."""

    card: str
    rating: int
    at: datetime


class Arrival(NamedTuple):
    """A batch, the device that recorded it, and when that device sends it."""

    at: datetime
    device: int
    batch: AttemptBatch


def read(path: Path) -> list[Review]:
    """The reviews in order of time. Raises `SettingsError` if the file is not a review log."""
    try:
        with path.open(newline="") as file:
            reviews = [
                Review(
                    line["card_id"],
                    int(line["review_rating"]),
                    datetime.fromisoformat(line["review_time"]),
                )
                for line in csv.DictReader(file)
            ]
    except (OSError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"The review log {path} can't be read ({type(error).__name__}: {error}): it must be"
            " CSV with the columns card_id, review_rating and review_time."
        ) from None
    return sorted(reviews, key=lambda review: review.at)


def questions(reviews: list[Review]) -> list[Question]:
    """One question for each card, all of one user and topic."""
    return [
        Question(number, USER, _TOPIC, f"card-{card}", correct_choice=1)
        for number, card in enumerate(sorted({review.card for review in reviews}), 1)
    ]


def batches(reviews: list[Review]) -> list[AttemptBatch]:
    """The sessions of the log, in order; the same log gives the same uuids."""
    return [
        AttemptBatch(
            client_session_uuid=uuid5(NAMESPACE_OID, f"{session[0].card} {session[0].at}"),
            attempts=tuple(_attempt(review) for review in session),
        )
        for session in _sessions(reviews)
    ]


def arrivals(batches: list[AttemptBatch]) -> list[Arrival]:
    """The same batches as two devices send them. Every other batch was recorded on a second device,
    which syncs once a week.
    """
    begin = _begun(batches[0])
    found = []
    for number, batch in enumerate(batches):
        at = _begun(batch)
        if number % 2:
            at = begin + ((at - begin) // _SYNC + 1) * _SYNC
        found.append(Arrival(at, number % 2, batch))
    return sorted(found, key=lambda arrival: (arrival.at, arrival.device))


def _sessions(reviews: list[Review]) -> Iterator[list[Review]]:
    number = 0
    keys = []
    for before, review in zip([None, *reviews], reviews, strict=False):
        if before is not None and review.at - before.at >= _GAP:
            number += 1
        keys.append(number)
    for _, numbered in groupby(zip(keys, reviews, strict=True), key=lambda pair: pair[0]):
        session = [review for _, review in numbered]
        for start in range(0, len(session), MAX_ATTEMPTS):
            yield session[start : start + MAX_ATTEMPTS]


def _begun(batch: AttemptBatch) -> datetime:
    at = batch.attempts[0].sent_at()
    assert at is not None
    return at


def _attempt(review: Review) -> Attempt:
    return Attempt(
        question_pub_id=f"card-{review.card}",
        selected_choice=2 if review.rating == 1 else 1,
        is_unsure=review.rating == 2,
        answered_at=review.at.isoformat(),
    )
