"""The words with a fixed set of values, as they stand in messages, columns, logs and metrics.

Plain enumerations: this file knows no message model and no library, so that the pure core of
the worker may import it.
"""

from enum import StrEnum
from typing import Final


class Outcome(StrEnum):
    """What an attempt came to."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNSURE = "unsure"


# For what is done with each attempt: before Python 3.12 an attribute of an enumeration takes ten
# times as long as a name.
CORRECT: Final = Outcome.CORRECT
WRONG: Final = Outcome.WRONG
UNSURE: Final = Outcome.UNSURE


class Pattern(StrEnum):
    """What a question's whole history looks like; the first that fits, in this order."""

    MASTERED = "mastered"
    LEECH = "leech"
    STUCK = "stuck"
    RELAPSED = "relapsed"
    RECOVERING = "recovering"
    HESITANT = "hesitant"
    KNOWN = "known"
    LEARNING = "learning"


class Status(StrEnum):
    """What became of an attempt batch, as its viewer is told."""

    INGESTED = "ingested"
    ALREADY_INGESTED = "already_ingested"
    REJECTED = "rejected"


class SkipReason(StrEnum):
    """Why one attempt of a batch was left out while the rest went on."""

    UNKNOWN_PUBLICATION = "unknown_publication"
    WITHDRAWN = "withdrawn"
    QUESTION_DELETED = "question_deleted"
    NO_ANSWER = "no_answer"


class RejectReason(StrEnum):
    """Why a delivery was parked in the dead-letter queue."""

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
