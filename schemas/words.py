"""The words with a fixed set of values, as they appear in messages, columns, logs and metrics.

These are plain enumerations without a message model or a library, so that the pure core of the
worker can import them.
"""

from enum import StrEnum
from typing import Final


class Outcome(StrEnum):
    """The outcome of an attempt."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNSURE = "unsure"


# For code that runs for each attempt: before Python 3.12 an attribute of an enumeration takes ten
# times as long as a name.
CORRECT: Final = Outcome.CORRECT
WRONG: Final = Outcome.WRONG
UNSURE: Final = Outcome.UNSURE


class Pattern(StrEnum):
    """The pattern of a question's whole history. The first that applies counts, in this order."""

    MASTERED = "mastered"
    LEECH = "leech"
    STUCK = "stuck"
    RELAPSED = "relapsed"
    RECOVERING = "recovering"
    HESITANT = "hesitant"
    KNOWN = "known"
    LEARNING = "learning"


class Status(StrEnum):
    """What happened to an attempt batch, as its viewer learns it."""

    INGESTED = "ingested"
    ALREADY_INGESTED = "already_ingested"
    REJECTED = "rejected"


class SkipReason(StrEnum):
    """Why an attempt was skipped while the rest of its batch was ingested."""

    UNKNOWN_PUBLICATION = "unknown_publication"
    WITHDRAWN = "withdrawn"
    QUESTION_DELETED = "question_deleted"
    NO_ANSWER = "no_answer"
    ERASED = "erased"


class TimeWas(StrEnum):
    """Why an attempt's time as sent was replaced."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    TOO_EARLY = "too_early"
    IN_THE_FUTURE = "in_the_future"


class RejectReason(StrEnum):
    """Why a delivery became a dead letter."""

    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    UNSUPPORTED_VERSION = "unsupported_version"
    UNIDENTIFIED_PUBLISHER = "unidentified_publisher"
    NOTHING_RESOLVED = "nothing_resolved"
    MIXED_PRINCIPALS = "mixed_principals"
    PRINCIPAL_NOT_GRANTED = "principal_not_granted"
    NOTHING_TO_SCORE = "nothing_to_score"
    UUID_REUSED = "uuid_reused"
    RETRIES_EXHAUSTED = "retries_exhausted"
    DELIVERY_LIMIT = "delivery_limit"
    EXPIRED = "expired"
